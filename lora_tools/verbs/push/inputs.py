"""What a published result was made from, by the sha256 of its inputs."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from lora_tools.files.disk import write_text
from lora_tools.files.location import Location, entries, known_sha256, local
from lora_tools.files.objects import read_object
from lora_tools.files.typed import Fields
from lora_tools.files.writer import staged_file
from lora_tools.text import json_text
from lora_tools.verbs.push.files import WEIGHTS_AND_CONFIGS, digest


def record(report: Path, inputs: Iterable[Location]) -> None:
    """Add the checksums of the inputs of a command to the report that it has written.

    Reads local inputs once; those on the Hub are known there, so that none is downloaded for it.
    """
    document = read_object(report)
    document["inputs"] = [
        {"path": str(path), "file": file.name, "sha256": sha256(file)}
        for path in inputs
        for file in _files(path)
    ]
    with staged_file(report, force="any", sources=[report]) as place:
        write_text(place, json_text(document) + "\n")


def listed(report: Fields) -> list[tuple[str, ...]]:
    """Return the inputs that a report records: path, file and sha256."""
    fields = ("path", "file", "sha256")
    return [tuple(each.text(field) or "" for field in fields) for each in report.objects("inputs")]


def sha256(file: Location) -> str:
    """Return the sha256 of a file; of a large one on the Hub without fetching it."""
    return known_sha256(file) or digest(local(file)).sha256


def _files(path: Location) -> Iterator[Location]:
    """Yield the files that decide what is computed from a path."""
    if not path.is_dir():
        yield path
        return
    for file in entries(path):
        if file.is_file() and WEIGHTS_AND_CONFIGS.fullmatch(file.name):
            yield file
