"""Writing an adapter: every tensor at its place, whatever else its folder holds beside it."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_tools.adapter.reading import Adapter
from lora_tools.files.disk import write_text
from lora_tools.files.layout import Layout
from lora_tools.files.sides import carry
from lora_tools.files.stamp import blank, stamp
from lora_tools.files.writer import TensorWriter
from lora_tools.formats.base import Format
from lora_tools.formats.manifest import Manifest
from lora_tools.text import config_text

if TYPE_CHECKING:
    from lora_tools.update import Array, Update


def write(
    folder: Path,
    manifest: Manifest,
    updates: Iterable[tuple[str, "Update"]],
    *,
    like: Adapter,
    format: Format | None = None,
    name: str | None = None,
    beside: Mapping[str, "Array"] | None = None,
) -> None:
    """Fill an empty folder with a complete adapter, in ``format`` or in that of ``like``.

    ``manifest`` fixes the layout of the file before the first update is computed; ``updates``
    may come in any order. Other tensors are those of ``beside``, if given, and else copied from
    ``like``, as side files are. With ``name``, nothing but the file of that name is written. Use
    `staged` for a folder that appears only when it is whole.
    """
    format = format or like.format
    manifest = replace(manifest, metadata=blank(manifest.metadata))
    plan = laid_out(format, manifest)
    modules = {module.name: module for module in manifest.modules}
    target = folder / (name or tensor_name(format, like))
    with TensorWriter(target, plan) as file:
        others = like.tensors.arrays if beside is None else beside
        for extra in manifest.extras:
            file[extra.key] = others[extra.stored or extra.key]
        for module, update in updates:
            for key, tensor in format.tensors(modules[module], update).items():
                file[key] = tensor
    stamp(target, manifest.specs, manifest.metadata)
    if format.config_file:
        write_text(folder / format.config_file, config_text(manifest.config))
    for side in () if name else like.side_files().carried:
        if not (folder / side.name).exists():
            carry(side, folder / side.name)


def tensor_name(format: Format, like: Adapter) -> str:
    """Return what a format calls its file: its own name for it, or else that of the source."""
    own = format.files[0] if format.files else ""
    return own or Path(like.tensors.path.name).with_suffix(format.container.suffix).name


def laid_out(format: Format, manifest: Manifest) -> Layout:
    """Return where every tensor will be in the file that a format writes."""
    return format.container.layout(manifest.specs, manifest.metadata)
