"""Reports: what was done to each module and what it cost, as data and as text."""

from lora_tools.report.document import Document, command_line, grouped, json_text, section
from lora_tools.report.figures import percent, size, total
from lora_tools.report.report import SCHEMA, Change, Report
from lora_tools.report.row import OUTCOMES, Row

__all__ = [
    "OUTCOMES",
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
    "size",
    "total",
]
