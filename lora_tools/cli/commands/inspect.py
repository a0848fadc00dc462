"""lora-tools inspect: show what is in an adapter."""

import json
from pathlib import Path
from typing import Any

import click

from lora_tools.adapter import Adapter
from lora_tools.cli.console import Visible, say
from lora_tools.cli.options import engine_options, json_option, make_engine, source_argument
from lora_tools.engine import Engine, Serial
from lora_tools.model import open_model
from lora_tools.ops.inspect import Inspection, Listing, inspect, look
from lora_tools.ops.inspect.text import listing_text, to_text


@click.command(short_help="Show what is in an adapter.")
@source_argument
@click.option(
    "--spectrum",
    is_flag=True,
    help="Read the factors: norms, singular values, ranks that are enough, what each rank costs.",
)
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="Compare with the base model: a folder, an index or a file. Implies --spectrum.",
)
@click.option("--full", is_flag=True, help="A line for each module, not for each pattern.")
@engine_options
@json_option
def command(
    source: Path,
    spectrum: bool,
    base: Path | None,
    full: bool,
    device: str,
    jobs: int | None,
    as_json: bool,
) -> int:
    """Show what is in the adapter SOURCE, a folder or a file.

    Reads only the header and the configuration, unless asked for more: format, base model, what
    trained it, and for each pattern of modules shape, rank, alpha, scale and element type. A
    checkpoint that is no adapter is listed by its tensors.
    """
    found = look(source)
    if isinstance(found, Listing):
        return _list(found, as_json=as_json)
    wanted = spectrum or base is not None
    engine = Visible(make_engine(device, jobs)) if wanted else Serial()
    document = _inspect(found, engine, device, spectrum=wanted, base=base).to_dict()
    click.echo(_json(document) if as_json else to_text(document, full=full))
    return 1 if document["problems"] else 0


def _inspect(
    adapter: Adapter, engine: Engine, device: str, *, spectrum: bool, base: Path | None
) -> Inspection:
    model = open_model(base) if base else None
    return inspect(adapter, spectrum=spectrum, base=model, engine=engine, device=device)


def _list(listing: Listing, *, as_json: bool) -> int:
    document = listing.to_dict()
    click.echo(_json(document) if as_json else listing_text(document))
    if not listing.is_adapter:
        return 0
    say(f"{click.style('error:', fg='red')} not understood: {document['reason']}")
    for note in () if listing.stranger else getattr(listing.reason, "__notes__", ()):
        say(f"{click.style('hint:', fg='cyan')} {note}")
    return 1


def _json(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False)
