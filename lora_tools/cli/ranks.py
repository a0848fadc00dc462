"""The options that say which ranks a result may have, gathered into the values they mean."""

from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol

import click

from lora_tools.cli.options import (
    Command,
    dtype_option,
    pattern_options,
    rank_limit_options,
    together,
    vllm_option,
)
from lora_tools.cli.types import POSITIVE, ByteSize, CountOrShare, PatternRank

if TYPE_CHECKING:
    from lora_tools.linalg.rank import RankPolicy
    from lora_tools.rewrite import RewriteOptions
    from lora_tools.runtimes import Runtime


class Sized(Protocol):
    """Whatever a percentage of parameters can be of."""

    @property
    def params(self) -> int:
        """Number of elements of all its tensors."""
        ...


@dataclass(frozen=True, slots=True)
class PolicyChoice:
    """The one policy that was asked for, before the input that it is for is known."""

    name: str
    value: Any
    per_module: bool

    def policy(self, source: Sized) -> "RankPolicy":
        """Return the policy for an adapter or a model: a percentage is of its own parameters."""
        from lora_tools.linalg.rank import Energy, Fixed, MaxBytes, MaxError, MaxParams

        match self.name:
            case "rank":
                return Fixed(self.value)
            case "energy":
                return Energy(self.value)
            case "max_error":
                return MaxError(self.value, per_module=self.per_module)
            case "max_params" if isinstance(self.value, float):
                return MaxParams(int(self.value * source.params))
            case "max_params":
                return MaxParams(self.value)
            case _:
                return MaxBytes(self.value)


@dataclass(frozen=True, slots=True)
class Limits:
    """How ranks are limited and factors written."""

    values: dict[str, Any]
    runtime: "Runtime | None" = None

    def options(self, device: str) -> "RewriteOptions":
        """Return the options of the library; imports torch."""
        from lora_tools.rewrite import RewriteOptions

        return RewriteOptions(**self.values, runtime=self.runtime, device=device)


POLICIES = (
    click.option("--rank", type=POSITIVE, metavar="N", help="Each module keeps at most rank N."),
    click.option(
        "--energy",
        type=float,
        metavar="F",
        help="Each module keeps the smallest rank whose singular values hold a share F of ||ΔW||².",
    ),
    click.option(
        "--max-error",
        type=float,
        metavar="F",
        help="Fewest parameters with a relative error of at most F for the whole adapter.",
    ),
    click.option(
        "--max-params",
        type=CountOrShare(),
        metavar="N|P%",
        help="Least error with at most N parameters, or P percent of the input's.",
    ),
    click.option(
        "--max-size",
        type=ByteSize(),
        metavar="SIZE",
        help="Least error with a file of at most SIZE, header included: 20MB, 12MiB.",
    ),
)
NAMES = ("rank", "energy", "max_error", "max_params", "max_size")
LIMITS = (
    rank_limit_options(),
    click.option(
        "--module-rank",
        "module_ranks",
        type=PatternRank(),
        metavar="PATTERN=N",
        multiple=True,
        help="Matching modules keep at most N, whatever the policy. Repeatable, the last match "
        "wins; but what --include and --exclude leave alone keeps its rank.",
    ),
    pattern_options(
        "Change the rank of matching modules only.", "Leave matching modules at their rank."
    ),
    dtype_option(),
    click.option(
        "--scale",
        type=click.Choice(["fold", "keep"]),
        default="fold",
        show_default=True,
        help="Fold the scale into the factors (alpha = rank), or leave it to alpha.",
    ),
    vllm_option,
)


def policy_options(function: Command) -> Command:
    """Add the options of which exactly one is a policy; pass them on as ``choice``."""

    @wraps(function)
    def command(*arguments: Any, per_module: bool, **options: Any) -> Any:
        given = {name: value for name in NAMES if (value := options.pop(name)) is not None}
        if len(given) > 1:
            raise click.UsageError(f"give only one of {' and '.join(map(_flag, given))}")
        if per_module and "max_error" not in given:
            raise click.UsageError("--per-module goes with --max-error")
        choice = next((PolicyChoice(*item, per_module) for item in given.items()), None)
        return function(*arguments, choice=choice, **options)

    flag = click.option(
        "--per-module", is_flag=True, help="Make --max-error a bound on each module."
    )
    return together(*POLICIES, flag)(command)


def limit_options(function: Command) -> Command:
    """Add the options that limit ranks and shape what is written; pass them on as ``limits``."""
    names = (
        "min_rank",
        "max_rank",
        "multiple_of",
        "module_ranks",
        "include",
        "exclude",
        "dtype",
        "scale",
    )

    @wraps(function)
    def command(*arguments: Any, runtime: "Runtime | None", **options: Any) -> Any:
        values = {name: options.pop(name) for name in names}
        return function(*arguments, limits=Limits(values, runtime), **options)

    return together(*LIMITS)(command)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def check_limits(
    choice: PolicyChoice | None, min_rank: int, max_rank: int | None, multiple_of: int
) -> None:
    """Raise a usage error for limits on ranks where no rank is lowered."""
    if choice is None and (min_rank, max_rank, multiple_of) != (1, None, 1):
        raise click.UsageError(
            "--min-rank, --max-rank and --multiple-of go with one of --rank, --energy, --max-error,"
            " --max-params, --max-size"
        )
