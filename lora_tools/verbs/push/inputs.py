"""What a published result was made from, by the sha256 of its inputs."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_tools.remote import RemotePath
from lora_tools.verbs.push.files import WEIGHTS_AND_CONFIGS, digest


def record(report: Path, inputs: Iterable[Path]) -> None:
    """Add the checksums of the inputs of a command to the report that it has written.

    Reads local inputs once; those on the Hub are known there, so that none is downloaded for it.
    """
    document = json.loads(report.read_bytes())
    document["inputs"] = [
        {"path": str(path), "files": {file.name: sha256(file) for file in _files(path)}}
        for path in inputs
    ]
    text = json.dumps(document, indent=2, ensure_ascii=False)
    report.write_text(text + "\n", encoding="utf-8")


def listed(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the inputs that a report records: path, file and sha256."""
    return [
        (str(each["path"]), name, str(found))
        for each in report.get("inputs", ())
        for name, found in each["files"].items()
    ]


def sha256(file: Path) -> str:
    """Return the sha256 of a file; of a large one on the Hub without fetching it."""
    known = file.snapshot.files[file.file].sha256 if isinstance(file, RemotePath) else None
    return known or digest(file).sha256


def _files(path: Path) -> Iterator[Path]:
    """Yield the files that decide what is computed from a path."""
    if not path.is_dir():
        yield path
        return
    for file in sorted(path.iterdir(), key=lambda file: file.name):
        if file.is_file() and WEIGHTS_AND_CONFIGS.fullmatch(file.name):
            yield file
