"""Write docs/cli.md from the commands themselves; with ``--check``, only say whether it is old."""

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from lora_tools.cli import cli

PAGE = Path(__file__).parent / "cli.md"
WIDTH = 88
HEAD = """\
# Command line

Written by `python docs/generate.py` from the commands themselves.
"""


def contexts() -> Iterator[click.Context]:
    """Yield the context of the group and of each of its commands."""
    group = cli.make_context(
        "lora-tools", [], resilient_parsing=True, terminal_width=WIDTH, max_content_width=WIDTH
    )
    yield group
    for name in cli.list_commands(group):
        command = cli.get_command(group, name)
        yield command.make_context(name, [], parent=group, resilient_parsing=True)


def page() -> str:
    """Return the page that fits the commands as they are."""
    sections = [
        f"## {context.command_path}\n\n```text\n{context.get_help()}\n```\n"
        for context in contexts()
    ]
    return "\n".join([HEAD, *sections])


def main() -> int:
    """Write or check the page and return the exit status."""
    if "--check" not in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        print("docs/cli.md is stale: run `python docs/generate.py`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
