"""lora-tools combine: add several adapters up to one."""

import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from lora_tools.adapter import read
from lora_tools.cli.console import Visible, command_line
from lora_tools.cli.options import (
    adapters_argument,
    alpha_option,
    base_option,
    dry_run_option,
    dtype_option,
    each_format,
    force_option,
    formats_option,
    jobs_option,
    json_option,
    make_executor,
    out_argument,
    quiet_option,
    rank_limit_options,
    weight_option,
)
from lora_tools.cli.publish import push_to_option
from lora_tools.cli.ranks import Limits, PolicyChoice, check_limits, policy_options
from lora_tools.cli.rewriting import conclude, file_or_folder
from lora_tools.cli.selection import ModuleChoice, selection_options
from lora_tools.errors import PolicyError
from lora_tools.files.location import Location
from lora_tools.files.ours import Force
from lora_tools.formats.registry import format_named
from lora_tools.model import open_model

if TYPE_CHECKING:
    from lora_tools.rules import ParametrisedRule
    from lora_tools.verbs.combine import Weights


class Inputs(NamedTuple):
    """What a percentage of parameters is of: all adapters together."""

    params: int


@click.command(short_help="Add several adapters up to one.")
@adapters_argument
@out_argument
@weight_option(
    "Multiply the update of an adapter by W: once for each ADAPTER, in order. A negative W takes"
    " it away.  [default: 1]"
)
@click.option("--average", is_flag=True, help="Equal weights that add up to 1.")
@click.option(
    "--ema",
    type=float,
    metavar="F",
    help="The exponential moving average of the ADAPTERs, checkpoints in order: each counts 1 - F,"
    " what was before it F.",
)
@click.option(
    "--method",
    metavar="NAME",
    default="concat",
    show_default=True,
    help="How updates are combined: concat, their sum; or a rule: ties, dare, dare-ties, magnitude,"
    " knots, tsv, iso, core-ties.",
)
@click.option(
    "--set",
    "settings",
    metavar="NAME=F",
    multiple=True,
    help="A parameter of the rule: density=0.2. Repeatable.",
)
@selection_options(numbered=True)
@click.option("--to", "target", metavar="FORMAT", help="Format to write.  [default: the first's]")
@formats_option("the ADAPTERs")
@alpha_option
@base_option(
    "Base model: what DoRA normalises; used to restore the dotted module paths that kohya"
    " flattened; its config.json says the heads and the architecture that some formats leave out."
)
@click.option("--drop", multiple=True, metavar="FEATURE", help="Leave out FEATURE. Repeatable.")
@policy_options
@rank_limit_options(", where ranks are lowered")
@dtype_option()
@jobs_option("one per core")
@push_to_option
@dry_run_option("Report without writing.")
@json_option
@force_option()
@quiet_option
def command(
    adapters: tuple[Location, ...],
    out: Path,
    weights: tuple[float, ...],
    average: bool,
    ema: float | None,
    method: str,
    settings: tuple[str, ...],
    modules: ModuleChoice,
    target: str | None,
    owns: tuple[str, ...],
    alpha: float | None,
    base: Location | None,
    drop: tuple[str, ...],
    choice: PolicyChoice | None,
    min_rank: int,
    max_rank: int | None,
    multiple_of: int,
    dtype: str | None,
    jobs: int | None,
    dry_run: bool,
    as_json: bool,
    force: Force,
    quiet: bool,
) -> None:
    """Write one adapter to OUT whose update is the weighted sum of those of the ADAPTERs.

    The sum is exact: factors stand side by side, at the rank that their sum has. Ranks, alphas,
    dtypes, key namings and formats may differ, and a module that an adapter lacks counts as zero
    there. OUT is a folder, or a file with the ending .safetensors (.gguf for gguf) where the format
    has no configuration beside its tensors.

    With one of --rank, --energy, --max-error, --max-params and --max-size, the sum is truncated as
    `lora-tools shrink` would: the error is that of the bytes written, against the exact sum. The
    report says what each adapter adds to each module, and where adapters fight.

    A --method other than concat is no sum. Its result is truncated in the same way, and the error
    is against that result. knots, tsv, iso and core-ties work on small matrices; ties, dare,
    dare-ties and magnitude see every element of a module's dense updates, a few rows at a time.
    Their result has full rank. With --rank, or with --max-rank beside another policy, it is
    sketched, and the report has a certified bound of the error, as that of `lora-tools extract`.

    DoRA is refused, unless --base BASE is given and a rank: then what is added up is what PEFT
    would add to BASE, and the result is a plain LoRA.
    """
    from lora_tools.verbs.combine import in_one_format, sum_of  # imports numpy

    began = time.monotonic()
    check_limits(choice, min_rank, max_rank, multiple_of)
    weighted = _weights(len(adapters), weights, ema, modules, average=average)
    rule = _rule(method, settings)
    model = open_model(base) if base else None
    config = model.config if model else None
    found = [
        read(path, own, base=config, alpha=alpha)
        for path, own in zip(adapters, each_format(owns, len(adapters)), strict=True)
    ]
    format = format_named(target) if target else found[0].format
    output = file_or_folder(out, format, force)
    if not dry_run:
        output.check(found)
    executor = make_executor("cpu", jobs)
    sources = in_one_format(found, format, executor, drop=drop, paths=model or ())
    policy = choice.policy(Inputs(sum(each.params for each in found))) if choice else None
    limits = {"min_rank": min_rank, "max_rank": max_rank, "multiple_of": multiple_of}
    options = Limits({**limits, "dtype": dtype, "scale": "keep"}).options("cpu")
    plan = sum_of(
        sources,
        weighted,
        policy,
        options,
        executor if quiet else Visible(executor),
        selection=modules.selection(weighted=False),
        rule=rule,
        base=model,
    )
    made = plan.report(began)
    made.report.arguments = command_line()
    rows = made.report.watch(plan)
    if dry_run:
        deque(rows, maxlen=0)
    else:
        output.write(plan.rewrite.manifest, rows, made, found, plan.extras)
    conclude(made, out, dry_run=dry_run, as_json=as_json, quiet=quiet)


def _weights(
    count: int,
    weights: tuple[float, ...],
    ema: float | None,
    modules: ModuleChoice,
    *,
    average: bool,
) -> "Weights":
    """Return the weights that were asked for, in one way or another."""
    from lora_tools.verbs.combine import Weights, moving_average
    from lora_tools.verbs.combine import average as equal

    if (average + bool(weights) + (ema is not None)) > 1:
        raise click.UsageError("give only one of --weight, --average and --ema")
    if weights and len(weights) != count:
        raise PolicyError(f"{len(weights)} --weight for {count} adapters")
    if average:
        weights = equal(count)
    elif ema is not None:
        weights = moving_average(ema, count)
    return Weights(weights or (1.0,) * count, modules.module_weights())


def _rule(method: str, settings: tuple[str, ...]) -> "ParametrisedRule | None":
    """Return the rule that was asked for with its parameters; None for the sum."""
    from lora_tools.rules import parametrised, rule_named

    values: dict[str, float] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            values[name] = float(value)
        except ValueError:
            raise click.UsageError(f"{setting!r} is not NAME=F with a number F") from None
    if method == "concat":
        if values:
            raise click.UsageError("--set goes with a --method that is a rule")
        return None
    return parametrised(rule_named(method), values)
