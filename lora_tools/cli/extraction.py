"""The options that say what an extraction takes and how sure it is, gathered into one value."""

from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from lora_tools.cli.options import (
    Command,
    dtype_option,
    pattern_options,
    rank_limit_options,
    together,
    vllm_option,
)

if TYPE_CHECKING:
    from lora_tools.verbs.extract import ExtractOptions

SELECTION = (
    pattern_options("Extract matching modules only.", "Leave matching modules out."),
    click.option(
        "--embeddings",
        type=click.Choice(["lora", "full", "skip"]),
        default="lora",
        show_default=True,
        help="Store embeddings and lm_head that changed as low-rank updates, whole"
        " (modules_to_save), or not at all. A vocabulary that grew needs full or skip.",
    ),
    click.option(
        "--small",
        type=click.Choice(["full", "skip"]),
        default="skip",
        show_default=True,
        help="Norms, biases and other small tensors that changed: stored whole, or listed.",
    ),
    rank_limit_options("; not with --rank", most=128, removing=False),
    dtype_option("Dtype of the factors written; keep: that of TUNED."),
    vllm_option,
    click.option(
        "--alpha",
        type=float,
        metavar="N",
        help="Write this alpha, for loaders that assume one, and fold the scale into the factors."
        "  [default: the rank]",
    ),
    click.option(
        "--base-model",
        metavar="ID",
        help="Name of the base model in the adapter's configuration: ORG/NAME on the Hub, say.",
    ),
)
METHOD = (
    click.option(
        "--tolerance",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        metavar="F",
        default=1e-3,
        show_default=True,
        help="How far an error may lie above the certified bound, relative to the bound.",
    ),
    click.option(
        "--exact", is_flag=True, help="Decompose in full at once: deterministic, and much slower."
    ),
    click.option(
        "--skip-bad",
        is_flag=True,
        help="Leave out tensors that hold NaN or Inf, and list them.",
    ),
)
NAMES = (
    "include",
    "exclude",
    "embeddings",
    "small",
    "min_rank",
    "max_rank",
    "multiple_of",
    "dtype",
    "alpha",
    "skip_bad",
    "base_model",
)


def extraction_options(function: Command) -> Command:
    """Add the options; pass them on as ``wanted``, which makes the library's from a device."""

    @wraps(function)
    def command(*arguments: Any, **options: Any) -> Any:
        values = {name: options.pop(name) for name in NAMES}
        tolerance, exact = options.pop("tolerance"), options.pop("exact")
        runtime = options.pop("runtime")

        def wanted(device: str) -> "ExtractOptions":
            from lora_tools.verbs.extract import ExtractOptions, Precision  # imports numpy

            return ExtractOptions(
                **values,
                precision=Precision(tolerance=tolerance, exact=exact),
                runtime=runtime,
                device=device,
            )

        return function(*arguments, wanted=wanted, **options)

    return together(*SELECTION, *METHOD)(command)
