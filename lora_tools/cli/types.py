"""The types of the values of options: sizes, shares, ranks, devices, places."""

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_tools.cli.console import say
from lora_tools.errors import CheckpointError, suggestion
from lora_tools.files.location import Location
from lora_tools.hub import SCHEMES, is_remote

if TYPE_CHECKING:
    from lora_tools.files.parts import Part

POSITIVE = click.IntRange(min=1)
UNITS = {"": 1, "B": 1}
UNITS |= {f"{prefix}B": 1000**power for power, prefix in enumerate("kMG", 1)}
UNITS |= {f"{prefix}iB": 1024**power for power, prefix in enumerate("KMG", 1)}


class ByteSize(click.ParamType[int]):
    """A number of bytes: 20MB (10^6), 12MiB (2^20), 500000."""

    name = "size"

    def convert(self, value: Any, param: Any, context: Any) -> int:
        """Return the number of bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([0-9.]+)\s*([A-Za-z]*)", value)
        unit = match and next((u for u in UNITS if u.lower() == match[2].lower()), None)
        try:
            if match is None or unit is None:
                raise ValueError
            return int(float(match[1]) * UNITS[unit])
        except ValueError:
            self.fail(f"{value!r} is not a size such as 20MB or 12MiB.", param, context)


class CountOrShare(click.ParamType["int | float"]):
    """A whole number, or a share written as a percentage."""

    name = "n|p%"

    def convert(self, value: Any, param: Any, context: Any) -> int | float:
        """Return an int for a number and a float in (0, 1] for a percentage."""
        if isinstance(value, int | float):
            return value
        try:
            share = value.endswith("%")
            number = float(value[:-1]) / 100 if share else int(value.replace(",", ""))
            if not 0 < number <= (1 if share else number):
                raise ValueError
            return number
        except ValueError:
            self.fail(f"{value!r} is no number above 0 or percentage to 100.", param, context)


class PatternRank(click.ParamType["tuple[str, int]"]):
    """A pattern of module names and a rank: ``q_proj=8``."""

    name = "pattern=n"

    def convert(self, value: Any, param: Any, context: Any) -> tuple[str, int]:
        """Return the pattern and the rank."""
        if isinstance(value, tuple):
            return value
        pattern, _, rank = value.rpartition("=")
        if not pattern or not rank.isdigit() or int(rank) < 1:
            self.fail(f"{value!r} is not PATTERN=N with N at least 1.", param, context)
        return pattern, int(rank)


class PartOf(click.ParamType["Part"]):
    """A part of a command: ``2/7``."""

    name = "i/n"

    def convert(self, value: Any, param: Any, context: Any) -> "Part":
        """Return the part."""
        from lora_tools.files.parts import Part  # few runs need it

        if isinstance(value, Part):
            return value
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", value)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            self.fail(f"{value!r} is not I/N with I from 1 to N.", param, context)
        return Part(int(match[1]), int(match[2]))


class DeviceName(click.ParamType[str]):
    """A torch device; whether it is there is checked when it is used."""

    name = "device"

    def convert(self, value: Any, param: Any, context: Any) -> str:
        """Return the name."""
        if not re.fullmatch(r"cpu|cuda(:\d+)?|mps", value):
            self.fail(f"{value!r} is not cpu, cuda, cuda:N or mps.", param, context)
        return str(value)


class LocalOrHub(click.ParamType[Location]):
    """A path here, or one on the Hub, whose files are fetched when they are opened."""

    name = "path"

    def convert(self, value: str | Location, param: Any, context: Any) -> Location:
        """Return the path; one on the Hub is pinned to its commit, and stderr says to which."""
        if not isinstance(value, str):
            return value
        if not value.startswith(SCHEMES):
            _check_near(value)
        if not is_remote(value):
            return Path(value)
        from lora_tools.hub.location import pinned  # local paths need no huggingface_hub
        from lora_tools.hub.reading import hide_progress

        quiet = "--quiet" in sys.argv
        if quiet or not sys.stderr.isatty():
            hide_progress()
        location = pinned(value)
        if not quiet:
            partial = location.snapshot.partial
            offline = " (offline: as much of it as the cache has)" if partial else ""
            say(f"{value}: {location}{offline}")
        return location


def _check_near(text: str) -> None:
    """Raise `CheckpointError` for what is not here, and nearly is: the Hub is not asked for it."""
    path = Path(text)
    if os.path.lexists(path) or not (path.parent.is_dir() and os.access(path.parent, os.R_OK)):
        return
    if meant := suggestion(path.name, (each.name for each in path.parent.iterdir())):
        error = CheckpointError(f"{text}: no such file or folder").hint(meant.strip())
        if is_remote(text):
            error.hint(f"On the Hub it would be hf://{text}.")
        raise error
