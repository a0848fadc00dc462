"""The pieces of a Markdown report."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

import processes
from processes import QUIET, Usage

COSTS = ("wall s", "cpu s", "peak MB", "others' cores")


def section(title: str) -> tuple[str, ...]:
    """Return the lines of a Markdown heading."""
    return "", f"## {title}", ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table, figures to the right."""
    yield f"| {' | '.join(header)} |"
    yield f"|---|{'---:|' * (len(header) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def figures(usage: Usage) -> tuple[str, ...]:
    """Return a usage as cells, one for each of `COSTS`."""
    return f"{usage.wall:.2f}", f"{usage.cpu:.2f}", f"{usage.peak / 1e6:.0f}", f"{usage.others:.2f}"


def costs(usages: Iterable[tuple[str, Usage]]) -> Iterator[str]:
    """Yield a table of named usages."""
    yield from table(("", *COSTS), [(name, *figures(usage)) for name, usage in usages])


def medians(usages: Mapping[str, Sequence[Usage]], title: str) -> Iterator[str]:
    """Yield a section with the median of each command's figures."""
    yield from section(title)
    yield from costs((name, processes.median(runs)) for name, runs in usages.items())


def alternating(usages: Mapping[str, Sequence[Usage]]) -> Iterator[str]:
    """Yield a section with every run, in the order in which they ran."""
    yield from section("Every run, alternating")
    turns = zip(*usages.values(), strict=True)
    yield from costs(pair for turn in turns for pair in zip(usages, turn, strict=True))


def middle(ratios: Sequence[float], digits: int) -> tuple[str, str]:
    """Return the median of ratios and their range as cells."""
    span = f"{min(ratios):.{digits}f} to {max(ratios):.{digits}f}"
    return f"{statistics.median(ratios):.{digits}f}", span


def loud(usages: Mapping[str, Sequence[Usage]]) -> int:
    """Return how many runs shared the machine."""
    return sum(usage.others > QUIET for runs in usages.values() for usage in runs)


def disturbance(runs: int) -> Iterator[str]:
    """Yield the warning that so many runs shared the machine, if any did."""
    if runs:
        yield ""
        yield (
            f"**Not a quiet machine**: over {QUIET} cores of other work in {runs} runs."
            " Measure again."
        )
