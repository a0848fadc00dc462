"""Which modules of a source are rewritten, and what their updates are multiplied by."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from lora_tools.architectures.pipelines import split
from lora_tools.errors import PolicyError, UnsupportedError, some
from lora_tools.executors import Executor, Serial
from lora_tools.files.address import Address
from lora_tools.formats.manifest import Extra, Module
from lora_tools.linalg.exact import exact
from lora_tools.linalg.metrics import squared_norm
from lora_tools.names import matches
from lora_tools.rewrite.source import Made, Source, Sum, Term
from lora_tools.rewrite.tasks import RewriteJob, named
from lora_tools.scaling import alpha_for
from lora_tools.update import factors

ENCODERS = ("text_encoder", "lora_te")
"""How names in text encoders begin: those of a pipeline's folders, and those without their dots."""


class ModuleWeight(NamedTuple):
    """A factor for the modules that match a pattern."""

    pattern: str
    weight: float
    adapter: int | None = None
    """The number of the adapter whose modules are meant, from 1; None: of all."""


def factor(weights: Sequence[ModuleWeight], name: str, adapter: int | None = None) -> float:
    """Return what a module of an adapter is multiplied by: of several that match, the last.

    >>> factor([ModuleWeight("q_proj", 2.0), ModuleWeight("layers.0.*", 0.0)], "layers.0.q_proj")
    0.0
    """
    found = [
        each.weight
        for each in weights
        if each.adapter in (None, adapter) and matches(each.pattern, name)
    ]
    return found[-1] if found else 1.0


@dataclass(frozen=True, slots=True)
class Selection:
    """What is left of a source. The defaults leave all of it as it is."""

    only: tuple[str, ...] = ()
    """Patterns of the modules that stay; none: all."""
    drop: tuple[str, ...] = ()
    """Patterns of modules that go."""
    weights: tuple[ModuleWeight, ...] = ()
    """Factors of updates. A module at 0 goes."""
    text_encoder: bool = True
    """Whether the modules of text encoders stay."""

    def __post_init__(self) -> None:
        if strange := [each.weight for each in self.weights if not math.isfinite(each.weight)]:
            raise PolicyError(f"{some(strange)}: no weight of a module")

    def weight(self, name: str) -> float:
        """Return what a module's update is multiplied by; 0 if the module goes."""
        stays = not self.only or any(matches(pattern, name) for pattern in self.only)
        goes = any(matches(pattern, name) for pattern in self.drop)
        if not stays or goes or (not self.text_encoder and is_encoder(name)):
            return 0.0
        return factor(self.weights, name)

    def keeps(self, extra: Extra) -> bool:
        """Whether a tensor beside the updates stays."""
        return self.text_encoder or not is_encoder(extra.name or extra.key)

    def check(self, source: Source) -> None:
        """Raise `PolicyError` for a pattern that no module matches."""
        patterns = [*self.only, *self.drop, *(each.pattern for each in self.weights)]
        idle = [p for p in patterns if not any(matches(p, name) for name in source)]
        if idle:
            raise PolicyError(f"{source.path}: no module matches {some(idle)}").hint(
                f"Its modules are {some(source)}."
            )
        if not self.text_encoder and not any(map(is_encoder, source)):
            raise PolicyError(f"{source.path}: no module is in a text encoder").hint(
                f"Its modules are {some(source)}."
            )


def is_encoder(name: str) -> bool:
    """Whether a name is of a text encoder.

    >>> is_encoder("text_encoder_2.text_model.encoder.layers.0.mlp.fc1"), is_encoder("unet.conv_in")
    (True, False)
    """
    return split(name)[0].startswith(ENCODERS[0]) or name.startswith(ENCODERS)


def selected(source: Source, selection: Selection, executor: Executor | None = None) -> Source:
    """Return what a selection leaves of a source.

    Reads the modules that go, for their norms. Raises `PolicyError` for patterns that match
    nothing, and `UnsupportedError` if nothing is left, or for DoRA with a weight.
    """
    if selection == Selection():
        return source
    selection.check(source)
    result = _selected(source, selection)
    kept = {*result.origins}
    gone = [module for module in source.manifest.modules if module.name not in kept]
    norms = (executor or Serial()).map(norm, [RewriteJob(source, m, "cpu") for m in gone])
    removed = {m.name: each for m, each in zip(gone, norms, strict=True)}
    return replace(result, removed={**source.removed, **removed})


@exact()
@np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused by name
def norm(job: RewriteJob) -> float:
    """Return the norm of one module's update; `NonFiniteError` names the tensor that has none."""
    try:
        return math.sqrt(squared_norm(factors(job.source.update(job.module))))
    except ArithmeticError as error:
        raise named(job, error) from error


def _selected(source: Source, selection: Selection) -> Source:
    weights = {name: selection.weight(name) for name in source}
    manifest = source.manifest
    modules = tuple(weigh(m, weights[m.name]) for m in manifest.modules if weights[m.name])
    if not modules:
        raise UnsupportedError(f"{source.path}: no module is left")
    origins: dict[str, Made] = {
        m.name: source.origins[m.name]
        if weights[m.name] == 1.0
        else Sum((Term(source, m, weights[m.name]),))
        for m in manifest.modules
        if weights[m.name]
    }
    _check(source, [m for m in manifest.modules if weights[m.name] not in (0.0, 1.0)])
    return replace(
        source,
        manifest=replace(
            manifest,
            modules=modules,
            extras=tuple(e for e in manifest.extras if selection.keeps(e)),
            changed=manifest.changed or len(modules) < len(manifest.modules),
        ),
        origins=origins,
        address=Address(_selected, (source.address, selection)),
    )


def weigh(module: Module, weight: float) -> Module:
    """Return how a module is described whose update is multiplied: its size goes to alpha."""
    if abs(weight) == 1.0:
        return module
    alpha = module.alpha
    if alpha is None:
        alpha = alpha_for(1.0, module.r, rslora=module.rslora)
    return replace(module, alpha=alpha * abs(weight))


def _check(source: Source, modules: Sequence[Module]) -> None:
    dora = [module.name for module in modules if module.is_dora]
    if dora:
        raise UnsupportedError(
            f"{source.path}: DoRA's updates have no weight, as the weights of the base are"
            f" normalised after they are added: {some(dora)}"
        ).hint("Leave the DoRA magnitudes out, with lora-tools convert --drop DoRA.")
