"""Two adapters of different tools under the names of one of them, so that their modules pair."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from lora_tools.adapter import Adapter, read, write
from lora_tools.errors import LoraToolsError
from lora_tools.formats.registry import format_named
from lora_tools.verbs.diff.pairs import pair

COMMON = "diffusers"
"""The format in which every module of a diffusion model has one name, fused in one tool or not."""


@contextmanager
def named_alike(a: Adapter, b: Adapter) -> Iterator[tuple[Adapter, Adapter, str]]:
    """Yield both as diffusers names them, with a note, where their own names are not the same.

    As they are, where they pair or have no such names.
    """
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
    from lora_tools.verbs.convert import convert  # adapters of one tool need none

    format = format_named(COMMON)
    if adapter.format.name == COMMON:
        return adapter
    folder.mkdir()
    plan = convert(adapter, format)
    changes = plan.report("convert").watch(plan)
    write(folder, plan.manifest, changes, like=adapter, format=format)
    return read(folder, COMMON, base=adapter.manifest.base)
