"""Reports: what was done to each module and what it cost, as data and as text."""

from lora_tools.report.document import Document, command_line, grouped, json_text, section
from lora_tools.report.figures import percent, shares, size, total
from lora_tools.report.report import SCHEMA, Change, Report, Row

__all__ = [
    "SCHEMA",
    "Change",
    "Document",
    "Report",
    "Row",
    "command_line",
    "grouped",
    "json_text",
    "percent",
    "section",
    "shares",
    "size",
    "total",
]
