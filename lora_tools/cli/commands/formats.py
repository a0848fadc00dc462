"""lora-tools formats: list what can be read and written."""

import click
from tabulate import tabulate

from lora_tools.cli.options import json_option
from lora_tools.formats.kinds import KINDS
from lora_tools.formats.registry import FORMATS, STRANGERS, plugins
from lora_tools.report import json_text


@click.command(short_help="List the formats that can be read and written.")
@json_option
def command(as_json: bool) -> None:
    """List the formats that can be read and written, and what each can say.

    Plain linear layers are in every format. KINDs are what an adapter may hold besides.
    """
    formats = (*FORMATS, *plugins())
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
        click.echo(json_text(document))
        return
    lines = [(row["format"], "yes", "yes" if row["write"] else "no", row["tools"]) for row in rows]
    click.echo(tabulate(lines, ("format", "read", "write", "whose"), disable_numparse=True))
    click.echo("\nbesides linear layers, each can say:")
    for format in formats:
        if format.expresses is None:
            continue
        said = [kind for kind in KINDS if kind in (format.expresses or ())]
        click.echo(f"  {format.name}: {', '.join(said) or 'nothing'}")
    click.echo("\nknown, and refused:")
    for _, reason in STRANGERS:
        click.echo(f"  {reason}")
