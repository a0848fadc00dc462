"""The scale that a runtime gives each pair, beside that of the adapter's own format."""

from collections.abc import Callable

from lora_tools.runtimes.base import Breach, Check, Subject
from lora_tools.runtimes.fields import number
from lora_tools.runtimes.keys import Pair

CLOSE = 1e-6
"""Scales that differ by less, relatively, are the same."""


def read_at(runtime: str, factor: Callable[[Subject, Pair], float | None], reads: str) -> Check:
    """Compare the scale that a runtime gives each pair with that of the adapter's own format."""

    def check(subject: Subject) -> Breach | None:
        wrong: dict[str, tuple[float, float]] = {}
        for pair in subject.pairs:
            its, truth = factor(subject, pair), subject.truths.get(pair.key_prefix)
            if its is not None and truth is not None and abs(its - truth) > CLOSE * abs(truth):
                wrong[pair.path] = (its, truth)
        if not wrong:
            return None
        times = sorted({round(its / truth, 4) for its, truth in wrong.values() if truth})
        name, (its, truth) = next(iter(wrong.items()))
        span = (
            f"{times[0]:g}"
            if len(times) == 1
            else f"{times[0]:g} to {times[-1]:g}"
            if times
            else "wrong"
        )
        return Breach(
            f"{runtime} {reads}: {len(wrong)} of {len(subject.pairs)} modules get {span} times"
            f" their strength ({name}: {its:.4g} in place of {truth:.4g})",
            list(wrong),
        )

    return check


def config_scale(subject: Subject) -> float | None:
    """Return ``lora_alpha / r`` of the configuration."""
    alpha, rank = number(subject.fields.get("lora_alpha")), number(subject.fields.get("r"))
    return alpha / rank if alpha is not None and rank else None
