"""lora-tools merge: add adapters to the weights of their base."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_tools.adapter import read
from lora_tools.cli.console import command_line, say, show, show_json, show_part
from lora_tools.cli.inputs import inputs
from lora_tools.cli.options import (
    adapters_argument,
    allow_missing_option,
    alpha_option,
    base_argument,
    dry_run_option,
    dtype_option,
    each_format,
    evict_option,
    executor_options,
    force_option,
    formats_option,
    json_option,
    make_executor,
    out_argument,
    part_option,
    quiet_option,
    untie_option,
    weight_option,
)
from lora_tools.cli.publish import push_to_option
from lora_tools.cli.selection import ModuleChoice, selection_options
from lora_tools.cli.types import ByteSize
from lora_tools.errors import DeviceError, PolicyError
from lora_tools.files.location import Location
from lora_tools.files.ours import Force
from lora_tools.files.writer import check_output
from lora_tools.model import CONFIG, open_model
from lora_tools.text import visible

if TYPE_CHECKING:
    from lora_tools.files.parts import Part


@click.command(short_help="Merge adapters into their base model.")
@base_argument
@adapters_argument
@out_argument
@weight_option(
    "Multiply the update of an adapter by W: once for each ADAPTER, in order. -1 takes an"
    " adapter out again.  [default: 1]"
)
@selection_options(numbered=True)
@formats_option("the ADAPTERs")
@dtype_option("Dtype of the weights written.")
@click.option(
    "--max-shard-size",
    type=ByteSize(),
    metavar="SIZE",
    help="Files of at most SIZE: 5GB, 500MiB.  [default: the files of BASE]",
)
@untie_option("Give tied embeddings a head of their own, even where both are still one.")
@allow_missing_option("Leave out and list modules that match no weight of BASE.")
@alpha_option
@executor_options
@evict_option
@push_to_option
@part_option
@dry_run_option("Check everything and show the plan; write nothing.")
@json_option
@force_option()
@quiet_option
def command(
    base: Location,
    adapters: tuple[Location, ...],
    out: Path,
    weights: tuple[float, ...],
    modules: ModuleChoice,
    owns: tuple[str, ...],
    dtype: str | None,
    max_shard_size: int | None,
    untie: bool,
    allow_missing: bool,
    alpha: float | None,
    device: str,
    jobs: int | None,
    evict: bool,
    part: "Part | None",
    dry_run: bool,
    as_json: bool,
    force: Force,
    quiet: bool,
) -> None:
    """Add the ADAPTERs to the model BASE and write the result to the folder OUT.

    BASE is a folder, an index of shards, a file, or the folder of a diffusers pipeline; OUT holds
    the same, under the same names. Every sum is rounded once, to BASE's dtype; tensors that no
    adapter changes keep their bytes. An interrupted merge resumes when the same command is given
    again.
    """
    if weights and len(weights) != len(adapters):
        raise PolicyError(f"{len(weights)} --weight for {len(adapters)} adapters")
    if device == "mps":
        raise DeviceError("mps: has no float64, in which sums are formed").hint("Use --device cpu.")
    if not dry_run:
        sources = inputs("base", base, CONFIG) | {f"adapter {path}": path for path in adapters}
        check_output(out, sources, force=force)
    model = open_model(base)
    formats = zip(adapters, each_format(owns, len(adapters)), strict=True)
    found = [read(path, own, base=model.config, alpha=alpha) for path, own in formats]
    executor = make_executor(device, jobs)
    from lora_tools.verbs.merge import MergeOptions, WeightedAdapter, merge, plan  # imports numpy

    weighted = [
        WeightedAdapter(each, w)
        for each, w in zip(found, weights or [1.0] * len(found), strict=True)
    ]
    merge_plan = plan(
        model, weighted, MergeOptions(dtype, untie, allow_missing, modules.selection())
    )
    made = merge(merge_plan, most=max_shard_size, device=device)
    for partial in merge_plan.partial if not quiet else ():
        say(partial, "warning")  # before hours of work, and again where it ends
    if part:
        with _progress(made.files.nbytes // part.count, quiet=quiet) as finished:
            share = made.write_part(out, part, executor, finished=finished, evict=evict)
        show_part(share, as_json=as_json, quiet=quiet)
        return
    if dry_run:
        report = made.report
    else:
        with _progress(made.files.nbytes, quiet=quiet) as finished:
            arguments = command_line()
            report = made.write(
                out, executor, force=force, arguments=arguments, finished=finished, evict=evict
            )
    if as_json:
        show_json(report.to_json())
    elif not quiet:
        show(report.to_text() if not dry_run else made.to_text())
        show("nothing written (--dry-run)" if dry_run else f"written to {visible(str(out))}")
    for last in (*merge_plan.partial, report.warning) if not quiet else ():
        if last:
            say(last, "warning")


@contextmanager
def _progress(nbytes: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    if quiet or not sys.stderr.isatty():
        yield lambda count: None
        return
    from tqdm import tqdm  # only a terminal needs it

    with tqdm(total=nbytes, unit="B", unit_scale=True, desc="merge", delay=1, leave=False) as bar:

        def finished(count: int) -> None:
            bar.update(count)

        yield finished
