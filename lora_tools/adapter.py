"""Adapters: read lazily from files, written atomically to folders."""

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_tools.errors import (
    CheckpointError,
    FormatError,
    LoraToolsError,
    UnsupportedError,
    some,
)
from lora_tools.formats.base import Format, Manifest, Module
from lora_tools.formats.comfyui import ComfyUI
from lora_tools.formats.diffusers import Diffusers
from lora_tools.formats.kohya import Kohya
from lora_tools.formats.mlx import MLX
from lora_tools.formats.peft import Peft
from lora_tools.formats.xlabs import XLabs
from lora_tools.storage.checkpoint import Checkpoint
from lora_tools.storage.header import Spec
from lora_tools.storage.layout import layout
from lora_tools.storage.opening import INDEX, PICKLES, open_checkpoint
from lora_tools.storage.writer import TensorWriter

if TYPE_CHECKING:
    from lora_tools.update import Update

PEFT = Peft()
"""What new adapters are written as: every consumer reads it."""
FORMATS: tuple[Format, ...] = (PEFT, Kohya(), Diffusers(), ComfyUI(), MLX(), XLabs())
# Spellings that say too little for anyone to use the tensors without the code that made them.
STRANGERS = (
    (
        re.compile(r":(up|down)$"),
        "lora-diffusion numbers its pairs in the order of the model's layers: which weight a pair"
        " belongs to is not in the file",
    ),
    (
        re.compile(r"^#\d+$"),
        "the file is a list of tensors without names: which weight each belongs to is not in it",
    ),
    (
        re.compile(r"^w_[ab]_\d+$"),
        "numbered pairs of a script's own, as LoRAs of segment-anything have them: neither the"
        " weight that a pair belongs to nor its scale is in the file",
    ),
)

PLUGINS = "lora_tools.formats"
"""The group of entry points under which other packages offer formats."""

REPORT = "lora_tools_report.json"
README = "README.md"
WEIGHTS = (".safetensors", ".gguf", ".npz", *PICKLES)


class SideFiles(NamedTuple):
    """The other files of an adapter's folder: those that go along, and why others do not."""

    carried: tuple[Path, ...]
    left_out: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Adapter(Mapping[str, "Update"]):
    """The updates of an adapter by module name, each read when it is asked for."""

    path: Path
    """What was asked for: a folder or a file."""
    format: Format
    manifest: Manifest
    tensors: Checkpoint

    def __getitem__(self, name: str) -> "Update":
        return self.format.update(self.module(name), self.tensors)

    def __contains__(self, name: object) -> bool:
        return any(module.name == name for module in self.manifest.modules)  # reads no tensor

    def __iter__(self) -> Iterator[str]:
        return (module.name for module in self.manifest.modules)

    def __len__(self) -> int:
        return len(self.manifest.modules)

    def module(self, name: str) -> Module:
        """Return the description of a module."""
        for module in self.manifest.modules:
            if module.name == name:
                return module
        raise KeyError(name)

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration as it was read."""
        return self.manifest.config

    @property
    def base_model(self) -> str | None:
        """Name or path of the base model, if the adapter says."""
        return self.manifest.base_model

    @property
    def params(self) -> int:
        """Number of elements of all its tensors."""
        return sum(spec.numel for spec in self.manifest.specs.values())

    @property
    def nbytes(self) -> int:
        """Size of its tensors' files on disk."""
        return self.tensors.nbytes

    def side_files(self) -> SideFiles:
        """Return what else lies in its folder; nothing if a single file was asked for."""
        if not self.path.is_dir():
            return SideFiles((), {})
        ours = {self.tensors.path.name, self.format.config_file, REPORT, README}
        carried, left_out = [], {}
        for file in sorted(self.path.iterdir()):
            if file.name in ours:
                continue
            if file.is_dir():
                left_out[file.name] = "a folder"
            elif not file.is_file():
                left_out[file.name] = "not a file"
            elif file.suffix in WEIGHTS:
                left_out[file.name] = "other weights or training state"
            elif file.name.startswith("."):
                left_out[file.name] = "hidden"
            else:
                carried.append(file)
        return SideFiles(tuple(carried), left_out)


def read(path: str | Path, format: str | None = None, *, strict: bool = True) -> Adapter:
    """Read an adapter's header and configuration; no tensor is read before it is used.

    ``path`` is a folder or a file; ``format`` is the name of the format, where it is not to be
    recognised. An adapter whose tensors contradict its configuration is read only if not
    ``strict``, to be looked at: its manifest lists the problems.

    Raises `CheckpointError` if the file is missing or damaged, `FormatError` if the adapter
    contradicts itself or is in no known format, and `UnsupportedError` if it is not a sum of
    matrices.
    """
    path = path if isinstance(path, Path) else Path(path)  # which may be one into the Hub
    file = _tensor_file(path)
    tensors = open_checkpoint(file)
    config = _config(file.parent)
    spelling = format_named(format) if format else _detected(path, tensors.specs, config)
    try:
        manifest = spelling.read(tensors.specs, config, tensors.metadata, tensors.scalars)
    except LoraToolsError as error:
        raise _located(error, path) from error
    if strict and manifest.problems:
        raise _contradiction(path, manifest.problems)
    return Adapter(path, spelling, manifest, tensors)


def format_named(name: str) -> Format:
    """Return the format of a name; `FormatError` if there is none."""
    for format in (*FORMATS, *plugins()):
        if format.name == name:
            return format
    known = _names((*FORMATS, *plugins()))
    raise FormatError(f"there is no format {name}").hint(f"Known formats: {known}.")


@cache
def plugins() -> tuple[Format, ...]:
    """Return the formats of other packages: instances, or classes without arguments.

    They are looked for only where ours do not do.
    """
    from importlib.metadata import entry_points  # takes as long as a small command

    loaded = (entry.load() for entry in entry_points(group=PLUGINS))
    return tuple(format() if isinstance(format, type) else format for format in loaded)


def _detected(path: Path, specs: Mapping[str, Spec], config: Mapping[str, Any] | None) -> Format:
    """Return the one format that recognises an adapter, by its tensors rather than its folder."""
    claims = [format for format in FORMATS if format.detect(specs, config)]
    claims = claims or [format for format in plugins() if format.detect(specs, config)]
    if len(claims) > 1:  # the configuration may be that of a neighbour
        claims = [format for format in claims if format.detect(specs, None)] or claims
    if len(claims) == 1:
        return claims[0]
    if claims:
        raise FormatError(f"{path}: could be in each of these formats: {_names(claims)}").hint(
            "Say which: --format NAME."
        )
    if reason := _known_stranger(specs):
        raise UnsupportedError(f"{path}: {reason}")
    raise FormatError(
        f"{path}: in no known adapter format; its tensors are named {some(specs)}"
    ).hint(f"Known formats: {_names((*FORMATS, *plugins()))}.")


def _known_stranger(specs: Mapping[str, Spec]) -> str | None:
    return next((why for form, why in STRANGERS if any(map(form.search, specs))), None)


def _names(formats: Iterable[Format]) -> str:
    return ", ".join(format.name for format in formats)


def write(
    folder: Path,
    manifest: Manifest,
    updates: Iterable[tuple[str, "Update"]],
    *,
    like: Adapter,
    format: Format | None = None,
    name: str | None = None,
) -> None:
    """Fill an empty folder with a complete adapter, in ``format`` or in that of ``like``.

    ``manifest`` fixes the layout of the file before the first update is computed; ``updates``
    may come in any order. Other tensors and side files are copied from ``like``; with ``name``,
    nothing but the file of that name is written. Use `staged` for a folder that appears only when
    it is whole.
    """
    format = format or like.format
    plan = layout(manifest.specs, manifest.metadata)
    modules = {module.name: module for module in manifest.modules}
    with TensorWriter(folder / (name or tensor_name(format, like)), plan) as file:
        for extra in manifest.extras:
            file[extra.key] = like.tensors.arrays[extra.key]
        for module, update in updates:
            for key, tensor in format.tensors(modules[module], update).items():
                file[key] = tensor
    if format.config_file:
        text = json.dumps(manifest.config, indent=2, ensure_ascii=False)
        (folder / format.config_file).write_text(text, encoding="utf-8")
    for side in () if name else like.side_files().carried:
        if not (folder / side.name).exists():
            shutil.copyfile(side, folder / side.name)


def tensor_name(format: Format, like: Adapter) -> str:
    """Return what a format calls its file: its own name for it, or else that of the source."""
    own = format.files[0] if format.files else ""
    return own or like.tensors.path.with_suffix(".safetensors").name


def _tensor_file(path: Path) -> Path:
    if not path.is_dir():
        if not path.exists():
            raise CheckpointError(f"{path}: no such file or folder")
        return path
    for format in FORMATS:
        for name in format.files:
            if (path / name).is_file():
                return path / name
    found = sorted(path.glob(f"*{INDEX}")) or sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        names = some(file.name for file in found)
        raise CheckpointError(f"{path}: more than one tensor file: {names}").hint(
            "Name the one that is meant."
        )
    raise CheckpointError(f"{path}: holds no adapter").hint(
        f"Expected {', '.join(name for format in FORMATS for name in format.files)}."
    )


def _config(folder: Path) -> Mapping[str, Any] | None:
    for format in FORMATS:
        file = folder / format.config_file if format.config_file else None
        if file and file.is_file():
            try:
                config = json.loads(file.read_bytes())
            except (ValueError, RecursionError) as error:
                raise FormatError(f"{file}: not valid JSON ({error})") from error
            if not isinstance(config, dict):
                raise FormatError(f"{file}: not a JSON object")
            return config
    return None


def _contradiction(path: Path, problems: tuple[str, ...]) -> FormatError:
    more = [f"and {len(problems) - 5} more"] if len(problems) > 5 else []
    lines = "\n  ".join([*problems[:5], *more])
    return FormatError(f"{path}: configuration and tensors do not fit together:\n  {lines}").hint(
        f"`lora-tools inspect {path}` shows all that is in it."
    )


def _located(error: LoraToolsError, path: Path) -> LoraToolsError:
    located = type(error)(f"{path}: {error}")
    for note in getattr(error, "__notes__", ()):
        located.add_note(note)
    return located
