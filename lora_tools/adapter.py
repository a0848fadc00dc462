"""Adapters: read lazily from files, written atomically to folders."""

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_tools.errors import (
    CheckpointError,
    FormatError,
    LoraToolsError,
    UnsupportedError,
    some,
)
from lora_tools.files.address import Address, reopened
from lora_tools.files.checkpoint import Checkpoint
from lora_tools.files.disk import write_text
from lora_tools.files.fingerprint import check_state, state
from lora_tools.files.inputs import is_present
from lora_tools.files.layout import Layout
from lora_tools.files.objects import read_object
from lora_tools.files.opening import INDEX, open_checkpoint
from lora_tools.files.ours import REPORT as OURS
from lora_tools.files.sides import SideFiles, carry, side_files
from lora_tools.files.stamp import blank, stamp
from lora_tools.files.writer import TensorWriter
from lora_tools.formats.base import Contents, Format
from lora_tools.formats.manifest import Manifest, Module
from lora_tools.formats.registry import FORMATS, detected, format_named, known
from lora_tools.formats.rotary import Paired
from lora_tools.text import config_text

if TYPE_CHECKING:
    from lora_tools.update import Array, Update

REPORT = OURS
README = "README.md"
QUANTISED = ("quantization_config", "compression_config")


@dataclass(frozen=True)
class Adapter(Mapping[str, "Update"]):
    """The updates of an adapter by module name, each read when it is asked for."""

    path: Path
    """What was asked for: a folder or a file."""
    format: Format
    manifest: Manifest
    tensors: Checkpoint
    alpha: float | None = None
    """Alpha as a person stated it, for files that have none."""
    state: str = ""
    """A digest of when its files were last changed, as they were when it was read."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as an address: another process reads the header for itself, once."""
        return reopened, (self.address,)

    @cached_property
    def address(self) -> Address:
        """How another process reads it, in less than 4 kB."""
        base, strict = _stated(self.manifest.base), not self.manifest.problems
        where = (self.path.absolute(), self.format.name, strict, base, self.alpha, self.state)
        return Address(_read_again, where)

    def __getitem__(self, name: str) -> "Update":
        return self.format.update(self.module(name), self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._modules  # reads no tensor

    def __iter__(self) -> Iterator[str]:
        return (module.name for module in self.manifest.modules)

    def __len__(self) -> int:
        return len(self.manifest.modules)

    def module(self, name: str) -> Module:
        """Return the description of a module."""
        return self._modules[name]

    @cached_property
    def _modules(self) -> Mapping[str, Module]:
        return {module.name: module for module in reversed(self.manifest.modules)}

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

    def update(self, module: Module, *, on_host: bool = True) -> "Update":
        """Return a module's update, in arrays of numpy where it has the type, or all in torch's."""
        return self.format.update(module, self.tensors.arrays if on_host else self.tensors)

    def written(self, manifest: Manifest) -> Manifest:
        """Return a manifest as the adapter's format writes it."""
        return self.format.write(manifest)

    def check_order(self) -> None:
        """Raise `UnsupportedError` if it has rows that cannot be brought into its base's order.

        For whatever adds an update to a weight, compares it with another file's, or converts it to
        another format. Norms and spectra are those of any order.
        """
        unknown = [module.name for module in self.manifest.modules if module.rows == Paired(None)]
        if unknown:
            raise UnsupportedError(
                f"{self.path}: the rows of {some(unknown)} have the interleaved RoPE layout, and"
                " the file does not say how many heads share them"
            ).hint("Give the base model, whose config.json says it: --base MODEL.")

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that it is read from, or that goes along with it."""
        config = self.format.config_file
        beside = (self.tensors.path.parent / config,) if config else ()
        readme = (self.path / README,) if self.path.is_dir() else ()
        return (*self.tensors.files, *beside, *readme, *self.side_files().carried)

    def side_files(self) -> SideFiles:
        """Return what else lies in its folder; nothing if a single file was asked for."""
        if not self.path.is_dir():
            return SideFiles((), {})
        ours = {self.tensors.path.name, self.format.config_file, REPORT, README}
        return side_files(self.path, ours)


def read(
    path: str | Path,
    format: str | None = None,
    *,
    strict: bool = True,
    base: Mapping[str, Any] | None = None,
    alpha: float | None = None,
) -> Adapter:
    """Read an adapter's header and configuration; no tensor is read before it is used.

    ``path`` is a folder or a file; ``format`` is the name of the format, where it is not to be
    recognised. ``base`` is the configuration of its base model and ``alpha`` its alpha, for formats
    whose files do not say enough. An adapter whose tensors contradict its configuration is read
    only if not ``strict``, to be looked at: its manifest lists the problems.

    Raises `CheckpointError` if the file is missing or damaged, `FormatError` if the adapter
    contradicts itself or is in no known format, and `UnsupportedError` if it is not a sum of
    matrices.
    """
    path = path if isinstance(path, Path) else Path(path)  # which may be one into the Hub
    file = _tensor_file(path)
    tensors = open_checkpoint(file)
    config, adapter_format = _config(file.parent), format_named(format) if format else None
    try:
        adapter_format = adapter_format or detected(
            tensors.specs, config, partial(_config, file.parent), file.name
        )
        config = _config(file.parent, adapter_format) if adapter_format.config_file else config
        contents = Contents(tensors.specs, config, tensors.metadata, tensors.scalars, base, alpha)
        manifest = adapter_format.read(contents)
        notes = (*tensors.notes, *manifest.notes, *_idle(adapter_format, contents))
        manifest = replace(manifest, notes=notes, base=base)
    except LoraToolsError as error:
        raise error.located(path) from error
    if strict and manifest.problems:
        raise _contradiction(path, manifest.problems)
    return Adapter(path, adapter_format, manifest, tensors, alpha, _state(adapter_format, tensors))


def _read_again(
    path: Path, format: str, strict: bool, base: bytes | None, alpha: float | None, before: str
) -> Adapter:
    """Read an adapter that another process has read: what is sound there is to be so here."""
    config = None if base is None else json.loads(zlib.decompress(base))
    adapter = read(path, format, strict=strict, base=config, alpha=alpha)
    check_state(path, adapter.state, before)
    return adapter


def _state(format: Format, tensors: Checkpoint) -> str:
    config = format.config_file
    return tensors.state + (state([tensors.path.parent / config]) if config else "")


def _stated(config: Mapping[str, Any] | None) -> bytes | None:
    """Return what formats ask a base's configuration for, small: its numbers and its names."""
    return None if config is None else _packed(json.dumps(_plain(config), default=str))


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out tables (labels, quantised layers), which grow; keep those of models within it."""
    sections = {k: _plain(v) for k, v in config.items() if _is_model(k, v)}
    return {k: v for k, v in config.items() if not isinstance(v, Mapping)} | sections


def _is_model(key: str, value: object) -> bool:
    return isinstance(value, Mapping) and key.endswith("_config") and key not in QUANTISED


@lru_cache(maxsize=8)
def _packed(text: str) -> bytes:
    """Return one object for one text, which a job with several adapters pickles once."""
    return zlib.compress(text.encode())


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
        for extra in manifest.extras:
            file[extra.key] = (like.tensors.arrays if beside is None else beside)[extra.key]
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
    return own or like.tensors.path.with_suffix(format.container.suffix).name


def laid_out(format: Format, manifest: Manifest) -> Layout:
    """Return where every tensor will be in the file that a format writes."""
    return format.container.layout(manifest.specs, manifest.metadata)


def _tensor_file(path: Path) -> Path:
    if not path.is_dir():
        if not is_present(path):
            raise CheckpointError(f"{path}: no such file or folder")
        return path
    for format in known():
        for name in format.files:
            if (path / name).is_file():
                return path / name
    patterns = (f"*{INDEX}", "*.safetensors", "*.gguf")
    found = next(filter(None, (sorted(path.glob(pattern)) for pattern in patterns)), [])
    if len(found) == 1:
        return found[0]
    if found:
        names = some(file.name for file in found)
        raise CheckpointError(f"{path}: more than one tensor file: {names}").hint(
            "Name the one that is meant."
        )
    raise CheckpointError(f"{path}: holds no adapter").hint(
        f"Expected {', '.join(name for format in known() for name in format.files)}."
    )


def _config(folder: Path, own: Format | None = None) -> Mapping[str, Any] | None:
    """Return the configuration of a format, or else the one that a neighbour of it left there."""
    for format in (*([own] if own else []), *FORMATS):
        file = folder / format.config_file if format.config_file else None
        if file and is_present(file):
            return read_object(file, FormatError)
    return None


def _idle(format: Format, contents: Contents) -> Iterator[str]:
    """Yield a remark if the files say alpha themselves: without the one that is stated, too."""
    if contents.alpha is None:
        return
    try:
        format.read(replace(contents, alpha=None))
    except FormatError:
        return
    yield "Its files say alpha: --alpha is ignored."


def _contradiction(path: Path, problems: tuple[str, ...]) -> FormatError:
    error = FormatError(f"{path}: configuration and tensors do not fit together:")
    return error.listing(problems, most=5).hint(
        f"`lora-tools inspect {path}` shows all that is in it."
    )
