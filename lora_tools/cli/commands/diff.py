"""lora-tools diff: compare two adapters."""

from dataclasses import replace

import click

from lora_tools.adapter import read
from lora_tools.cli.console import Visible, show, show_json
from lora_tools.cli.options import (
    alpha_option,
    base_option,
    each_format,
    executor_options,
    formats_option,
    full_option,
    json_option,
    make_executor,
    pattern_options,
    quiet_option,
)
from lora_tools.cli.question import Question
from lora_tools.cli.types import LocalOrHub
from lora_tools.files.location import Location
from lora_tools.model import open_model


@click.command(cls=Question, short_help="Compare two adapters.")
@click.argument("a", type=LocalOrHub())
@click.argument("b", type=LocalOrHub())
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=1e-6,
    show_default=True,
    metavar="F",
    help="Relative difference up to which a module or tensor is the same; 0: equal numbers.",
)
@base_option("Base model of both, whose config.json says the heads that gguf files leave out.")
@pattern_options(
    "Compare matching modules and tensors only.", "Leave matching modules and tensors out."
)
@formats_option("A and B")
@alpha_option
@full_option("One line per module: no layers in one line.")
@executor_options
@json_option
@quiet_option
def command(
    a: Location,
    b: Location,
    tolerance: float,
    base: Location | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    owns: tuple[str, ...],
    alpha: float | None,
    full: bool,
    device: str,
    jobs: int | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Compare the adapters A and B: folders or files, of any formats.

    Compared are the updates ΔW, with their scales, whatever their factors are: for each module
    and in total ‖ΔW_A − ΔW_B‖/‖ΔW_A‖, the cosine, and the principal angles between the column
    and row spaces (smallest and largest, in degrees); and every other tensor. A PATTERN is a
    shell pattern for a whole name, or for what follows a dot in it.

    Exit status: 0 the same, 1 different, 2 an error.
    """
    executor = make_executor(device, jobs)
    config = open_model(base).config if base else None
    pairs = zip((a, b), each_format(owns, 2), strict=True)
    first, second = (read(*pair, base=config, alpha=alpha) for pair in pairs)
    from lora_tools.verbs.diff import DiffOptions, diff, text  # imports numpy
    from lora_tools.verbs.diff.common_names import named_alike

    options = DiffOptions(tolerance, include, exclude, device)
    with named_alike(first, second) as (one, other, note):
        found = diff(one, other, options, executor if quiet else Visible(executor))
    if note:
        found = replace(
            found,
            sources=(str(first.path), str(second.path)),
            formats=(first.format.name, second.format.name),
            notes=(note, *found.notes),
        )
    if as_json:
        show_json(found.to_dict())
    elif not quiet:
        show(text(found, full=full))
    return 0 if found.same else 1
