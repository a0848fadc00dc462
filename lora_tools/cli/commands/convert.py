"""lora-tools convert: convert an adapter to another tool's format."""

import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_tools.adapter import read
from lora_tools.cli.console import Visible, command_line
from lora_tools.cli.options import (
    alpha_option,
    base_option,
    dry_run_option,
    dtype_option,
    force_option,
    format_option,
    jobs_option,
    json_option,
    make_executor,
    out_argument,
    quiet_option,
    rank_limit_options,
    source_argument,
)
from lora_tools.cli.publish import push_to_option
from lora_tools.cli.ranks import Limits, PolicyChoice, check_limits, policy_options
from lora_tools.cli.rewriting import conclude, file_or_folder
from lora_tools.cli.selection import ModuleChoice, selection_options
from lora_tools.executors import Executor
from lora_tools.files.location import Location
from lora_tools.files.ours import Force
from lora_tools.formats.registry import PEFT, format_named
from lora_tools.model import open_model

if TYPE_CHECKING:
    from lora_tools.linalg.rank import RankPolicy
    from lora_tools.matching.naming import Names
    from lora_tools.rewrite import Rewrite, Source
    from lora_tools.rewrite.experts import Grouping


@click.command(short_help="Convert an adapter to another tool's format.")
@source_argument
@out_argument
@click.option("--to", "target", metavar="FORMAT", required=True, help="Format to write.")
@format_option()
@alpha_option
@base_option(
    "Base model: used to restore the dotted module paths that kohya flattened; its config.json"
    " says the heads and the architecture that some formats leave out."
)
@click.option(
    "--names",
    type=click.Choice(["transformers5", "transformers4"]),
    help=(
        "With --to peft and --base: the names that BASE has in that version's memory, or those"
        " before 4.52 (vision-language) and 5 (experts), which its files have. Default:"
        " transformers5."
    ),
)
@click.option("--drop", multiple=True, metavar="FEATURE", help="Leave out FEATURE. Repeatable.")
@click.option(
    "--experts",
    type=click.Choice(("split", "stacked")),
    help="Give every expert layers of its own, as vLLM wants them, or stack them as PEFT does with"
    " transformers 5. Needs --base.",
)
@selection_options()
@policy_options
@rank_limit_options(", where ranks are lowered")
@dtype_option()
@click.option(
    "--alpha-out",
    type=float,
    metavar="N",
    help="Write this alpha, for loaders that assume one, and fold the change of scale into the"
    " factors.",
)
@jobs_option("one per core")
@push_to_option
@dry_run_option("Report without writing.")
@json_option
@force_option()
@quiet_option
def command(
    source: Location,
    out: Path,
    target: str,
    own: str | None,
    alpha: float | None,
    base: Location | None,
    names: "Names | None",
    drop: tuple[str, ...],
    experts: "Grouping | None",
    modules: ModuleChoice,
    choice: PolicyChoice | None,
    min_rank: int,
    max_rank: int | None,
    multiple_of: int,
    dtype: str | None,
    alpha_out: float | None,
    jobs: int | None,
    dry_run: bool,
    as_json: bool,
    force: Force,
    quiet: bool,
) -> None:
    """Write the adapter SOURCE in another FORMAT to OUT, with the same updates.

    OUT is a folder, or a file with the ending .safetensors (.gguf for gguf) where the format has
    no configuration beside its tensors. Scales that FORMAT does not support are folded into the
    factors; what it does not support at all is refused by name. `lora-tools formats` lists formats
    and features.

    With --to peft and --base, modules get the names that the base has now: an adapter of a
    vision-language model from before transformers 4.52 becomes one of today's.

    With one of --rank, --energy, --max-error, --max-params and --max-size, ranks are lowered in the
    same step, as `lora-tools shrink` lowers them: LoHa, LoKr and full-rank diffs are LoRAs of a
    high rank. The error is that of the bytes written, against the updates of SOURCE.
    """
    from lora_tools.rewrite.selection import selected  # imports numpy
    from lora_tools.verbs.convert import translate

    began = time.monotonic()
    check_limits(choice, min_rank, max_rank, multiple_of)
    format = format_named(target)
    if names and not (base and format.name == PEFT.name):
        raise click.UsageError("--names is for --to peft, and needs --base MODEL")
    if names and experts:
        raise click.UsageError("--names and --experts are two steps: give one, then the other")
    output = file_or_folder(out, format, force)
    model = open_model(base) if base else None
    adapter = read(source, own, base=model.config if model else None, alpha=alpha)
    if not dry_run:
        output.check([adapter])
    executor = make_executor("cpu", jobs)
    naming = None if experts else names or "transformers5"
    of = translate(
        adapter,
        format,
        executor,
        drop=drop,
        paths=model or (),
        names=naming,
        experts=experts,
    )
    of = selected(of, modules.selection(), executor)
    ranks = {"min_rank": min_rank, "max_rank": max_rank, "multiple_of": multiple_of}
    limits = Limits({**ranks, "dtype": dtype, "scale": "keep", "alpha": alpha_out})
    policy = choice.policy(of) if choice else None
    plan = _plan(of, policy, limits, executor if quiet else Visible(executor))
    report = plan.report("convert", str(policy or ""), began)
    report.arguments = command_line()
    rows = report.watch(plan)
    if dry_run:
        deque(rows, maxlen=0)
    else:
        output.write(plan.manifest, rows, report, [of.adapter])
    conclude(report, out, dry_run=dry_run, as_json=as_json, quiet=quiet)


def _plan(
    source: "Source", policy: "RankPolicy | None", limits: Limits, executor: Executor
) -> "Rewrite":
    """Keep every update or, if there is a policy, lower ranks on the way."""
    from lora_tools.rewrite import keep, survey

    if policy is None:
        return keep(source, executor, dtype=limits.values["dtype"], alpha=limits.values["alpha"])
    # A module that keeps its rank keeps its bits, so the scale stays where it is.
    return survey(source, limits.options("cpu"), executor, expect=policy).rewrite(policy)
