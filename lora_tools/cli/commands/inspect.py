"""lora-tools inspect: show what is in an adapter."""

import json
from itertools import groupby
from pathlib import Path

import click
from tabulate import tabulate

from lora_tools.adapter import Adapter, read
from lora_tools.cli.options import json_option, source_argument
from lora_tools.formats.base import Module
from lora_tools.names import collapse, template
from lora_tools.ops.inspect import inspect
from lora_tools.report import size


@click.command(short_help="Show what is in an adapter.")
@source_argument
@json_option
def command(source: Path, as_json: bool) -> None:
    """Show what is in the adapter SOURCE, a folder or a file.

    Reads only the header and the configuration: format, base model, and for each module its
    shape, rank, alpha, scale and element type, repeated layers in one line.
    """
    adapter = read(source)
    if as_json:
        click.echo(json.dumps(inspect(adapter).to_dict(), indent=2, ensure_ascii=False))
    else:
        click.echo(_text(adapter))


def _text(adapter: Adapter) -> str:
    manifest = adapter.manifest
    modules = sorted(manifest.modules, key=_key)
    lines = [
        (
            collapse([module.name for module in group]),
            len(group),
            "×".join(map(str, group[0].shape)),
            group[0].r,
            f"{group[0].alpha:g}" if group[0].alpha is not None else "–",
            f"{group[0].scale:.4g}",
            group[0].dtype,
        )
        for group in (list(found) for _, found in groupby(modules, key=_key))
    ]
    headers = ("module", "count", "shape", "rank", "alpha", "scale", "dtype")
    extras = [extra.kind for extra in manifest.extras]
    base = manifest.base_model or "an unnamed base"
    count = len(manifest.modules)
    return "\n".join(
        [
            f"{adapter.path}: {manifest.format} adapter of {base}",
            "",
            tabulate(lines, headers, disable_numparse=True),
            "",
            f"{count} modules, {adapter.params:,} parameters, {size(adapter.nbytes)}",
            *(f"also: {extras.count(kind)} × {kind}" for kind in dict.fromkeys(extras)),
            *(f"note: {note}" for note in manifest.notes),
        ]
    )


def _key(module: Module) -> tuple[object, ...]:
    return (
        template(module.name),
        module.shape,
        module.r,
        module.alpha or 0.0,
        module.rslora,
        module.dtype,
    )
