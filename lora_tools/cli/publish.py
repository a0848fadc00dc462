"""The options of publishing, on whichever command."""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any

import click

from lora_tools.files.location import Location
from lora_tools.files.sides import WEIGHTS

REPO = re.compile(r"\w[\w.-]*/\w[\w.-]*")


class Repo(click.ParamType[str]):
    """A repository on the Hub to write to."""

    name = "org/name"

    def convert(self, value: Any, param: Any, context: Any) -> str:
        """Return ``org/name``."""
        name = str(value).removeprefix("hf://")
        if not REPO.fullmatch(name):
            self.fail(f"{value!r} is not ORG/NAME.", param, context)
        return name


visibility_option = click.option(
    "--private/--public",
    "private",
    default=None,
    help="Who may see the repository; required for a new one.",
)


def push_to_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--push-to`` and ``--private/--public`` to a command that writes a folder ``out``.

    What would be refused is refused before the command begins; OUT is published once it is whole.
    """

    @wraps(function)
    def command(push_to: str | None, private: bool | None, **options: Any) -> Any:
        if push_to is None:
            if private is not None:
                raise click.UsageError("--private and --public go with --push-to")
            return function(**options)
        if options["dry_run"]:
            raise click.UsageError("--push-to publishes OUT, which --dry-run does not write")
        if options.get("part"):
            raise click.UsageError("--push-to publishes OUT, which --part does not write")
        if options["out"].suffix in WEIGHTS:
            raise click.UsageError("--push-to publishes a folder, and OUT is a file")
        from lora_tools.cli.publication import Publication  # a few milliseconds, for few runs

        publication = Publication(push_to, private)
        publication.check()
        status = function(**options)
        publication.run(options["out"], _inputs(options), quiet=options["quiet"])
        return status

    option = click.option(
        "--push-to", type=Repo(), metavar="ORG/NAME", help="Publish OUT on the Hub when it is done."
    )
    return option(visibility_option(command))


def _inputs(options: Mapping[str, Any]) -> Iterator[Location]:
    """Yield the paths among a command's options that it reads from."""
    for name in ("source", "base", "tuned", "adapters"):
        value = options.get(name)
        yield from (value if isinstance(value, tuple) else (value,) if value else ())
