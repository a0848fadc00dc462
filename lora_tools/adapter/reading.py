"""Reading an adapter: its header and configuration now, each tensor when it is asked for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_tools.adapter.finding import README, REPORT, configuration, tensor_file
from lora_tools.adapter.stated import stated, unpacked
from lora_tools.errors import FormatError, LoraToolsError, UnsupportedError, some
from lora_tools.files.address import Address, reopened
from lora_tools.files.checkpoint import Checkpoint
from lora_tools.files.fingerprint import check_state, state
from lora_tools.files.location import Location
from lora_tools.files.opening import open_checkpoint
from lora_tools.files.sides import SideFiles, side_files
from lora_tools.formats.base import Contents, Format
from lora_tools.formats.manifest import Manifest, Module
from lora_tools.formats.registry import detected, format_named
from lora_tools.formats.rotary import Paired
from lora_tools.formats.wrapped import unwrapped_names

if TYPE_CHECKING:
    from lora_tools.update import Update


@dataclass(frozen=True)
class Adapter(Mapping[str, "Update"]):
    """The updates of an adapter by module name, each read when it is asked for."""

    path: Location
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
        base, strict = stated(self.manifest.base), not self.manifest.problems
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
    def files(self) -> tuple[Location, ...]:
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
    path: str | Location,
    format: str | None = None,
    *,
    strict: bool = True,
    base: Mapping[str, Any] | None = None,
    alpha: float | None = None,
) -> Adapter:
    """Read an adapter's header and configuration; no tensor is read before it is used.

    ``path`` is a folder or a file; ``format`` is the name of the format, which overrides detection.
    ``base`` is the configuration of its base model and ``alpha`` its alpha, for formats whose files
    do not say enough. An adapter whose tensors contradict its configuration is read
    only if not ``strict``, to be looked at: its manifest lists the problems.

    Raises `CheckpointError` if the file is missing or damaged, `FormatError` if the adapter
    contradicts itself or is in no known format, and `UnsupportedError` if it is not a sum of
    matrices.
    """
    path = Path(path) if isinstance(path, str) else path
    file = tensor_file(path)
    tensors = _unwrapped(open_checkpoint(file))
    config, adapter_format = configuration(file.parent), format_named(format) if format else None
    try:
        _check_gathered(tensors)
        adapter_format = adapter_format or detected(
            tensors.specs, config, partial(configuration, file.parent), file.name
        )
        config = (
            configuration(file.parent, adapter_format) if adapter_format.config_file else config
        )
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
    path: Location, format: str, strict: bool, base: bytes | None, alpha: float | None, before: str
) -> Adapter:
    """Read an adapter that another process has read: what is sound there is to be so here."""
    adapter = read(path, format, strict=strict, base=unpacked(base), alpha=alpha)
    check_state(path, adapter.state, before)
    return adapter


def _unwrapped(tensors: Checkpoint) -> Checkpoint:
    """Return a file's tensors under the names that they have outside of a training script."""
    try:
        names = unwrapped_names(tensors.specs)
    except FormatError as error:
        raise error.located(tensors.path) from error
    if not names:
        return tensors
    longer, shorter = next(iter(names.items()))
    note = f"{len(names)} names hold what wrapped the model in training: {longer}; what is written"
    return tensors.renamed(names, f"{note} is named {shorter}.")


def _check_gathered(tensors: Checkpoint) -> None:
    """Raise `FormatError` for the placeholders that ZeRO-3 leaves of parameters on other ranks."""
    empty = [key for key, spec in tensors.specs.items() if spec.shape == (0,)]
    if empty:
        raise FormatError(
            f"{len(empty)} of {len(tensors)} tensors are empty, as DeepSpeed ZeRO-3 saves"
            f" parameters that it has not gathered: {some(empty)}"
        ).hint(
            "Save it again with stage3_gather_16bit_weights_on_model_save, or from the ZeRO"
            " checkpoint by zero_to_fp32.py."
        )


def _state(format: Format, tensors: Checkpoint) -> str:
    config = format.config_file
    return tensors.state + (state([tensors.path.parent / config]) if config else "")


def _idle(format: Format, contents: Contents) -> Iterator[str]:
    """Yield a remark if the files say alpha themselves: without the one that is stated, too."""
    if contents.alpha is None:
        return
    try:
        format.read(replace(contents, alpha=None))
    except FormatError:
        return
    yield "Its files say alpha: --alpha is ignored."


def _contradiction(path: Location, problems: tuple[str, ...]) -> FormatError:
    error = FormatError(f"{path}: configuration and tensors do not fit together:")
    return error.listing(problems, most=5).hint(
        f"`lora-tools inspect {path}` shows all that is in it."
    )
