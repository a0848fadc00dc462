"""What a command that rewrites adapters leaves behind: OUT with a report and a card, a screen."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from lora_tools.adapter import README, REPORT, Adapter, write
from lora_tools.card import carry
from lora_tools.cli.console import show, show_json
from lora_tools.cli.inputs import inputs
from lora_tools.files.location import Location
from lora_tools.files.ours import Force
from lora_tools.files.sides import WEIGHTS
from lora_tools.files.writer import check_output, staged, staged_file
from lora_tools.formats.base import Format
from lora_tools.formats.manifest import Manifest
from lora_tools.text import visible

if TYPE_CHECKING:
    from lora_tools.update import Array, Update


class Rewritten(Protocol):
    """The report of a rewrite."""

    def remark(self, notes: Iterable[str]) -> None:
        """Take notes in."""
        ...

    def to_markdown(self) -> str:
        """Return it for a card."""
        ...

    def to_text(self) -> str:
        """Return it for a terminal."""
        ...

    def to_json(self) -> str:
        """Return it as JSON."""
        ...

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        ...


@dataclass(frozen=True, slots=True)
class Output:
    """Where a rewritten adapter goes: a folder, or a file where all of it is in one."""

    path: Path
    format: Format
    force: Force
    is_file: bool = False

    def check(self, adapters: Sequence[Adapter]) -> None:
        """Raise `OutputError` for what may not be written there, or would be one of the inputs."""
        found: dict[str, Location] = {}
        for adapter in adapters:
            name = "source" if len(adapters) == 1 else f"adapter {adapter.path}"
            found |= inputs(name, adapter.path, adapter.format.config_file)
        check_output(self.path, found, force=self.force)

    def write(
        self,
        manifest: Manifest,
        rows: Iterable[tuple[str, "Update"]],
        report: Rewritten,
        adapters: Sequence[Adapter],
        beside: Mapping[str, "Array"] | None = None,
    ) -> None:
        """Write the adapter and, in a folder, its report and the first adapter's card with it."""
        stage = staged_file if self.is_file else staged
        files = tuple(file for adapter in adapters for file in adapter.files)
        like = adapters[0]
        with stage(self.path, force=self.force, sources=files) as place:
            folder, name = (place.parent, place.name) if self.is_file else (place, None)
            write(folder, manifest, rows, like=like, format=self.format, name=name, beside=beside)
            if not self.is_file:
                section = report.to_markdown()
                report.remark(carry(like.path / README, place / README, section))
                report.save(place / REPORT)


def file_or_folder(out: Path, format: Format, force: Force) -> Output:
    """Return what OUT is by its ending; a usage error if the format is not written to such."""
    if out.suffix not in WEIGHTS:
        return Output(out, format, force)
    if format.config_file:
        raise click.UsageError(
            f"{format.name} has a configuration beside its tensors: OUT is a folder"
        )
    if out.suffix != format.container.suffix:
        raise click.UsageError(
            f"{format.name} is written to files that end in {format.container.suffix}"
        )
    return Output(out, format, force, is_file=True)


def conclude(report: Rewritten, out: Path, *, dry_run: bool, as_json: bool, quiet: bool) -> None:
    """Print the report, and where it has led."""
    if as_json:
        show_json(report.to_json())
    elif not quiet:
        show(report.to_text())
        show("nothing written (--dry-run)" if dry_run else f"written to {visible(str(out))}")
