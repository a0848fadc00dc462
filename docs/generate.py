"""Write docs/cli.md from the commands, and the pages that tables are behind from those.

With ``--check``, only say whether they are old.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap

import click

from lora_tools.cli import cli
from lora_tools.report.schemas import SCHEMAS, Schema
from lora_tools.report.vocabulary import FIELDS, Field
from lora_tools.runtimes import RUNTIMES, to_markdown

PAGE = Path(__file__).parent / "cli.md"
RUNTIMES_PAGE = Path(__file__).parent / "runtimes.md"
REPORT_PAGE = Path(__file__).parent / "report.md"
IMAGES_PAGE = Path(__file__).parent / "architectures_images.md"
CELLS = Path(__file__).parent / "image_models.json"
WIDTH = 88
HEAD = """\
# Command line

Written by `python docs/generate.py` from the commands themselves.
"""
IMAGES_HEAD = """\
# Image and video models: what works

Written by `python docs/generate.py` from `image_models.json`, which `tests/test_image_models.py`
holds against what happens, cell by cell, with tiny random models that diffusers makes.

✓: it works. What is converted adds the same to each weight as diffusers' own converter makes of
the source, to 10⁻⁶ in float64; what is merged is the weight and that, to rounding, and `verify`
passes it and not the base; what is extracted from a merge is what was merged. Sources are LoRAs of
every linear layer as kohya's trainers, ComfyUI's and diffusers name them. *Back*: to kohya or
ComfyUI and back to diffusers. *Diff*: an adapter and its own conversion are the same. A number:
refused, for the reason below the table.

Stable Diffusion XL has a test of its whole pipeline besides, with both text encoders
(`tests/test_sdxl.py`), Wan 2.2 of its two transformers (`tests/verbs/merge/test_containers.py`).
[Image and video models](image-models.md) has the commands.
"""
RUNTIMES_HEAD = """\
# Runtimes

Written by `python docs/generate.py` from the tables in `lora_tools/runtimes`.

What a runtime makes of an adapter is one of four verdicts: it **loads**; it **loads at the wrong
strength**, when some of its updates are multiplied by another factor than the one they were trained
with, or are left out; it **loads but has no effect**; or it is **refused**. The verdict is the
worst of the rules below that the adapter breaks. A rule that only older versions have (*before*)
makes a remark, and so does what depends on the base model; remarks do not change the verdict.
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
REPORT_HEAD = """\
# Reports and JSON

Written by `python docs/generate.py` from the tables in `lora_tools/report`.

Every document is named by its `schema` field. A field has one name and one meaning, whichever
document it is in: they are listed once, [below](#fields).

**Versions.** Within a version fields are only added: none is removed or renamed, and none changes
its type or meaning. Anything else gets the next number. Ignore fields that you do not know, and
check `schema`.

Files are UTF-8. Characters that act on a terminal or that a reader does not see (controls, marks of
direction, zero widths, halves of surrogate pairs) are JSON's escapes; parsed, each string is what
the file has. Lists of modules are in the order of the adapter's file, unless base layers tie
ranks together; look modules up by name. Errors are relative Frobenius norms (0.1 is 10 %), norms
and singular values are those of ΔW with its scale. Numbers are as computed, not rounded.
"""
FIELDS_HEAD = """\
## Fields

`_before` and `_after` stand for the two sides of a change, `_a` and `_b` for the two adapters of a
diff. Without them `rank`, `params` and `bytes` are those of what is described; `shape`, `alpha`,
`scale` and `dtype` are those of the file that is described or written. In `totals`, `modules` and
`tensors` are numbers. `list of pairs` are lists of two strings; `object: integer` is an object
whose keys are data and whose values are integers.

| field | type | unit | meaning |
|---|---|---|---|
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


def report() -> str:
    """Return the page that fits the reports as they are."""
    index = [
        f"| [`{name}`](#{_anchor(name)}) | {schema.origin} |" for name, schema in SCHEMAS.items()
    ]
    lines = [REPORT_HEAD, "| schema | from |", "|---|---|", *index, ""]
    for name, schema in SCHEMAS.items():
        lines += _document(name, schema)
    rows = [_field(path, field) for path, field in sorted(FIELDS.items())]
    return "\n".join([*lines, FIELDS_HEAD + "\n".join(rows), ""])


def images() -> str:
    """Return the page that fits the cells as the tests have them."""
    cells = json.loads(CELLS.read_text(encoding="utf-8"))
    columns = list(next(iter(cells.values())))
    reasons = dict.fromkeys(v for row in cells.values() for v in row.values() if v != "works")
    marks = {"works": "✓"} | {reason: str(n) for n, reason in enumerate(reasons, 1)}
    lines = [f"| model | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, row in cells.items():
        lines.append(f"| {name} | {' | '.join(marks[row[column]] for column in columns)} |")
    lines += ["", *(f"{number}. {reason}" for reason, number in marks.items() if number != "✓")]
    return "\n".join([IMAGES_HEAD, *lines]).rstrip() + "\n"


def _document(name: str, schema: Schema) -> Iterator[str]:
    yield from (f"## {name}", "", f"From {schema.origin}.", "", "| object | fields |", "|---|---|")
    for path, fields in schema.objects.items():
        where = f"each of `{path.removesuffix('[]')}`" if path.endswith("[]") else f"`{path}`"
        names = (f"`{field.removesuffix('?')}`" for field in fields)
        yield f"| {where if path else 'the document'} | {', '.join(names)} |"
    if schema.outcomes:
        yield from ("", "| outcome | |", "|---|---|")
        yield from (f"| `{word}` | {meaning} |" for word, meaning in schema.outcomes.items())
    yield from (
        "",
        *wrap(schema.remark, 100, break_on_hyphens=False),
        *([""] if schema.remark else []),
    )


def _field(path: str, field: Field) -> str:
    return f"| `{path}` | {field.type} | {field.unit} | {field.meaning} |"


def _anchor(name: str) -> str:
    return name.replace("/", "")


def main() -> int:
    """Write or check the pages and return the exit status."""
    pages = (
        (PAGE, page()),
        (RUNTIMES_PAGE, runtimes()),
        (REPORT_PAGE, report()),
        (IMAGES_PAGE, images()),
    )
    for path, text in pages:
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(f"docs/{path.name} is stale: run `python docs/generate.py`", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
