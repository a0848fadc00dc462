"""lora-tools convert: spell an adapter in another tool's format."""

import shlex
import sys
import time
from pathlib import Path

import click

from lora_tools.adapter import README, REPORT, Adapter, read, write
from lora_tools.card import with_section
from lora_tools.cli.console import Visible
from lora_tools.cli.options import (
    alpha_option,
    base_option,
    dry_run_option,
    dtype_option,
    force_option,
    jobs_option,
    json_option,
    make_engine,
    out_argument,
    quiet_option,
    source_argument,
)
from lora_tools.cli.publish import push_to_option
from lora_tools.formats.registry import format_named
from lora_tools.model import open_model
from lora_tools.storage.sides import WEIGHTS
from lora_tools.storage.writer import check_output, staged, staged_file


@click.command(short_help="Spell an adapter in another tool's format.")
@source_argument
@out_argument
@click.option("--to", "target", metavar="FORMAT", required=True, help="Format to write.")
@click.option("--format", "own", metavar="FORMAT", help="Format of SOURCE.  [default: recognised]")
@alpha_option
@base_option(
    "Base model: its names give flattened ones their dots back, its config.json says the heads"
    " that some formats leave out."
)
@click.option("--drop", multiple=True, metavar="KIND", help="Go on without KIND; repeatable.")
@dtype_option()
@jobs_option("one per core")
@push_to_option
@dry_run_option("Report without writing.")
@json_option
@force_option()
@quiet_option
def command(
    source: Path,
    out: Path,
    target: str,
    own: str | None,
    alpha: float | None,
    base: Path | None,
    drop: tuple[str, ...],
    dtype: str | None,
    jobs: int | None,
    dry_run: bool,
    as_json: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Write the adapter SOURCE in another FORMAT to OUT, with the same updates.

    OUT is a folder, or a file with the ending .safetensors where the format has no configuration
    beside its tensors. Scales that FORMAT cannot say are folded into the factors; what it cannot
    say at all is refused by name. `lora-tools formats` lists formats and KINDs.
    """
    from lora_tools.ops.convert import convert  # imports numpy

    began = time.monotonic()
    format = format_named(target)
    single = out.suffix in WEIGHTS
    if single and format.config_file:
        raise click.UsageError(f"{target} has a configuration beside its tensors: OUT is a folder")
    model = open_model(base) if base else None
    adapter = read(source, own, base=model.config if model else None, alpha=alpha)
    if not dry_run:
        inputs = {"source": source}
        if adapter.format.config_file and not source.is_dir():
            inputs["folder of the source"] = source.parent
        check_output(out, inputs, force=force)
    engine = make_engine("cpu", jobs)
    paths = [key.removesuffix(".weight") for key in model.tensors] if model else ()
    converted = convert(
        adapter,
        format,
        engine if quiet else Visible(engine),
        drop=drop,
        paths=paths,
        dtype=dtype,
    )
    outcome = converted.outcome(began)
    outcome.arguments = shlex.join(["lora-tools", *sys.argv[1:]])
    rows = outcome.watch(converted)
    if dry_run:
        for _ in rows:
            pass
    else:
        with (staged_file if single else staged)(out, force=force) as place:
            folder, name = (place.parent, place.name) if single else (place, None)
            manifest = converted.manifest
            write(folder, manifest, rows, like=adapter, format=format, name=name)
            if not single:
                _write_readme(adapter, place, outcome.to_markdown())
                outcome.save(place / REPORT)
    if as_json:
        click.echo(outcome.to_json())
    elif not quiet:
        click.echo(outcome.to_text())
        click.echo("nothing written (--dry-run)" if dry_run else f"written to {out}")


def _write_readme(adapter: Adapter, place: Path, section: str) -> None:
    """Carry a README over with a section about what was done."""
    readme = adapter.path / README
    if readme.is_file():
        text = with_section(readme.read_text(encoding="utf-8"), section)
        (place / README).write_text(text, encoding="utf-8")
