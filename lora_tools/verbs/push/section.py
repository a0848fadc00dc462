"""Our section of a published README: what was done, what it cost, what is in it, how to load it."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from lora_tools.adapter import Adapter
from lora_tools.files.typed import Fields
from lora_tools.formats.manifest import Module
from lora_tools.model import Model
from lora_tools.names import collapse, template
from lora_tools.report import Code, code, command_line, grouped, percent, plain, size, table, total
from lora_tools.report.table import PIPE
from lora_tools.verbs.push.files import WEIGHTS_AND_CONFIGS, Digest
from lora_tools.verbs.push.inputs import listed
from lora_tools.verbs.push.loading import loading
from lora_tools.verbs.push.paths import shorten
from lora_tools.verbs.push.picture import NAME

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def section(
    subject: Adapter | Model,
    repo: str,
    base: str | None,
    digests: Mapping[str, Digest],
    report: Fields,
) -> str:
    """Return the section, without its markers. The same input gives the same text."""
    lines = ["## Made with lora-tools", "", *_done(report)]
    lines += [_sentence(subject, base, digests), ""]
    if isinstance(subject, Adapter):
        lines += [_table(subject, report), ""]
    lines += [*_costs(report), *_picture(digests)]
    lines += ["### Loading it", "", *loading(subject, repo, base)]
    lines += ["### Files", "", *_files(digests), *_inputs(report)]
    return "\n".join(lines).rstrip()


def _done(report: Fields) -> Iterator[str]:
    """Yield the command that made it and from what, if it left a report."""
    if not (command := report.text("command")):
        return
    policy = f" ({plain(stated)})" if (stated := report.text("policy")) else ""
    source = shorten(report.text("source") or "")
    made = code(f"lora-tools {command}")
    yield f"{made}{policy}" + (f" from {code(source)}:" if source else ":")
    yield ""
    yield from command_line(shorten(report.text("arguments") or ""))


def _sentence(subject: Adapter | Model, base: str | None, digests: Mapping[str, Digest]) -> str:
    of = _link(base) if base else "an unnamed base"
    if isinstance(subject, Model):
        count = len(subject.tensors)
        weights = sum(d.size for name, d in digests.items() if name.endswith(".safetensors"))
        kind = plain(subject.architecture or "Model")
        return f"{kind}, made from {of}: {count:,} tensors, {size(weights)}."
    rank = _span({module.r for module in subject.manifest.modules})
    return (
        f"{subject.manifest.format.upper()} adapter of {of}: {len(subject)} modules of rank {rank},"
        f" {subject.params:,} parameters, {size(subject.nbytes)}."
    )


def _link(base: str) -> str:
    """Return a base model's name, as a link where it is one on the Hub."""
    return f"[{base}](https://huggingface.co/{base})" if HUB_NAME.fullmatch(base) else plain(base)


def _table(adapter: Adapter, report: Fields) -> str:
    rows = {row.text("module"): row for row in report.objects("modules")}
    known = all(name in rows and "error" in rows[name].values for name in adapter)
    lines = []
    for group in grouped(adapter.manifest.modules, _key):
        first = group[0]
        line = [
            collapse([module.name for module in group]),
            str(len(group)),
            "×".join(map(str, first.shape)),
            _span({module.r for module in group}),
            _span({module.scale for module in group}),
        ]
        lines.append(line + (_errors(rows[module.name] for module in group) if known else []))
    headers = ["module", "count", "shape", "rank", "scale"]
    if known:
        headers += ["error", "best possible"]
        every = (row for name, row in rows.items() if name is not None)
        lines.append([f"total of {len(adapter)}", "", "", "", "", *_errors(every)])
    return table(lines, headers, PIPE)


def _errors(rows: Iterable[Fields]) -> list[str]:
    """Return the error of modules together, and the least possible, as people read them."""
    rows = list(rows)
    return [
        percent(total((_norm(row), row.number(name) or 0.0) for row in rows))
        for name in ("error", "optimal_error")
    ]


def _norm(row: Fields) -> float:
    norm = row.number("norm")
    return 1.0 if norm is None else norm


def _costs(report: Fields) -> Iterator[str]:
    totals = report.mapping("totals")
    if (error := totals.number("error")) is None:
        return
    best = totals.number("optimal_error")
    yield (
        f"*error* is ‖ΔW − ΔW'‖ / ‖ΔW‖ of the bytes in the file: {percent(error)}"
        + (f", where {percent(best)} is the least possible at these ranks." if best else ".")
    )
    yield ""


def _picture(digests: Mapping[str, Digest]) -> Iterator[str]:
    if NAME in digests:
        yield from (f"![Norms of the modules, spectra and what lower ranks cost]({NAME})", "")


def _files(digests: Mapping[str, Digest]) -> Iterator[str]:
    lines = [
        (Code(name), size(found.size), Code(found.sha256))
        for name, found in digests.items()
        if WEIGHTS_AND_CONFIGS.fullmatch(name)
    ]
    yield table(lines, ("file", "size", "sha256"), PIPE)


def _inputs(report: Fields) -> Iterator[str]:
    if found := listed(report):
        lines = [(Code(shorten(path)), Code(name), Code(sha)) for path, name, sha in found]
        yield from ("", "Made from:", "")
        yield table(lines, ("input", "file", "sha256"), PIPE)


def _span(values: Collection[float]) -> str:
    low, high = (f"{value:.4g}" for value in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"


def _key(module: Module) -> tuple[Any, ...]:
    return template(module.name), module.shape
