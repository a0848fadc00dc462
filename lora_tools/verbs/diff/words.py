"""What a diff comes to, in sentences."""

from collections.abc import Iterator

from lora_tools.report import percent
from lora_tools.verbs.diff.differences import Differences
from lora_tools.verbs.diff.rows import DiffRow

EXACT = 1e-6
"""What other factors of the same update differ by in float32, at most."""
ALMOST = 0.01
"""Below this share of the norm what is left over is called rounding: bfloat16 leaves 0.3 %."""


def sentences(found: Differences) -> Iterator[str]:
    """Yield what the comparison comes to: the verdict first, then what else is different."""
    yield _verdict(found)
    if found.same and found.tolerance > EXACT and any(row.worst > EXACT for row in found.rows):
        yield f"within the tolerance of {percent(found.tolerance)}: no difference"
    for kind, noun in (("module", "module"), ("tensor", "tensor")):
        rows = [row for row in found.differing if row.kind == kind]
        outcomes = [row.outcome(found.tolerance) for row in rows]
        for outcome in dict.fromkeys(outcomes):
            if kind == "module" and outcome == "different":
                continue
            count = outcomes.count(outcome)
            yield f"{_count(count, noun)} {_PHRASES[outcome]}"
    paired = [row for row in found.modules if row.paired and row.figures]
    for name in ("magnitude", "bias"):
        values = [getattr(row.figures, name) or 0.0 for row in paired]
        count = sum(value > found.tolerance for value in values)
        if count:
            yield f"{_count(count, 'module')} with another {name}, by up to {_share(max(values))}"
    if found.same and (ranks := sum(row.ranks[0] != row.ranks[1] for row in paired)):
        yield f"{_count(ranks, 'module')} with another rank"


_PHRASES = {
    "different": "that belong to no update differ",
    "only in A": "only in A",
    "only in B": "only in B",
    "other shape": "of another shape, not counted in the total",
}


def _verdict(found: Differences) -> str:
    whole = found.total
    rows = found.modules
    if not rows:
        return "same tensors" if found.same else "the tensors differ"
    if not whole.norms[0] and not whole.norms[1] and all(row.figures for row in rows):
        return "no update: all modules of A and B are zero"
    exact = min(found.tolerance, EXACT)
    if all(row.figures and row.figures.relative <= exact for row in rows):
        if not whole.difference:
            factors = all(row.identical for row in rows if row.paired)
            return "same update, same factors" if factors else "same update"
        noise = ", which is rounding" if 0 < whole.difference <= whole.noise else ""
        return f"same update, other factors: difference {percent(whole.relative)}{noise}"
    if not whole.norms[0] or not whole.norms[1]:
        return f"different: {'A' if not whole.norms[0] else 'B'} is zero"
    rest = whole.residual / whole.norms[1]
    factor = whole.inner / whole.norms[0] ** 2
    if rest < ALMOST and abs(factor - 1) > max(2 * rest, EXACT):
        within = "" if rest <= EXACT else f", to within {percent(rest)}"
        return f"B is {factor:.6g} × A{within}"
    paired = [row for row in rows if row.paired and row.figures]
    if len(paired) == len(rows):
        for name, other, side in (("B", "A", 1), ("A", "B", 0)):
            if _truncates(paired, side, whole.norms[1 - side], whole.difference):
                rank = max(row.ranks[side] or 0 for row in paired)
                error = percent(whole.difference / whole.norms[1 - side])
                truncation = f"{name} is a rank-{rank} truncation of {other}"
                return f"{truncation}: error {error}, no new directions"
    if whole.relative < ALMOST:
        return f"nearly the same update: difference {percent(whole.relative)}, as from rounding"
    return f"different updates: difference {_share(whole.relative)}, cosine {whole.cosine:.4f}"


def _truncates(rows: list[DiffRow], side: int, norm: float, difference: float) -> bool:
    """Whether one side has lower ranks, no directions of its own, and about the least error."""
    least = new = 0.0
    for row in rows:
        before, after = row.ranks[1 - side] or 0, row.ranks[side] or 0
        figures = row.figures
        if after > before or figures is None or figures.columns is None or figures.rows is None:
            return False
        least += figures.tails[1 - side] ** 2
        spaces = (figures.columns, figures.rows)
        share = max(space.new if side else space.lost for space in spaces)
        new += (share * figures.norms[side]) ** 2
    lowered = any((row.ranks[side] or 0) < (row.ranks[1 - side] or 0) for row in rows)
    slack = ALMOST * norm
    return lowered and new**0.5 < slack and difference < 1.01 * least**0.5 + slack / 10


def _share(value: float) -> str:
    return percent(value) if value < 1e6 else "∞"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
