"""Options that commands share: values, and functions of the sentences that are a command's own."""

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_tools.cli.types import POSITIVE, DeviceName, LocalOrHub, PartOf
from lora_tools.errors import DeviceError, PolicyError

if TYPE_CHECKING:
    from lora_tools.executors import Executor
    from lora_tools.files.parts import Part
    from lora_tools.runtimes import Runtime

Command = Callable[..., Any]
Option = Callable[[Command], Command]

DTYPES = {"keep": None, "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def together(*options: Option) -> Option:
    """Return what adds options in the order given, as decorators in lines would."""

    def add(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def _runtime(context: click.Context, option: click.Parameter, name: str | None) -> "Runtime | None":
    if name is None:
        return None
    from lora_tools.runtimes import VLLM  # with the rules of all runtimes, which few ask for

    return VLLM


source_argument = click.argument("source", type=LocalOrHub())
base_argument = click.argument("base", type=LocalOrHub())
adapters_argument = click.argument("adapters", type=LocalOrHub(), nargs=-1, required=True)
out_argument = click.argument("out", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
alpha_option = click.option(
    "--alpha",
    type=float,
    metavar="N",
    help="Alpha of an adapter whose files do not contain it.",
)
quiet_option = click.option(
    "--quiet", is_flag=True, help="Print nothing but errors and what --json asks for."
)
evict_option = click.option(
    "--evict",
    is_flag=True,
    help="Remove each file fetched from the Hub after its last use: a large model passes through"
    " a small disk. What was in the cache before stays.",
)
vllm_option = click.option(
    "--for",
    "runtime",
    type=click.Choice(["vllm"]),
    callback=_runtime,
    help="One rank that vLLM allows, zero-padded, without patterns; refuse what it refuses.",
)


def force_option(what: str = "OUT") -> Option:
    """Return ``--force`` and ``--force-any``; what they replace is the command's to say."""
    return together(
        click.option(
            "--force",
            "force",
            flag_value=True,
            default=False,
            type=click.UNPROCESSED,
            help=f"Replace {what} where lora-tools has written it.",
        ),
        click.option(
            "--force-any",
            "force",
            flag_value="any",
            type=click.UNPROCESSED,
            help=f"Replace {what} whatever is there.",
        ),
    )


def dry_run_option(help: str) -> Option:
    """Return ``--dry-run``; what it shows instead is the command's to say."""
    return click.option("--dry-run", is_flag=True, help=help)


def full_option(help: str) -> Option:
    """Return ``--full``; what gets lines of its own is the command's to say."""
    return click.option("--full", is_flag=True, help=help)


def base_option(help: str) -> Option:
    """Return ``--base``; what the base model is for is the command's to say."""
    return click.option("--base", type=LocalOrHub(), help=help)


def weight_option(help: str) -> Option:
    """Return ``--weight``, passed on as ``weights``: one for each adapter."""
    return click.option("--weight", "weights", type=float, multiple=True, metavar="W", help=help)


def untie_option(help: str) -> Option:
    """Return ``--untie``; whether it is to be done or was done is the command's to say."""
    return click.option("--untie", is_flag=True, help=help)


def allow_missing_option(help: str) -> Option:
    """Return ``--allow-missing``; whether what is left out is listed is the command's to say."""
    return click.option("--allow-missing", is_flag=True, help=help)


def dtype_option(help: str = "Dtype of the factors written.") -> Option:
    """Return ``--dtype``, passed on as safetensors names it; None keeps what is there."""
    return click.option(
        "--dtype",
        type=click.Choice(list(DTYPES)),
        default="keep",
        show_default=True,
        callback=lambda context, option, name: DTYPES[name],
        help=help,
    )


def format_option(of: str = "SOURCE") -> Option:
    """Return ``--format``, passed on as ``own``: the format of the one adapter that is read."""
    help = f"Read {of} in this FORMAT instead of detecting it."
    return click.option("--format", "own", metavar="FORMAT", help=help)


def formats_option(of: str) -> Option:
    """Return ``--format`` of several adapters, passed on as ``owns``; see `each_format`."""
    return click.option(
        "--format",
        "owns",
        metavar="FORMAT",
        multiple=True,
        help=f"Read {of} in this FORMAT instead of detecting it: once for all of them, or once for"
        " each, in order; auto detects.",
    )


def each_format(owns: tuple[str, ...], count: int) -> list[str | None]:
    """Return the format of each of several adapters; None: it is recognised."""
    if len(owns) not in (0, 1, count):
        raise PolicyError(f"{len(owns)} --format for {count} adapters")
    given = owns if len(owns) == count else (owns or ("auto",)) * count
    return [None if own == "auto" else own for own in given]


def pattern_options(include: str, exclude: str) -> Option:
    """Return ``--include`` and ``--exclude``, whose sentences are the command's."""
    return together(
        click.option("--include", metavar="PATTERN", multiple=True, help=f"{include} Repeatable."),
        click.option("--exclude", metavar="PATTERN", multiple=True, help=f"{exclude} Repeatable."),
    )


def rank_limit_options(
    remark: str = "", most: int | None = None, *, removing: bool = True
) -> Option:
    """Return ``--min-rank``, ``--max-rank`` and ``--multiple-of``; each help ends in the remark.

    ``removing``: whether 0 is a rank, so that a policy may remove modules.
    """

    def limit(name: str, default: int | None, help: str, least: int = 1) -> Option:
        return click.option(
            name,
            type=click.IntRange(min=least),
            metavar="N",
            default=default,
            show_default=True,
            help=f"{help}{remark}.",
        )

    return together(
        limit(
            "--min-rank",
            1,
            "No module goes below rank N" + ("; at 0 a policy may remove modules" * removing),
            least=0 if removing else 1,
        ),
        limit("--max-rank", most, "No module goes above rank N"),
        limit("--multiple-of", 1, "Ranks are multiples of N"),
    )


def jobs_option(default: str) -> Option:
    """Return ``--jobs``, whose default is said in words."""
    return click.option(
        "--jobs",
        type=POSITIVE,
        metavar="N",
        help=f"Modules computed at the same time.  [default: {default}]",
    )


device_option = click.option(
    "--device",
    type=DeviceName(),
    default="cpu",
    show_default=True,
    help="cpu, cuda, cuda:N or mps.",
)
executor_options = together(device_option, jobs_option("one per core; 1 on a GPU"))


def part_option(function: Command) -> Command:
    """Add ``--part`` to a command that writes a folder ``out``; pass it on as ``part``.

    A part publishes nothing, so that options about the output do not go with it.
    """

    @wraps(function)
    def command(part: "Part | None", **options: Any) -> Any:
        given = [name for name in ("dry_run", "force", "no_resume") if options.get(name)]
        if part and given:
            raise click.UsageError(f"--part and --{given[0].replace('_', '-')} do not go together")
        return function(part=part, **options)

    option = click.option(
        "--part",
        type=PartOf(),
        metavar="I/N",
        help="Do only the I-th of N shares of the work, and keep it beside OUT, for the same"
        " command without --part to take over: on several machines with one file system.",
    )
    return option(command)


def make_executor(device: str, jobs: int | None) -> "Executor":
    """Return the executor for a device that is there, or raise `DeviceError`."""
    from lora_tools.executors import Serial, Threads

    kind = device.partition(":")[0]
    if kind != "cpu":
        _check_device(device)
    workers = jobs or (len(os.sched_getaffinity(0)) if kind == "cpu" else 1)
    return Threads(workers, patient=False) if workers > 1 else Serial()


def _check_device(device: str) -> None:
    import torch  # the host computes without it

    kind, _, number = device.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else int(torch.backends.mps.is_available())
    if int(number or 0) >= count:
        raise DeviceError(f"{device}: no such device here").hint(
            "Use --device cpu" + (f", or cuda:0 to cuda:{count - 1}." if count else ".")
        )
