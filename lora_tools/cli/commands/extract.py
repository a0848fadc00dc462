"""lora-tools extract: an adapter from a full fine-tune."""

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_tools.adapter import REPORT
from lora_tools.cli.console import say, show, show_json, show_part
from lora_tools.cli.extraction import extraction_options
from lora_tools.cli.options import (
    base_argument,
    dry_run_option,
    evict_option,
    executor_options,
    force_option,
    json_option,
    make_executor,
    out_argument,
    part_option,
    quiet_option,
)
from lora_tools.cli.publish import push_to_option
from lora_tools.cli.ranks import PolicyChoice, policy_options
from lora_tools.cli.types import LocalOrHub
from lora_tools.files.location import Location
from lora_tools.files.ours import Force
from lora_tools.files.writer import check_output
from lora_tools.formats.registry import format_named
from lora_tools.model import open_model
from lora_tools.names import collapse, template
from lora_tools.report import NONE, grouped, shape, size, table
from lora_tools.text import visible

if TYPE_CHECKING:
    from lora_tools.files.parts import Part
    from lora_tools.verbs.extract import ExtractOptions, ExtractPlan
    from lora_tools.verbs.extract.estimate import ModuleEstimate
    from lora_tools.verbs.extract.plan import Item


@click.command(short_help="Extract an adapter from a full fine-tune.")
@base_argument
@click.argument("tuned", type=LocalOrHub())
@out_argument
@policy_options
@extraction_options
@click.option(
    "--to",
    "target",
    metavar="FORMAT",
    help="Write the adapter in this format: kohya, comfyui, diffusers …  [default: peft, with the"
    " names of BASE]",
)
@executor_options
@evict_option
@push_to_option
@part_option
@dry_run_option("Show what would be extracted, and write nothing.")
@click.option(
    "--no-resume", is_flag=True, help="Start over instead of resuming where a run stopped."
)
@json_option
@force_option()
@quiet_option
def command(
    base: Location,
    tuned: Location,
    out: Path,
    choice: PolicyChoice | None,
    wanted: "Callable[[str], ExtractOptions]",
    target: str | None,
    device: str,
    jobs: int | None,
    evict: bool,
    part: "Part | None",
    dry_run: bool,
    no_resume: bool,
    as_json: bool,
    force: Force,
    quiet: bool,
) -> None:
    """Write the best adapter that turns the model BASE into TUNED to the folder OUT.

    BASE and TUNED are folders or files of the same architecture, whatever names each has: a
    language model, a diffusion model, a whole checkpoint or pipeline. Give one of --rank, --energy,
    --max-error, --max-params and --max-size; the last three allocate ranks to the modules
    optimally. Errors are relative Frobenius errors of the update, measured on the bytes written,
    beside a certified lower bound of what any adapter of the same ranks can reach. What is
    finished is kept beside OUT: after an interruption the same command resumes from there.
    """
    if choice is None and not dry_run:
        raise click.UsageError(
            "give one of --rank, --energy, --max-error, --max-params, --max-size"
        )
    began = time.monotonic()
    format = format_named(target) if target else None
    if not dry_run:
        check_output(out, {"base": base, "tuned model": tuned}, force=force)
    old, new = open_model(base), open_model(tuned)
    executor = make_executor(device, jobs)
    from lora_tools.verbs.extract import extract, extract_part, plan  # imports numpy

    found = plan(old, new, wanted(device))
    if format:
        from lora_tools.verbs.extract.other_format import reformat, without_names

        found = plan(old, new, replace(found.options, nameless=without_names(found, format)))
    if dry_run:
        _show(found, choice, as_json=as_json, quiet=quiet)
        return
    assert choice is not None
    with _progress(found, quiet=quiet) as seen:
        policy, resume = choice.policy(old), not no_resume
        if part:
            share = extract_part(found, policy, out, part, executor, seen=seen, evict=evict)
            show_part(share, as_json=as_json, quiet=quiet)
            return
        with extract(
            found, policy, out, executor, resume=resume, force=force, seen=seen, evict=evict
        ) as extraction:
            report = extraction.run()
            if format:
                reformat(extraction.place, format, report, old)
            report.arguments = shlex.join(["lora-tools", *_lasting(sys.argv[1:])])
            report.save(extraction.place / REPORT)
    report.seconds = time.monotonic() - began
    if as_json:
        show_json(report.to_json())
    elif not quiet:
        show(report.to_text())
        show(f"written to {visible(str(out))}")


@contextmanager
def _progress(plan: "ExtractPlan", *, quiet: bool) -> "Iterator[Callable[[Item], None]]":
    """Show bytes per second and the time left on a terminal, for what takes over a second."""
    if quiet or not sys.stderr.isatty():
        yield lambda item: None
        return
    from tqdm import tqdm  # only a terminal needs it

    with tqdm(
        total=plan.nbytes, unit="B", unit_scale=True, desc="extract", delay=1, leave=False
    ) as bar:

        def seen(item: "Item") -> None:
            # A policy that needs spectra reads twice: the bar stays full the second time.
            bar.update(min(item.pair.nbytes, plan.nbytes - int(bar.n)))

        yield seen


def _show(plan: "ExtractPlan", choice: PolicyChoice | None, *, as_json: bool, quiet: bool) -> None:
    """Show what would be extracted."""
    from lora_tools.verbs.extract.estimate import estimate  # imports numpy

    rank = choice.value if choice and choice.name == "rank" else plan.options.max_rank
    lines = estimate(plan, rank)
    if as_json:
        show_json(lines.to_dict())
        return
    if quiet:
        return
    rows = [
        (collapse([module.module for module in group]), len(group), *_about(group[0]))
        for group in grouped(
            lines.modules, lambda module: (template(module.module), *_about(module))
        )
    ]
    show(table(rows, ("module", "count", "shape", "outcome", "rank")))
    show("")
    show(
        f"at most {lines.params:,} parameters, {size(lines.nbytes)}; {size(plan.nbytes)} to read,"
        f" about {lines.seconds:.0f} s"
    )
    for note in plan.pairs.notes:
        say(f"note: {note}")
    show("nothing written (--dry-run)")


def _about(module: "ModuleEstimate") -> tuple[str, str, str]:
    why = f" ({module.reason})" if module.reason else ""
    return shape(module.shape), f"{module.outcome}{why}", str(module.rank_after or NONE)


def _lasting(arguments: list[str]) -> list[str]:
    """Leave out what only says how to run, so that an interrupted run gives the same bytes."""
    return [
        argument
        for argument in arguments
        if argument not in ("--no-resume", "--force", "--force-any", "--evict")
    ]
