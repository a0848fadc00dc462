"""The plan of a conversion that keeps every update: how modules are spelled, at which alphas."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from lora_tools.adapter import Adapter
from lora_tools.errors import LoraToolsError
from lora_tools.executors import Executor, Serial
from lora_tools.formats.base import Format
from lora_tools.formats.manifest import Manifest, Module
from lora_tools.scaling import alpha_at
from lora_tools.verbs.convert.outcome import Change, Outcome
from lora_tools.verbs.convert.task import Job, rewrite
from lora_tools.verbs.convert.translate import translate
from lora_tools.verbs.convert.translated import Translated


@dataclass(frozen=True, slots=True)
class Converted:
    """An adapter in another format: its layout at once, its updates when it is iterated."""

    of: Translated
    manifest: Manifest
    jobs: tuple[Job, ...]
    executor: Executor

    def __iter__(self) -> Iterator[Change]:
        return self.executor.map(rewrite, self.jobs)

    def __len__(self) -> int:
        return len(self.jobs)

    @property
    def source(self) -> Adapter:
        """The adapter that is converted."""
        return self.of.source

    @property
    def format(self) -> Format:
        """The format that it is converted to."""
        return self.of.format

    def outcome(self, began: float | None = None) -> Outcome:
        """Return the report of this conversion, with all that is known before it is computed."""
        return self.of.outcome(self.manifest, began)


def convert(
    adapter: Adapter,
    format: Format,
    executor: Executor | None = None,
    *,
    drop: Collection[str] = (),
    paths: Collection[str] = (),
    dtype: str | None = None,
) -> Converted:
    """Plan an adapter in another format.

    ``drop`` and ``paths`` are those of `translate`, and it raises what that raises. To lower ranks
    on the way, shrink what `translate` returns.
    """
    translated = translate(adapter, format, executor, drop=drop, paths=paths)
    return rewritten(translated, executor, dtype=dtype)


def rewritten(
    of: Translated, executor: Executor | None = None, *, dtype: str | None = None
) -> Converted:
    """Plan a translated adapter with every update as it is, at no more than the rank it has."""
    modules = of.manifest.modules
    wanted = tuple(_at(m, of.ranks.get(m.name, m.r), dtype) for m in modules)
    try:
        written = of.spelled(replace(of.manifest, modules=wanted))
    except LoraToolsError as error:
        raise error.located(of.path) from error
    jobs = tuple(
        Job(of, module, target, kept.r)
        for module, kept, target in zip(modules, wanted, written.modules, strict=True)
    )
    return Converted(of, written, jobs, executor or Serial())


def _at(module: Module, rank: int, dtype: str | None) -> Module:
    """Return a module at another rank, and at the alpha that keeps its scale."""
    alpha = alpha_at(module.alpha, module.r, rank, rslora=module.rslora)
    return replace(module.resized(rank, dtype), alpha=alpha)
