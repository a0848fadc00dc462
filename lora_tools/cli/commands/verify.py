"""lora-tools verify: prove that a merged model is its base and its adapters."""

import click

from lora_tools.adapter import read
from lora_tools.cli.console import Visible, show, show_json
from lora_tools.cli.options import (
    adapters_argument,
    allow_missing_option,
    alpha_option,
    base_argument,
    each_format,
    executor_options,
    formats_option,
    json_option,
    make_executor,
    quiet_option,
    untie_option,
    weight_option,
)
from lora_tools.cli.selection import ModuleChoice, selection_options
from lora_tools.cli.types import LocalOrHub
from lora_tools.errors import PolicyError
from lora_tools.files.location import Location
from lora_tools.files.opening import open_partly
from lora_tools.model import open_model


@click.command(short_help="Prove that a merged model is its base and its adapters.")
@click.argument("merged", type=LocalOrHub())
@base_argument
@adapters_argument
@weight_option("The weight that each ADAPTER was merged with, in order.  [default: 1]")
@selection_options(numbered=True)
@formats_option("the ADAPTERs")
@untie_option("The tied embeddings of BASE were given a head, though both are still one.")
@allow_missing_option("Leave out modules that match no weight of BASE.")
@alpha_option
@executor_options
@json_option
@quiet_option
def command(
    merged: Location,
    base: Location,
    adapters: tuple[Location, ...],
    weights: tuple[float, ...],
    modules: ModuleChoice,
    owns: tuple[str, ...],
    untie: bool,
    allow_missing: bool,
    alpha: float | None,
    device: str,
    jobs: int | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Compare the model MERGED, tensor by tensor, with BASE and the ADAPTERs in float64.

    Each tensor is exact (the rounded sum), rounding (within one step of it), copied, or a failure:
    not merged, wrong strength, different, untouched changed, missing. Exit status 0 if none fails,
    else 1. Whoever merged: PEFT's order of rounding is recognised.
    """
    if weights and len(weights) != len(adapters):
        raise PolicyError(f"{len(weights)} --weight for {len(adapters)} adapters")
    model = open_model(base)
    formats = zip(adapters, each_format(owns, len(adapters)), strict=True)
    found = [read(path, own, base=model.config, alpha=alpha) for path, own in formats]
    result, missing = open_partly(merged)
    executor = make_executor(device, jobs)
    from lora_tools.verbs.verify import (
        MergeOptions,
        WeightedAdapter,
        decoded_dtype,
        plan,
        verify,
    )  # imports numpy

    weighted = [
        WeightedAdapter(each, w)
        for each, w in zip(found, weights or [1.0] * len(found), strict=True)
    ]
    dtype = decoded_dtype(result, model)
    options = MergeOptions(dtype, untie, allow_missing, modules.selection())
    merge_plan = plan(model, weighted, options)
    proof = verify(result, merge_plan, executor if quiet else Visible(executor), missing)
    if as_json:
        show_json(proof.to_json())
    elif not quiet:
        show(proof.to_text())
    return 0 if proof.passed else 1
