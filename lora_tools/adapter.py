"""Adapters: read lazily from files, written atomically to folders."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_tools.errors import CheckpointError, FormatError, LoraToolsError, some
from lora_tools.formats.base import Format, Manifest, Module
from lora_tools.formats.peft import Peft
from lora_tools.storage.checkpoint import INDEX, PICKLES, Checkpoint, open_checkpoint
from lora_tools.storage.layout import layout
from lora_tools.storage.writer import TensorWriter

if TYPE_CHECKING:
    from lora_tools.update import Update

FORMATS: tuple[Format, ...] = (Peft(),)
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


def read(path: str | Path, *, strict: bool = True) -> Adapter:
    """Read an adapter's header and configuration; no tensor is read before it is used.

    ``path`` is a folder or a file. An adapter whose tensors contradict its configuration is read
    only if not ``strict``, to be looked at: its manifest lists the problems.

    Raises `CheckpointError` if the file is missing or damaged, `FormatError` if the adapter
    contradicts itself or is in no known format, and `UnsupportedError` if it is not a sum of
    matrices.
    """
    path = path if isinstance(path, Path) else Path(path)  # which may be one into the Hub
    file = _tensor_file(path)
    tensors = open_checkpoint(file)
    config = _config(file.parent)
    for format in FORMATS:
        if format.detect(tensors.specs, config):
            try:
                manifest = format.read(tensors.specs, config, tensors.metadata)
            except LoraToolsError as error:
                raise _located(error, path) from error
            if strict and manifest.problems:
                raise _contradiction(path, manifest.problems)
            return Adapter(path, format, manifest, tensors)
    raise FormatError(
        f"{path}: in no known adapter format; its tensors are named {some(tensors.specs)}"
    ).hint(f"Known formats: {', '.join(format.name for format in FORMATS)}.")


def write(
    folder: Path, manifest: Manifest, updates: Iterable[tuple[str, "Update"]], *, like: Adapter
) -> None:
    """Fill an empty folder with a complete adapter, in the format of ``like``.

    ``manifest`` fixes the layout of the file before the first update is computed; ``updates``
    may come in any order. Other tensors and side files are copied from ``like``. Use `staged`
    for a folder that appears only when it is whole.
    """
    plan = layout(manifest.specs, manifest.metadata)
    modules = {module.name: module for module in manifest.modules}
    with TensorWriter(folder / like.format.files[0], plan) as file:
        for extra in manifest.extras:
            file[extra.key] = like.tensors.arrays[extra.key]
        for name, update in updates:
            for key, tensor in like.format.tensors(modules[name], update).items():
                file[key] = tensor
    if like.format.config_file:
        text = json.dumps(manifest.config, indent=2, ensure_ascii=False)
        (folder / like.format.config_file).write_text(text, encoding="utf-8")
    for side in like.side_files().carried:
        shutil.copyfile(side, folder / side.name)


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
