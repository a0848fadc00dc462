"""The pieces of a Markdown report."""

from collections.abc import Iterator, Sequence

from processes import QUIET


def section(title: str) -> tuple[str, ...]:
    """Return the lines of a Markdown heading."""
    return "", f"## {title}", ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table, figures to the right."""
    yield f"| {' | '.join(header)} |"
    yield f"|---|{'---:|' * (len(header) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def disturbance(runs: int) -> str:
    """Return the warning that so many runs shared the machine."""
    return (
        f"**Not a quiet machine**: over {QUIET} cores of other work in {runs} runs. Measure again."
    )
