"""lora-tools formats: list what can be read and written."""

from typing import Any

import click

from lora_tools.cli.console import show, show_json
from lora_tools.cli.options import json_option
from lora_tools.formats.features import FEATURES
from lora_tools.formats.registry import UNREADABLE, known
from lora_tools.report import table


@click.command(short_help="List the formats that can be read and written.")
@json_option
def command(as_json: bool) -> None:
    """List the formats that can be read and written, and what each supports.

    Plain linear layers are in every format. The features are what an adapter may hold besides.
    """
    rows: list[dict[str, Any]] = [
        {
            "format": format.name,
            "tools": format.about,
            "write": format.supports is not None,
            "supports": [feature for feature in FEATURES if feature in (format.supports or ())],
        }
        for format in known()
    ]
    if as_json:
        document = {
            "schema": "lora-tools/formats/2",
            "formats": rows,
            "features": FEATURES,
            "refused": [reason for _, reason in UNREADABLE],
        }
        show_json(document)
        return
    lines = [(row["format"], "yes", "yes" if row["write"] else "no", row["tools"]) for row in rows]
    show(table(lines, ("format", "read", "write", "whose")))
    show("\nbesides linear layers, each supports:")
    for row in rows:
        if row["write"]:
            show(f"  {row['format']}: {', '.join(row['supports']) or 'nothing'}")
    show("\nknown, and refused:")
    for _, reason in UNREADABLE:
        show(f"  {reason}")
