"""Our section of a published README: what was done, what it cost, what is in it, how to load it."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from tabulate import tabulate

from lora_tools.adapter import Adapter
from lora_tools.formats.manifest import Module
from lora_tools.model import Model
from lora_tools.names import collapse, template
from lora_tools.report import command_line, grouped, percent, size, total
from lora_tools.verbs.push.files import WEIGHTS_AND_CONFIGS, Digest
from lora_tools.verbs.push.inputs import listed
from lora_tools.verbs.push.leaks import shorten
from lora_tools.verbs.push.loading import loading
from lora_tools.verbs.push.picture import NAME


def section(
    subject: Adapter | Model,
    repo: str,
    base: str | None,
    digests: Mapping[str, Digest],
    report: Mapping[str, Any],
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


def _done(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the command that made it and from what, if it left a report."""
    if not (command := report.get("command")):
        return
    policy = f" ({report['policy']})" if report.get("policy") else ""
    source = shorten(str(report.get("source") or ""))
    yield f"`lora-tools {command}`{policy}" + (f" from `{source}`:" if source else ":")
    yield ""
    yield from command_line(shorten(str(report.get("arguments") or "")))


def _sentence(subject: Adapter | Model, base: str | None, digests: Mapping[str, Digest]) -> str:
    of = f"[{base}](https://huggingface.co/{base})" if base else "an unnamed base"
    if isinstance(subject, Model):
        count = len(subject.tensors)
        weights = sum(d.size for name, d in digests.items() if name.endswith(".safetensors"))
        kind = subject.architecture or "Model"
        return f"{kind}, made from {of}: {count:,} tensors, {size(weights)}."
    rank = _span({module.r for module in subject.manifest.modules})
    return (
        f"{subject.manifest.format.upper()} adapter of {of}: {len(subject)} modules of rank {rank},"
        f" {subject.params:,} parameters, {size(subject.nbytes)}."
    )


def _table(adapter: Adapter, report: Mapping[str, Any]) -> str:
    rows = {row["module"]: row for row in report.get("modules", ()) if "module" in row}
    known = all("error" in rows.get(name, {}) for name in adapter)
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
        lines.append([f"total of {len(adapter)}", "", "", "", "", *_errors(rows.values())])
    return tabulate(lines, headers, tablefmt="pipe", disable_numparse=True)


def _errors(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the error of modules together, and the least possible, as people read them."""
    rows = list(rows)
    return [
        percent(total((row.get("norm", 1.0), row.get(name) or 0.0) for row in rows))
        for name in ("error", "optimal_error")
    ]


def _costs(report: Mapping[str, Any]) -> Iterator[str]:
    totals = report.get("totals", {})
    if "error" not in totals:
        return
    best = totals.get("optimal_error")
    yield (
        f"*error* is ‖ΔW − ΔW'‖ / ‖ΔW‖ of the bytes in the file: {percent(totals['error'])}"
        + (f", where {percent(best)} is the least possible at these ranks." if best else ".")
    )
    yield ""


def _picture(digests: Mapping[str, Digest]) -> Iterator[str]:
    if NAME in digests:
        yield from (f"![Norms of the modules, spectra and what lower ranks cost]({NAME})", "")


def _files(digests: Mapping[str, Digest]) -> Iterator[str]:
    lines = [
        (f"`{name}`", size(found.size), f"`{found.sha256}`")
        for name, found in digests.items()
        if WEIGHTS_AND_CONFIGS.fullmatch(name)
    ]
    yield tabulate(lines, ("file", "size", "sha256"), tablefmt="pipe", disable_numparse=True)


def _inputs(report: Mapping[str, Any]) -> Iterator[str]:
    if found := listed(report):
        lines = [(f"`{shorten(path)}`", f"`{name}`", f"`{sha}`") for path, name, sha in found]
        yield from ("", "Made from:", "")
        yield tabulate(lines, ("input", "file", "sha256"), tablefmt="pipe", disable_numparse=True)


def _span(values: Collection[float]) -> str:
    low, high = (f"{value:.4g}" for value in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"


def _key(module: Module) -> tuple[Any, ...]:
    return template(module.name), module.shape
