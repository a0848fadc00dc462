"""lora-tools formats: list what can be read and written."""

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
    formats = tuple(known())
    rows = [
        {
            "format": format.name,
            "tools": format.about,
            "write": format.supports is not None,
            "features": [feature for feature in FEATURES if feature in (format.supports or ())],
        }
        for format in formats
    ]
    if as_json:
        document = {
            "schema": "lora-tools/formats/1",
            "formats": rows,
            "features": FEATURES,
            "refused": [reason for _, reason in UNREADABLE],
        }
        show_json(document)
        return
    lines = [(row["format"], "yes", "yes" if row["write"] else "no", row["tools"]) for row in rows]
    show(table(lines, ("format", "read", "write", "whose")))
    show("\nbesides linear layers, each supports:")
    for format in formats:
        if format.supports is None:
            continue
        message = [feature for feature in FEATURES if feature in (format.supports or ())]
        show(f"  {format.name}: {', '.join(message) or 'nothing'}")
    show("\nknown, and refused:")
    for _, reason in UNREADABLE:
        show(f"  {reason}")
