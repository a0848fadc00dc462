"""lora-tools shrink: lower the rank of an adapter."""

import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_tools.adapter import Adapter, read
from lora_tools.cli.console import Visible, command_line, say, show, show_json
from lora_tools.cli.options import (
    alpha_option,
    dry_run_option,
    executor_options,
    force_option,
    format_option,
    json_option,
    make_executor,
    out_argument,
    quiet_option,
    source_argument,
)
from lora_tools.cli.publish import push_to_option
from lora_tools.cli.ranks import Limits, PolicyChoice, limit_options, policy_options
from lora_tools.cli.rewriting import Output, conclude
from lora_tools.cli.selection import ModuleChoice, selection_options
from lora_tools.cli.types import POSITIVE, LocalOrHub
from lora_tools.executors import Executor
from lora_tools.files.location import Location
from lora_tools.files.ours import Force
from lora_tools.files.writer import check_file, staged_file
from lora_tools.report import ranks_table

if TYPE_CHECKING:
    from lora_tools.linalg.rank import RankPolicy
    from lora_tools.report import Projected
    from lora_tools.rewrite import Rewrite, RewriteOptions, Source, Survey


@click.command(short_help="Lower the rank of an adapter.")
@source_argument
@out_argument
@policy_options
@limit_options
@selection_options()
@click.option(
    "--orthogonal-to",
    "other",
    type=LocalOrHub(),
    metavar="OTHER",
    help="First project the inputs that the adapter OTHER reads out of SOURCE's updates (NP-LoRA),"
    " and report what that cost. Needs no policy.",
)
@click.option(
    "--directions",
    type=POSITIVE,
    metavar="N",
    help="Of OTHER's inputs, the N leading singular vectors of each module.  [default: all]",
)
@format_option()
@alpha_option
@executor_options
@push_to_option
@dry_run_option("Report without writing; with no policy, a table of ranks to choose from.")
@json_option
@click.option(
    "--report",
    "report_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the report, as JSON, to FILE too.",
)
@force_option("OUT or the report's FILE")
@quiet_option
def command(
    source: Location,
    out: Path,
    choice: PolicyChoice | None,
    limits: Limits,
    modules: ModuleChoice,
    other: Location | None,
    directions: int | None,
    own: str | None,
    alpha: float | None,
    device: str,
    jobs: int | None,
    dry_run: bool,
    as_json: bool,
    report_file: Path | None,
    force: Force,
    quiet: bool,
) -> None:
    """Lower the rank of the adapter SOURCE and write the result to the folder OUT.

    Give exactly one of --rank, --energy, --max-error, --max-params and --max-size; the last three
    allocate ranks to the modules optimally. Errors are relative Frobenius errors of the
    update, measured on the bytes written. A PATTERN is a shell pattern for a module's
    whole name or for what follows a dot in it: q_proj, layers.0.*.
    """
    if directions and not other:
        raise click.UsageError("--directions goes with --orthogonal-to")
    if choice is None and not dry_run and not other:
        raise click.UsageError(
            "give one of --rank, --energy, --max-error, --max-params, --max-size;"
            " --dry-run shows what each rank would cost"
        )
    if choice is None and report_file:
        raise click.UsageError("--report goes with a policy")
    began = time.monotonic()
    if report_file:
        check_file(report_file, force=force)
    adapter = read(source, own, alpha=alpha)
    output = Output(out, adapter.format, force)
    if not dry_run:
        output.check([adapter])
    policy = choice.policy(adapter) if choice else None
    executor = make_executor(device, jobs)
    seen = executor if quiet else Visible(executor)
    of, taken = _source(adapter, modules, other, directions, executor)
    if policy is None and other is None:
        survey = _survey(of, policy, limits.options(device), seen)
        _show_ranks(survey, as_json=as_json, quiet=quiet)
        return
    shrunk = _shrunk(of, policy, limits, device, seen)
    report = shrunk.report("shrink", str(policy or ""), began)
    report.projected = taken
    report.arguments = command_line()
    rows = report.watch(shrunk)
    if dry_run:
        deque(rows, maxlen=0)
    else:
        output.write(shrunk.manifest, rows, report, [adapter])
    if report_file:
        with staged_file(report_file, force=force, sources=adapter.files) as place:
            report.save(place)
    conclude(report, out, dry_run=dry_run, as_json=as_json, quiet=quiet)


def _source(
    adapter: Adapter,
    modules: ModuleChoice,
    other: Location | None,
    directions: int | None,
    executor: Executor,
) -> "tuple[Source, Projected | None]":
    """Return what is to be shrunk, and what was projected out of it."""
    from lora_tools.linalg.projection import Projection  # imports numpy
    from lora_tools.rewrite.projected import cost, projected
    from lora_tools.rewrite.selection import selected
    from lora_tools.rewrite.source import source
    from lora_tools.verbs.combine import in_one_format

    of = selected(source(adapter), modules.selection(), executor)
    if other is None:
        return of, None
    _, theirs = in_one_format([adapter, read(other)], executor=executor)
    of = projected(of, theirs, Projection(directions))
    return of, cost(of, theirs, executor)


def _survey(
    of: "Source", policy: "RankPolicy | None", options: "RewriteOptions", executor: Executor
) -> "Survey":
    from lora_tools.verbs.shrink import survey  # imports numpy

    return survey(of, options, executor, expect=policy)


def _shrunk(
    of: "Source", policy: "RankPolicy | None", limits: Limits, device: str, executor: Executor
) -> "Rewrite":
    """Lower ranks or, without a policy, keep every update at the rank that it has."""
    from lora_tools.rewrite import keep  # imports numpy

    if policy is None:
        return keep(of, executor, dtype=limits.values["dtype"])
    return _survey(of, policy, limits.options(device), executor).rewrite(policy)


def _show_ranks(survey: "Survey", *, as_json: bool, quiet: bool) -> None:
    ranks = [uniform._asdict() for uniform in survey.table()]
    if as_json:
        show_json({"schema": "lora-tools/ranks/2", "ranks": ranks})
    elif not quiet:
        show(ranks_table(ranks))
        say("Choose one: lora-tools shrink SOURCE OUT --rank N")
