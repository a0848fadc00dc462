"""A rule: a function of weighted updates, in the space that it is defined in."""

import hashlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lora_tools.errors import PolicyError
from lora_tools.linalg.exact import exact
from lora_tools.linalg.factors import host
from lora_tools.linalg.tiles import Tiled, least_kept, product
from lora_tools.rules.elementwise import kept
from lora_tools.shapes import Float
from lora_tools.update import LowRank

Space = Literal["core", "rows", "dense"]
"""What a rule sees of each update: a core, its rows in the basis of the columns, or tiles."""

STREAMED = ("least", "draws")
"""What a rule of dense tiles may ask for: see `rules.elementwise`."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule that combines updates of one module.

    Another package offers one under the entry-point group ``lora_tools.rules``.
    """

    name: str
    about: str
    """What it does, in a few words, with its paper."""
    space: Space
    function: Callable[..., np.ndarray]
    """Takes the weighted updates, in float64, and its parameters by name. In the space ``dense`` it
    takes the same rows of each update, and returns those of the result."""

    @property
    def parameters(self) -> dict[str, float]:
        """The parameters that it has, and their defaults."""
        found = inspect.signature(self.function).parameters.values()
        keywords = [each for each in found if each.kind is each.KEYWORD_ONLY]
        return {each.name: each.default for each in keywords if each.name not in STREAMED}

    def asks(self, name: str) -> bool:
        """Whether it asks for what depends on whole updates, one of `STREAMED`."""
        return name in inspect.signature(self.function).parameters


@dataclass(frozen=True, slots=True)
class ParametrisedRule:
    """A rule with the values of its parameters."""

    rule: Rule
    values: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        values = {**self.rule.parameters, **dict(self.values)}
        shown = ", ".join(f"{name} {value:g}" for name, value in values.items())
        return f"{self.rule.name} ({shown})" if shown else self.rule.name

    def __call__(self, updates: Sequence[LowRank], weights: Sequence[float], name: str) -> LowRank:
        """Return what the rule makes of the updates of the module of this name.

        In float64, as exact as that: the factors of the result stand for all of it. Of updates
        that are stacks, the rule is applied to each member. Costs O((out + inp) * r**2) for rules
        in core space, r the sum of the ranks. The others form the dense result here; `tiles` does
        so a few rows at a time.
        """
        pairs = [
            (weight * update.scale * host(update.b), host(update.a))
            for update, weight in zip(updates, weights, strict=True)
        ]
        with exact():
            made = [
                self._combined([(b[at], a[at]) for b, a in pairs], name)
                for at in np.ndindex(pairs[0][0].shape[:-2])
            ]
        groups, rank = updates[0].groups, made[0][0].shape[-1]
        shape = pairs[0][0].shape[:-2]
        b, a = (np.stack([each[n] for each in made]) for n in range(2))
        b, a = b.reshape(*shape, *b.shape[1:]), a.reshape(*shape, *a.shape[1:])
        return LowRank(a, b, float(rank * groups), groups=groups)

    def tiles(self, updates: Sequence[Tiled], name: str) -> Iterator[Float[np.ndarray, "m n"]]:
        """Yield the rows of what a rule of the space ``dense`` makes of weighted updates.

        What is drawn depends on the module's name and on the place of the update. Forms each
        update once, and twice more where the rule trims it by size.
        """
        values: dict[str, Any] = dict(self.values)
        if self.rule.asks("least"):
            density = {**self.rule.parameters, **values}["density"]
            count = kept(math.prod(updates[0].shape), density)
            values["least"] = [least_kept(update, count) for update in updates]
        if self.rule.asks("draws"):
            seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
            values["draws"] = [
                np.random.default_rng([seed, number]) for number in range(len(updates))
            ]
        for span in updates[0].spans:
            yield self.rule.function([update.rows(*span) for update in updates], **values)

    def _combined(self, pairs: "Pairs", name: str) -> tuple[np.ndarray, np.ndarray]:
        if self.rule.space != "dense":
            combine = {"core": _in_cores, "rows": _in_rows}[self.rule.space]
            return combine(pairs, self.rule.function, dict(self.values))
        tiles = self.tiles([product(b, a) for b, a in pairs], name)
        whole = np.concatenate([*tiles])
        if whole.shape[0] <= whole.shape[1]:
            return np.eye(whole.shape[0]), whole
        return whole, np.eye(whole.shape[1])


def parametrised(rule: Rule, values: Mapping[str, float]) -> ParametrisedRule:
    """Return a rule with these parameters; `PolicyError` for those that it does not have."""
    known = rule.parameters
    if strange := [name for name in values if name not in known]:
        raise PolicyError(f"{rule.name} has no parameter {', '.join(strange)}").hint(
            f"It has {', '.join(known)}." if known else "It has none."
        )
    if beyond := [name for name, value in values.items() if not 0 < value <= 1]:
        raise PolicyError(f"{', '.join(beyond)} of {rule.name} is not above 0 and at most 1")
    return ParametrisedRule(rule, tuple(sorted(values.items())))


Pairs = Sequence[tuple[np.ndarray, np.ndarray]]
"""B with scale and weight, and A, of each update."""


def _in_cores(
    pairs: Pairs, rule: Callable[..., np.ndarray], values: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    q_b, left = _basis([b for b, _ in pairs])
    q_a, right = _basis([a.T for _, a in pairs])
    cores = [x @ y.T for x, y in zip(left, right, strict=True)]
    return q_b @ rule(cores, **values), np.ascontiguousarray(q_a.T)


def _in_rows(
    pairs: Pairs, rule: Callable[..., np.ndarray], values: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    q_b, left = _basis([b for b, _ in pairs])
    return q_b, rule([x @ a for x, (_, a) in zip(left, pairs, strict=True)], **values)


def _basis(factors: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the principal directions of factors side by side, and each factor in them.

    Directions that none of them has are zeros, so that members of a stack have one shape.
    """
    stacked = np.concatenate(factors, axis=1)
    u, s, vt = np.linalg.svd(stacked, full_matrices=False)
    live = s > 1e-14 * s[:1]
    coordinates = np.where(live, s, 0.0)[:, None] * vt
    ends = np.cumsum([factor.shape[1] for factor in factors])[:-1]
    return u * live, np.split(coordinates, ends, axis=1)
