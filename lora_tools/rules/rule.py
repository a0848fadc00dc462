"""A rule: a function of weighted updates, in the space that it is defined in."""

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lora_tools.errors import PolicyError
from lora_tools.linalg.exact import exact
from lora_tools.linalg.factors import host
from lora_tools.update import LowRank

Space = Literal["core", "rows", "dense"]
"""What a rule sees of each update: a core, its rows in the basis of the columns, or all of it."""


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
    """Takes the weighted updates, in float64, and its parameters by name. A parameter ``seed`` is
    a hash of the module's name."""

    @property
    def parameters(self) -> dict[str, float]:
        """The parameters that it has, and their defaults."""
        found = inspect.signature(self.function).parameters.values()
        keywords = [each for each in found if each.kind is each.KEYWORD_ONLY]
        return {each.name: each.default for each in keywords if each.name != "seed"}

    @property
    def is_random(self) -> bool:
        """Whether it draws numbers."""
        return "seed" in inspect.signature(self.function).parameters


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
        in core space, r the sum of the ranks, and n dense updates of a module for the others.
        """
        values: dict[str, Any] = dict(self.values)
        if self.rule.is_random:
            values["seed"] = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
        pairs = [
            (weight * update.scale * host(update.b), host(update.a))
            for update, weight in zip(updates, weights, strict=True)
        ]
        combine = {"core": _in_cores, "rows": _in_rows, "dense": _on_all}[self.rule.space]
        with exact():
            made = [
                combine([(b[at], a[at]) for b, a in pairs], self.rule.function, values)
                for at in np.ndindex(pairs[0][0].shape[:-2])
            ]
        groups, rank = updates[0].groups, made[0][0].shape[-1]
        shape = pairs[0][0].shape[:-2]
        b, a = (np.stack([each[n] for each in made]) for n in range(2))
        b, a = b.reshape(*shape, *b.shape[1:]), a.reshape(*shape, *a.shape[1:])
        return LowRank(a, b, float(rank * groups), groups=groups)


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


def _on_all(
    pairs: Pairs, rule: Callable[..., np.ndarray], values: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    whole = rule([b @ a for b, a in pairs], **values)
    if whole.shape[0] <= whole.shape[1]:
        return np.eye(whole.shape[0]), whole
    return whole, np.eye(whole.shape[1])


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
