"""An adapter in another format's words, its updates still where they were."""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from lora_tools.adapter import Adapter, laid_out
from lora_tools.engine import Engine, Serial
from lora_tools.errors import LoraToolsError, NonFiniteError, PolicyError, UnsupportedError, some
from lora_tools.formats.base import Format
from lora_tools.formats.kinds import KINDS, PARTS, is_blind, kinds, kinds_of
from lora_tools.formats.kohya import unflattened
from lora_tools.formats.manifest import Manifest, Module
from lora_tools.linalg.blocks import Rows, sliced, stacked
from lora_tools.linalg.rank import numerical_rank
from lora_tools.linalg.svd import core
from lora_tools.ops.convert.naming import steps
from lora_tools.ops.convert.outcome import Change, Outcome, Row
from lora_tools.report import Change as Shrunk
from lora_tools.report import Row as ShrunkRow
from lora_tools.storage.checkpoint import Checkpoint
from lora_tools.storage.sides import SideFiles
from lora_tools.update import Biased, DoRA, Update, factors

BOUND = (
    "lora_adapter_metadata",
    "lora_tools.names",
    "sshs_",
    "general.",
    "adapter.type",
    "adapter.lora.alpha",
)
"""How fields of a header begin that describe the spelling of their own file."""


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
            return stacked([factors(update) for update in updates], origin.starts, module.out)
        (update,) = updates
        return update if origin.rows is None else sliced(factors(update), origin.rows)

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


def translate(
    adapter: Adapter,
    format: Format,
    engine: Engine | None = None,
    *,
    drop: Collection[str] = (),
    paths: Collection[str] = (),
) -> Translated:
    """Put an adapter into another format's words.

    Reads no tensor but those of layers that are split or stacked, whose ranks they decide.
    ``drop`` names `KINDS` to go on without; ``paths`` are the modules of the base model, by which
    names are given back the dots that kohya took. Raises `UnsupportedError`, with a list, for
    what the format cannot say.
    """
    manifest = unflattened(adapter.manifest, paths) if paths else adapter.manifest
    kept, dropped = _without(manifest, drop)
    _check(adapter, kept, format)
    same = format.name == adapter.format.name
    try:
        plan = steps(kept, format)
    except LoraToolsError as error:
        raise error.located(adapter.path) from error
    fresh = replace(
        kept,
        modules=tuple(_bare(step.new, new=not same) for step in plan),
        config=kept.config if same else {},
        metadata={k: v for k, v in kept.metadata.items() if same or not k.startswith(BOUND)},
    )
    # Those of the file: names and parts of the plan's may be others.
    names = [module.name for module in manifest.modules]
    originals = dict(zip(names, adapter.manifest.modules, strict=True))
    origins = {
        step.new.name: Origin(
            tuple(originals[old.name] for old in step.olds), step.rows, step.starts
        )
        for step in plan
    }
    return measured(Translated(adapter, format, fresh, origins, dropped), engine or Serial())


def measured(of: Translated, engine: Engine) -> Translated:
    """Return a translated adapter at the ranks that its split and stacked updates have."""
    modules = of.manifest.modules
    open_ = [m for m in modules if of.origins[m.name].rows or of.origins[m.name].starts]
    found = dict(engine.map(_measure, [Measurement(of, module) for module in open_]))
    at_rank = tuple(
        replace(
            m.resized(found[m.name].rank), alpha=found[m.name].alpha, rslora=found[m.name].rslora
        )
        if m.name in found
        else m
        for m in modules
    )
    lower = {name: rank.least for name, rank in found.items() if rank.least < rank.rank}
    return replace(of, manifest=replace(of.manifest, modules=at_rank), ranks=lower)


@dataclass(frozen=True, slots=True)
class Measurement:
    """A module whose rank its tensors decide."""

    of: Translated
    module: Module


class Rank(NamedTuple):
    """The rank of a module's factors, the alpha that goes with it, and the rank of its update."""

    rank: int
    alpha: float | None
    rslora: bool
    least: int


def _measure(job: Measurement) -> tuple[str, Rank]:
    module = job.module
    update = factors(job.of.update(module))
    least = update.rank
    several = bool(job.of.origins[module.name].starts) and least > max(
        m.rank for m in job.of.origins[module.name].modules
    )
    if several or least > min(module.out, module.inp):
        try:
            least = numerical_rank(core(update, careful=True).s)
        except NonFiniteError as error:
            raise NonFiniteError(f"{job.of.path}: {module.name}: {error}") from error
    return module.name, Rank(update.rank, update.alpha, update.rslora, least)


def _without(
    manifest: Manifest, drop: Collection[str]
) -> tuple[Manifest, dict[str, tuple[str, ...]]]:
    """Return a manifest without what is to be dropped, and what that was."""
    if unknown := [kind for kind in drop if kind not in KINDS]:
        raise PolicyError(f"there is no kind {some(unknown)}").hint(f"Kinds: {', '.join(KINDS)}.")
    modules: list[Module] = []
    for module in manifest.modules:
        gone = {PARTS[kind] for kind in kinds_of(module) if kind in drop and kind in PARTS}
        if any(kind in drop and kind not in PARTS for kind in kinds_of(module)):
            continue
        parts = {role: part for role, part in module.parts.items() if role not in gone}
        modules.append(replace(module, parts=parts) if gone else module)
    extras = tuple(extra for extra in manifest.extras if extra.kind not in drop)
    found = kinds(manifest)
    dropped = {kind: tuple(found[kind]) for kind in drop if kind in found}
    if not modules:
        raise UnsupportedError("nothing is left to convert")
    return replace(manifest, modules=tuple(modules), extras=extras), dropped


def _check(adapter: Adapter, manifest: Manifest, format: Format) -> None:
    """Raise `UnsupportedError`, with a list, for what a format cannot say."""
    if format.expresses is None:
        raise UnsupportedError(f"{format.name} is read, not written")
    if format.name == adapter.format.name:
        return
    adapter.check_order()
    blind = [m.name for m in manifest.modules if not m.is_pair and is_blind(m)]
    if blind:
        raise UnsupportedError(
            f"{adapter.path}: convolutions whose tensors do not say their kernel: {some(blind)}"
        )
    found = kinds(manifest)
    tensors = {extra.kind for extra in manifest.extras}  # each format names those in its own way
    beyond = [kind for kind in found if kind not in format.expresses or kind in tensors]
    if beyond:
        lines = [f"{kind}: {some(found[kind], most=2)}" for kind in beyond]
        raise UnsupportedError(
            f"{adapter.path}: {format.name} cannot say\n  " + "\n  ".join(lines)
        ).hint(f"Go on without: {' '.join(f'--drop {kind!r}' for kind in beyond)}")


def _bare(module: Module, *, new: bool) -> Module:
    """Return a module as a pair of factors, without the spelling of the format it comes from."""
    pair = module.resized(module.r)
    if pair.alpha is None and (new or not module.is_pair):  # LyCORIS reads no file without one
        pair = replace(pair, alpha=float(pair.r))
    return replace(pair, stem=pair.name, owner=pair.name, rows=None) if new else pair


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
