"""An extracted adapter in another format than PEFT's, with the errors that were measured."""

from pathlib import Path

from lora_tools.adapter import read, write
from lora_tools.architectures.layout import Dimensions
from lora_tools.errors import FormatError, some
from lora_tools.formats.base import Format
from lora_tools.model import Model
from lora_tools.verbs.convert import convert, nameless
from lora_tools.verbs.extract.plan import ExtractPlan
from lora_tools.verbs.extract.rows import ExtractReport

TOLD_APART = 1e-6
"""Errors of an extraction below this are not told apart."""


def without_names(plan: ExtractPlan, format: Format) -> frozenset[str]:
    """Return the modules of a plan that no adapter of this format can name.

    Raises `FormatError` if those are all.
    """
    places = [item.pair.place for item in plan.items if item.pair.place]
    sizes = {place.module: Dimensions(place.out, place.inp, place.stack) for place in places}
    found = frozenset(nameless(sizes, format))
    if found and found == sizes.keys():
        raise FormatError(f"{format.name}: has no names for {some(sorted(found))}").hint(
            "Extract without --to: PEFT's format takes the names of any model."
        )
    return found


def reformat(folder: Path, format: Format, report: ExtractReport, base: Model) -> None:
    """Write the adapter of a folder in another format, in its place.

    Raises `FormatError` where that would change its updates by more than the report can tell: the
    errors in it are those of the bytes written.
    """
    adapter = read(folder, base=base.config)
    plan = convert(adapter, format)
    made = plan.report("convert")
    renamed = folder / format.name
    renamed.mkdir()
    write(renamed, plan.manifest, made.watch(plan), like=adapter, format=format)
    if made.error > TOLD_APART:
        raise FormatError(
            f"{format.name}: has no place for these scales, and rounding them into the factors"
            f" would add an error of {made.error:.1e}"
        ).hint("Extract without --to, and convert the result: that reports the error that it adds.")
    for file in [entry for entry in folder.iterdir() if entry != renamed]:
        file.unlink()
    for file in renamed.iterdir():
        file.rename(folder / file.name)
    renamed.rmdir()
    written = read(folder, format.name)
    report.params, report.nbytes = written.params, plan.layout.size
    report.notes = (*report.notes, *plan.manifest.notes)
