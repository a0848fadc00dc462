"""Every rule against a dense float64 reference that is written from its paper."""

import numpy as np
import pytest
from papers import magnitude, ties

from lora_tools.errors import PackageError, PolicyError
from lora_tools.rules import RULES, parametrised, registry, rule_named
from lora_tools.rules.rule import Rule
from lora_tools.update import LowRank

OUT, INP = 14, 11
WEIGHTS = (1.0, 0.5, -0.7)


def updates(count=3, rank=3, seed=0):
    rng = np.random.default_rng(seed)
    return [
        LowRank(rng.standard_normal((rank, INP)), rng.standard_normal((OUT, rank)), 2.0 + n)
        for n in range(count)
    ]


def dense(given):
    return [w * u.scale * u.b @ u.a for u, w in zip(given, WEIGHTS, strict=False)]


def iso(taus):
    """Marczak et al. 2025, equation 7, over the singular values that are not 0."""
    u, s, vt = np.linalg.svd(sum(taus))
    r = int((s > 1e-9).sum())
    return s[:r].mean() * u[:, :r] @ vt[:r]


def tsv(taus):
    """Gargiulo et al. 2025, algorithm 1."""
    us, ss, vs = [], [], []
    for tau in taus:
        u, s, vt = np.linalg.svd(tau)
        k = max(int((s > 1e-9).sum()) // len(taus), 1)
        us, ss, vs = [*us, u[:, :k]], [*ss, s[:k]], [*vs, vt[:k].T]
    p, _, qt = np.linalg.svd(np.hstack(us), full_matrices=False)
    x, _, yt = np.linalg.svd(np.hstack(vs), full_matrices=False)
    return p @ qt @ np.diag(np.concatenate(ss)) @ (x @ yt).T


def knots(taus, k):
    """Stoica et al. 2024, section 4: one decomposition of the updates side by side."""
    u, s, vt = np.linalg.svd(np.hstack(taus), full_matrices=False)
    r = int((s > 1e-9).sum())
    parts = np.split(vt[:r], len(taus), axis=1)
    return u[:, :r] @ np.diag(s[:r]) @ ties(parts, k)


def core_ties(given, k):
    """Panariello et al. 2025, section 3: cores in the singular vectors of the stacked factors."""
    u = np.linalg.svd(
        np.hstack([w * g.scale * g.b for g, w in zip(given, WEIGHTS, strict=False)]),
        full_matrices=False,
    )[0]
    vt = np.linalg.svd(np.vstack([g.a for g in given]), full_matrices=False)[2]
    return u @ ties([u.T @ tau @ vt.T for tau in dense(given)], k) @ vt


REFERENCES = {
    "ties": lambda given: ties(dense(given), 0.2),
    "magnitude": lambda given: magnitude(dense(given), 0.5),
    "iso": lambda given: iso(dense(given)),
    "tsv": lambda given: tsv(dense(given)),
    "knots": lambda given: knots(dense(given), 0.2),
    "core-ties": lambda given: core_ties(given, 0.2),
}


def made(name, given, values=None, module="m"):
    result = parametrised(rule_named(name), values or {})(given, WEIGHTS[: len(given)], module)
    return result.scale * result.b @ result.a


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("seed", range(3))
def test_a_rule_is_the_one_of_its_paper(name, seed):
    given = updates(seed=seed)
    np.testing.assert_allclose(made(name, given), REFERENCES[name](given), atol=1e-9)


def test_every_rule_has_a_reference():
    assert {rule.name for rule in RULES} == REFERENCES.keys() | {"dare", "dare-ties"}


@pytest.mark.parametrize("name", ["dare", "dare-ties"])
def test_what_is_drawn_is_that_of_the_module(name):
    """Yu et al. 2023: elements stay with a probability, are divided by it, and are added."""
    given = updates()
    first, again, other = (made(name, given, {"density": 0.4}, m) for m in ("x", "x", "y"))
    assert (first == again).all()
    assert (first != other).any()
    whole = made(name, given, {"density": 1.0})
    signs = [np.sign(sum(dense(given)))] * 3
    wanted = sum(dense(given))
    if name == "dare-ties":
        agree = [np.sign(t) == s for t, s in zip(dense(given), signs, strict=True)]
        wanted = sum(t * a for t, a in zip(dense(given), agree, strict=True)) / sum(agree)
    np.testing.assert_allclose(whole, wanted, atol=1e-12)
    if name == "dare":  # what stays of one update is what it was, over the density
        alone = made("dare", given[:1], {"density": 0.4})
        kept = alone[alone != 0] / dense(given[:1])[0][alone != 0]
        np.testing.assert_allclose(kept, 2.5)
        assert 0.2 < (alone != 0).mean() < 0.6


@pytest.mark.parametrize("name", [rule.name for rule in RULES])
def test_members_of_a_stack_are_combined_apart(name):
    a, b = updates(seed=1), updates(seed=2)
    stacks = [
        LowRank(np.stack([x.a, y.a]), np.stack([x.b, y.b]), x.alpha)
        for x, y in zip(a, b, strict=True)
    ]
    found = made(name, stacks)
    for at, given in enumerate((a, b)):
        wanted = made(name, given)
        np.testing.assert_allclose(found[at], wanted, atol=1e-9)


def test_parameters_are_checked():
    assert rule_named("ties").parameters == {"density": 0.2}
    assert str(parametrised(rule_named("ties"), {})) == "ties (density 0.2)"
    with pytest.raises(PolicyError, match="iso has no parameter density"):
        parametrised(rule_named("iso"), {"density": 0.5})
    with pytest.raises(PolicyError, match="not above 0"):
        parametrised(rule_named("ties"), {"density": 0.0})
    with pytest.raises(PolicyError, match="there is no method mean") as error:
        rule_named("mean")
    assert "core-ties" in error.value.__notes__[0]


def test_a_rule_of_another_package(monkeypatch):
    mean = Rule("mean", "the mean", "core", lambda cores: sum(cores) / len(cores))

    class Entry:
        name, value, group = "mean", "package:mean", registry.PLUGINS

        def __init__(self, rule):
            self._rule = rule

        def load(self):
            return self._rule() if isinstance(self._rule, type) else self._rule

    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [Entry(mean)])
    registry.plugins.cache_clear()
    given = updates()
    np.testing.assert_allclose(made("mean", given), sum(dense(given)) / 3, atol=1e-12)
    registry.plugins.cache_clear()
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [Entry(ZeroDivisionError)])
    with pytest.raises(PackageError, match="is no rule"):
        rule_named("mean")
    registry.plugins.cache_clear()
