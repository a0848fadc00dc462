"""The log of a journal: a line that says for what purpose it was begun, and one a finished file."""

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lora_tools.files.disk import naming

LOG = "journal"
BLOCK = 1 << 20


def checksum(path: Path) -> tuple[int, int]:
    """Return the size of a file, and the CRC-32 of the sums of its blocks' 64-bit words.

    A page that a crash has lost, blanked or left old changes the sum of its block. Sums take a
    quarter of the time of a CRC-32 of everything; nobody forges these files.
    """
    size, crc, words = 0, 0, np.zeros(BLOCK // 8, np.uint64)
    block = words.data.cast("B")
    with naming(path), path.open("rb") as file:
        while count := file.readinto(block):
            whole = -(-count // 8)
            block[count : whole * 8] = bytes(whole * 8 - count)
            size, crc = size + count, zlib.crc32(words[:whole].sum(), crc)
    return size, crc


def line(folder: Path, name: str, note: Any) -> str:
    """Return the line of a finished file. Costs a reading of it."""
    size, crc = checksum(folder / name)
    return json.dumps({"file": name, "size": size, "crc": _with(crc, name, note), "note": note})


def _with(crc: int, name: str, note: Any) -> int:
    """Return a checksum that covers the line, too."""
    return zlib.crc32(json.dumps([name, note]).encode(), crc)


def append(log: Path, lines: Iterable[str]) -> None:
    """Add lines, and wait until they are on the disk."""
    with naming(log), log.open("a", encoding="utf-8") as file:
        file.write("".join(f"{each}\n" for each in lines))
        file.flush()
        os.fsync(file.fileno())


def read_log(log: Path) -> list[Any]:
    """Return the lines of a journal up to the first one that a crash has cut or blanked."""
    try:
        text = log.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    found = []
    for each in text:
        try:
            found.append(json.loads(each))
        except ValueError:
            break
    return found


def is_sound(folder: Path, entry: Any) -> bool:
    """Whether a file is still what its line says."""
    try:
        name, note = entry["file"], entry["note"]
        size, crc = checksum(folder / name)
        return bool(size == entry["size"] and _with(crc, name, note) == entry["crc"])
    except (OSError, LookupError, TypeError):
        return False


def begin_log(log: Path, purpose: Mapping[str, Any], entries: Iterable[Any]) -> None:
    """Write a log anew, at once."""
    new = log.with_suffix(".new")
    append(new, [json.dumps({"purpose": purpose}), *map(json.dumps, entries)])
    new.replace(log)
