"""lora-tools formats: list what can be read and written."""

import click

from lora_tools.cli.console import show, show_json
from lora_tools.cli.options import json_option
from lora_tools.formats.kinds import KINDS
from lora_tools.formats.registry import STRANGERS, known
from lora_tools.report import table


@click.command(short_help="List the formats that can be read and written.")
@json_option
def command(as_json: bool) -> None:
    """List the formats that can be read and written, and what each can say.

    Plain linear layers are in every format. KINDs are what an adapter may hold besides.
    """
    formats = tuple(known())
    rows = [
        {
            "format": format.name,
            "tools": format.about,
            "write": format.expresses is not None,
            "kinds": [kind for kind in KINDS if kind in (format.expresses or ())],
        }
        for format in formats
    ]
    if as_json:
        document = {
            "schema": "lora-tools/formats/1",
            "formats": rows,
            "kinds": KINDS,
            "refused": [reason for _, reason in STRANGERS],
        }
        show_json(document)
        return
    lines = [(row["format"], "yes", "yes" if row["write"] else "no", row["tools"]) for row in rows]
    show(table(lines, ("format", "read", "write", "whose")))
    show("\nbesides linear layers, each can say:")
    for format in formats:
        if format.expresses is None:
            continue
        said = [kind for kind in KINDS if kind in (format.expresses or ())]
        show(f"  {format.name}: {', '.join(said) or 'nothing'}")
    show("\nknown, and refused:")
    for _, reason in STRANGERS:
        show(f"  {reason}")
