"""lora-tools diff: compare two adapters."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from lora_tools.adapter import Adapter, read, write
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
from lora_tools.errors import LoraToolsError
from lora_tools.files.location import Location
from lora_tools.formats.registry import format_named
from lora_tools.model import open_model

COMMON = "diffusers"
"""The format in which every module of a diffusion model has one name, fused in one tool or not."""


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

    options = DiffOptions(tolerance, include, exclude, device)
    with _named_alike(first, second) as (one, other, note):
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


@contextmanager
def _named_alike(a: Adapter, b: Adapter) -> Iterator[tuple[Adapter, Adapter, str]]:
    """Yield both as diffusers names them, with a note, where their own names are not the same.

    As they are, where they pair or have no such names.
    """
    from lora_tools.verbs.diff.pairs import pair

    if all(job.a and job.b for job in pair(a, b, "cpu")[0]):
        yield a, b, ""
        return
    with TemporaryDirectory() as folder:
        try:
            named = [_converted(each, Path(folder) / name) for each, name in ((a, "a"), (b, "b"))]
        except LoraToolsError:  # what cannot be named so differs, and is shown as it is
            yield a, b, ""
            return
        note = f"Compared as {COMMON} names and lays out their modules."
        yield named[0], named[1], note


def _converted(adapter: Adapter, folder: Path) -> Adapter:
    from lora_tools.verbs.convert import convert

    format = format_named(COMMON)
    if adapter.format.name == COMMON:
        return adapter
    folder.mkdir()
    plan = convert(adapter, format)
    changes = plan.report("convert").watch(plan)
    write(folder, plan.manifest, changes, like=adapter, format=format)
    return read(folder, COMMON, base=adapter.manifest.base)
