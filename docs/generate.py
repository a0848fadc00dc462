"""Write docs/cli.md from the commands, and docs/runtimes.md from the tables of their rules.

With ``--check``, only say whether they are old.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from lora_tools.cli import cli
from lora_tools.runtimes import RUNTIMES, to_markdown

PAGE = Path(__file__).parent / "cli.md"
RUNTIMES_PAGE = Path(__file__).parent / "runtimes.md"
WIDTH = 88
HEAD = """\
# Command line

Written by `python docs/generate.py` from the commands themselves.
"""
RUNTIMES_HEAD = """\
# Runtimes

Written by `python docs/generate.py` from the tables in `lora_tools/runtimes`.

What a runtime makes of an adapter is one of four verdicts: it **loads**; it **loads at the wrong
strength**, when some of its updates are multiplied by another factor than the one they were trained
with, or are left out; it **loads but has no effect**; or it is **refused**. The verdict is the worst
of the rules below that the adapter breaks. A rule that only older versions have (*before*) makes a
remark, and so does what depends on the base model; remarks do not change the verdict.
`NAME@VERSION` asks for an older version.

Verdicts come from the names, shapes and alphas of the tensors, from the configuration and from the
names of the files beside them. Whether the base model has modules of these names and shapes is not
among them. The rules were read in the runtimes' own code, of the version that is named; the tests
hold those of peft and diffusers against the real packages.

Where `shrink` fixes it, the command is `lora-tools shrink SRC OUT --rank R`, with R the largest
rank that the adapter has: its error is that of rounding. `--for vllm` is added where one rank for
all modules is needed. For vLLM's `max-rank` R is the rank that the server takes, and the error is
that of the truncation.
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


def runtimes() -> str:
    """Return the page that fits the runtimes' rules as they are."""
    return "\n".join([RUNTIMES_HEAD, to_markdown(RUNTIMES)])


def main() -> int:
    """Write or check the pages and return the exit status."""
    for path, text in ((PAGE, page()), (RUNTIMES_PAGE, runtimes())):
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(f"docs/{path.name} is stale: run `python docs/generate.py`", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
