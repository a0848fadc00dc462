"""Write docs/architectures.md from what happens: every cell is made and held to its promises.

It takes some minutes. `tests/test_matrix.py` holds the page against the same cells.
"""

import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATH = ROOT / "docs" / "architectures.md"
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "formats"), str(ROOT / "fixtures")]

HEAD = """\
# Language and vision-language models

Written by `python docs/architectures.py` from what happens with tiny models of the real
transformers and adapters of the real PEFT; `tests/test_matrix.py` holds every cell against it.

A **✓** means that all of this holds. PEFT loads the adapter as `inspect --for peft` says. `merge`
writes what PEFT's `merge_and_unload` makes, to 1e-6 in float32, under the names that the base has
on disk. `verify` passes both, and no module that lies in another's place. PEFT loads what `shrink`
writes. A number is a refusal, with the reason below; **–** means that the model has no such part.

From a base and a tuned copy of each of these models `extract` writes an adapter that PEFT loads:
every weight that changed is restored to the reported error, or listed
(`tests/verbs/extract/test_families.py`).
"""
NOTHING = "–"
WORKS = "works"


def page(found: Mapping[tuple[str, str], str | None]) -> str:
    """Return the page that says this."""
    from cells import COLUMNS

    families = list(dict.fromkeys(name for name, _ in found))
    reasons = list(dict.fromkeys(text for text in found.values() if text not in (None, WORKS)))
    lines = [HEAD, "| column | adapter |", "|---|---|"]
    lines += [f"| {column} | {about} |" for column, about in COLUMNS.items()]
    lines += ["", f"| model | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name in families:
        cells = (_cell(found[name, column], reasons) for column in COLUMNS)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1)), ""]
    return "\n".join(lines)


def stated() -> dict[tuple[str, str], str | None]:
    """Return what the page says of each cell."""
    lines = PATH.read_text(encoding="utf-8").splitlines()
    reasons = dict(
        re.fullmatch(r"(\d+)\. (.*)", line).groups() for line in lines if line[:1].isdigit()
    )
    words = {"✓": WORKS, NOTHING: None, **reasons}
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if line[:1] == "|"
    ]
    start = next(number for number, row in enumerate(rows) if row[0] == "model")
    columns = rows[start][1:]
    return {
        (name, column): words[cell]
        for name, *cells in rows[start + 2 :]
        for column, cell in zip(columns, cells, strict=True)
    }


def _cell(outcome: str | None, reasons: list[str]) -> str:
    if outcome is None:
        return NOTHING
    return "✓" if outcome == WORKS else str(reasons.index(outcome) + 1)


def main() -> None:
    """Make every cell, and write the page."""
    import tiny
    from cells import COLUMNS, outcome

    found = {}
    for name in tiny.CONFIGS:
        for column in COLUMNS:
            with tempfile.TemporaryDirectory() as folder:
                found[name, column] = outcome(name, column, Path(folder))
            print(name, column, found[name, column], flush=True)
    PATH.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
