"""Reports: what was done to each module and what it cost, as data and as text."""

from lora_tools.report.document import Document, command_line, grouped, section
from lora_tools.report.figures import percent, shares, size, total
from lora_tools.report.markdown import block, code, plain
from lora_tools.report.report import SCHEMA, Change, Report
from lora_tools.report.row import OUTCOMES, Row
from lora_tools.report.table import Code, table

__all__ = [
    "OUTCOMES",
    "SCHEMA",
    "Change",
    "Code",
    "Document",
    "Report",
    "Row",
    "block",
    "code",
    "command_line",
    "grouped",
    "percent",
    "plain",
    "section",
    "shares",
    "size",
    "table",
    "total",
]
