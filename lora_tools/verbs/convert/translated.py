"""An adapter in another format's words, its updates still where they were."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lora_tools.adapter import Adapter, laid_out
from lora_tools.files.checkpoint import Checkpoint
from lora_tools.files.sides import SideFiles
from lora_tools.formats.base import Format
from lora_tools.formats.manifest import Manifest, Module
from lora_tools.linalg.blocks import Rows, of_rows, upon
from lora_tools.report import Change as Shrunk
from lora_tools.report import Row as ShrunkRow
from lora_tools.update import Biased, DoRA, Update
from lora_tools.verbs.convert.outcome import Change, Outcome, Row


class Origin(NamedTuple):
    """What a module of the target is made of."""

    modules: tuple[Module, ...]
    """As the source describes them."""
    rows: Rows | None = None
    """Ranges of the rows of the only module's B that the target has; None: all."""
    starts: tuple[int, ...] = ()
    """The rows from which on each module stands, where several are stacked."""

    @property
    def is_pair(self) -> bool:
        """Whether its factors are in the file, not made of other tensors."""
        return all(module.is_pair for module in self.modules)


@dataclass(frozen=True, slots=True)
class Translated:
    """An adapter whose modules are those of another format, and whose updates are the source's.

    It is read and spelled as an adapter is, so that whatever re-factors adapters can make its
    updates smaller on their way into the other format.
    """

    source: Adapter
    format: Format
    manifest: Manifest
    """The modules under their new names, not yet spelled."""
    origins: Mapping[str, Origin]
    dropped: Mapping[str, tuple[str, ...]]
    ranks: Mapping[str, int] = field(default_factory=dict)
    """The ranks of updates that their factors are larger than, but for rounding."""

    def __iter__(self) -> Iterator[str]:
        return iter(self.origins)

    def __len__(self) -> int:
        return len(self.origins)

    @property
    def path(self) -> Path:
        """What was asked for: a folder or a file."""
        return self.source.path

    @property
    def tensors(self) -> Checkpoint:
        """The file that updates are read from."""
        return self.source.tensors

    @property
    def params(self) -> int:
        """Number of elements of all tensors of the source."""
        return self.source.params

    @property
    def nbytes(self) -> int:
        """Size of the source's tensors on disk."""
        return self.source.nbytes

    def side_files(self) -> SideFiles:
        """Return what else lies in the source's folder."""
        return self.source.side_files()

    def update(self, module: Module, *, on_host: bool = True) -> Update:
        """Return a module's update, exactly that of the source."""
        origin = self.origins[module.name]
        updates = [_kept(self.source.update(m, on_host=on_host), module) for m in origin.modules]
        if origin.starts:
            return upon(updates, origin.starts, module.out)
        (update,) = updates
        return update if origin.rows is None else of_rows(update, origin.rows)

    def spelled(self, manifest: Manifest) -> Manifest:
        """Return a manifest of its modules as the target writes it."""
        return self.format.write(manifest)

    def rows(self, changes: Iterable[Shrunk], written: Manifest) -> Iterator[Change]:
        """Say of modules that were shrunk on the way what a conversion says of modules."""
        targets = {module.name: module for module in written.modules}
        modules = {module.name: module for module in self.manifest.modules}
        for name, update, row in changes:
            yield Change(name, update, _row(row, self.origins[name], modules[name], targets[name]))

    def outcome(self, written: Manifest, began: float | None = None, policy: str = "") -> Outcome:
        """Return the report of writing it, with all that is known before it is computed."""
        return Outcome(
            str(self.path),
            self.source.format.name,
            self.format.name,
            policy=policy,
            nbytes=(self.nbytes, laid_out(self.format, written).size),
            carried={extra.key: extra.kind for extra in written.extras},
            dropped=self.dropped,
            left_out=self._left_out(written),
            notes=self.source.manifest.notes,
            started=time.monotonic() if began is None else began,
        )

    def _left_out(self, written: Manifest) -> dict[str, str]:
        """Return files and fields of the source that the target does not have, and why."""
        old, same = self.source.format, self.source.format.name == self.format.name
        found = dict(self.side_files().left_out)
        if old.config_file and self.source.config and not same:
            found[old.config_file] = "read for its meaning; its other fields have no place"
        gone = self.source.manifest.metadata.keys() - written.metadata.keys()
        return found | {f"header field {key}": "describes another file" for key in sorted(gone)}


def _kept(update: Update, module: Module) -> Update:
    """Return an update without the parts that the module does not have."""
    match update:
        case DoRA(direction=low) if not {"magnitude", "columns"} & module.parts.keys():
            return low
        case Biased(weight=low) if "bias" not in module.parts:
            return low
        case _:
            return update


def _row(row: ShrunkRow, origin: Origin, module: Module, target: Module) -> Row:
    outcome = row.outcome
    if outcome == "rewritten":
        outcome = "rescaled" if origin.is_pair else "refactored"
    elif outcome == "kept" and row.rank_stored > row.rank_after:
        outcome = "padded"
    return Row(
        target.name,
        target.stem,
        target.shape,
        module.r,
        row.rank_stored,
        module.scale,
        target.scale,
        row.norm,
        row.error,
        outcome,
        rank_kept=row.rank_after,
        optimal_error=row.optimal_error,
    )
