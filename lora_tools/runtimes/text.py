"""Judgements for the terminal, and the rules as a page."""

from collections.abc import Iterable, Iterator, Sequence
from textwrap import wrap

from lora_tools.errors import some
from lora_tools.names import collapse, template
from lora_tools.runtimes.base import MOST_NAMED, Finding, Judgement, Rule, Runtime, Verdict
from lora_tools.text import joined, visible

WIDTH = 100


def to_text(judgements: Sequence[Judgement], width: int = WIDTH) -> str:
    """Return a block per runtime: its verdict, and of each finding why, where and what fixes it."""
    margin = max(
        (len(f"{judgement.runtime} {judgement.version}") for judgement in judgements), default=0
    )
    return joined(line for judgement in judgements for line in _block(judgement, margin, width))


def to_markdown(runtimes: Iterable[Runtime]) -> str:
    """Return a table of rules for each runtime."""
    return "\n".join(line for runtime in runtimes for line in _table(runtime))


def _block(judgement: Judgement, margin: int, width: int) -> Iterator[str]:
    title = f"{judgement.runtime} {judgement.version}"
    yield f"{title:<{margin}}  {judgement.verdict}"
    for finding in judgement.findings:
        yield from _lines(finding, margin + 2, width)


def _lines(finding: Finding, margin: int, width: int) -> Iterator[str]:
    verdict = "note" if finding.verdict is Verdict.LOADS else str(finding.verdict)
    yield from _wrapped(f"{finding.rule}: ", finding.why, margin, width)
    if finding.where:
        yield from _wrapped("", _where(finding.where), margin + 2, width)
    if finding.fix:
        label = "fix it: " if verdict != "note" else "to be safe: "
        yield f"{'':{margin + 2}}{label}{finding.fix}"  # whole, so that it can be copied


def _where(names: Sequence[str]) -> str:
    """Name the offenders, repeated layers in one."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(template(name), []).append(name)
    return some((collapse(group) for group in groups.values()), MOST_NAMED)


def _wrapped(label: str, text: str, margin: int, width: int) -> list[str]:
    indent = " " * margin
    return wrap(
        visible(label + text),  # which has no line ends of its own
        width,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _table(runtime: Runtime) -> Iterator[str]:
    yield f"## {runtime.name}"
    yield ""
    yield f"As of {runtime.version}: {runtime.source}."
    yield ""
    yield from _rows(runtime.rules)
    if runtime.own:
        ending, rules = runtime.own
        yield from (f"Of {ending} files:", "")
        yield from _rows(rules)


def _rows(rules: Iterable[Rule]) -> Iterator[str]:
    yield "| rule | what the runtime does | an adapter that breaks it | fixed by |"
    yield "|---|---|---|---|"
    for rule in rules:
        does = rule.text.replace("|", "\\|") + _span(rule)
        verdict = "loads, with a remark" if rule.verdict is Verdict.LOADS else str(rule.verdict)
        if rule.whole:
            verdict += f"; if all of it does: {rule.whole}"
        yield f"| `{rule.name}` | {does} | {verdict} | {'`shrink`' if rule.fix else '–'} |"
    yield ""


def _span(rule: Rule) -> str:
    return (f" (Since {rule.since}.)" if rule.since else "") + (
        f" (Before {rule.until}.)" if rule.until else ""
    )
