"""Reports: what was done to each module and what it cost, as data and as text.

The report of a rewrite is imported when it is first used: other verbs have rows of their own.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lora_tools.report.cells import NONE, shape, span
from lora_tools.report.document import (
    Document,
    command_line,
    grouped,
    remarks,
    removals,
    section,
)
from lora_tools.report.figures import error, kept, outcomes, percent, removed_shares, size, total
from lora_tools.report.markdown import block, code, plain
from lora_tools.report.table import Code, ranks_table, table

if TYPE_CHECKING:
    from lora_tools.report.report import SCHEMA, Change, Projected, Report
    from lora_tools.report.row import OUTCOMES, Row

_MODULE = {
    "SCHEMA": "report",
    "Change": "report",
    "Projected": "report",
    "Report": "report",
    "OUTCOMES": "row",
    "Row": "row",
}

__all__ = [
    "NONE",
    "OUTCOMES",
    "SCHEMA",
    "Change",
    "Code",
    "Document",
    "Projected",
    "Report",
    "Row",
    "block",
    "code",
    "command_line",
    "error",
    "grouped",
    "kept",
    "outcomes",
    "percent",
    "plain",
    "ranks_table",
    "remarks",
    "removals",
    "removed_shares",
    "section",
    "shape",
    "size",
    "span",
    "table",
    "total",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE[name]}"), name)
