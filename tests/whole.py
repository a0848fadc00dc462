"""An independent judge of extractions: dense float64, from files, without any of our own code."""

import json
from math import sqrt
from pathlib import Path
from typing import NamedTuple

import reference
from safetensors.torch import load_file
from torch import Tensor

PREFIX = "base_model.model."


class Judged(NamedTuple):
    """One module: its written error, and the least that its rank allows."""

    error: float
    optimum: float
    norm: float


def state(path: Path) -> dict[str, Tensor]:
    """Read a file, or all safetensors files of a folder."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return {key: tensor for file in files for key, tensor in load_file(file).items()}


def judge(base: Path, tuned: Path, out: Path, *, turned: tuple[str, ...] = ()) -> dict[str, Judged]:
    """Compare each module of an adapter with the difference of the models, in float64.

    ``turned`` are ends of names whose weights hold the transpose: embeddings, and GPT-2's layers.
    """
    before, after = state(base), state(tuned)
    ranks = {row["module"]: row["rank_after"] for row in report(out)["modules"]}
    found = {}
    for stem, update in reference.deltas(out).items():
        name = stem.removeprefix(PREFIX)
        change = after[f"{name}.weight"].double() - before[f"{name}.weight"].double()
        change = change.flatten(1).T if name.endswith(turned) and turned else change.flatten(1)
        norm = float(change.norm())
        best = sqrt(reference.tail(change, ranks[name]))
        found[name] = Judged(float((change - update).norm()) / norm, best / norm, norm)
    return found


def report(out: Path) -> dict:
    """Return the report in a folder."""
    return json.loads((out / "lora_tools_report.json").read_text())


def check(judged: dict[str, Judged], found: dict, slack: float = 1e-5) -> None:
    """Hold a report against the judge: errors, bounds, totals."""
    rows = {row["module"]: row for row in found["modules"]}
    assert rows.keys() == judged.keys()
    for name, truth in judged.items():
        row = rows[name]
        assert abs(row["error"] - truth.error) < slack, name
        assert abs(row["norm"] / truth.norm - 1) < 1e-6, name
        # Both sides are float64 numbers: 1e-7 of the norm is where they end.
        assert row["optimal_error_lower_bound"] <= truth.optimum + 1e-7, name
    whole = sum(truth.norm**2 for truth in judged.values())
    total = sqrt(sum((t.norm * t.error) ** 2 for t in judged.values()) / whole)
    optimum = sqrt(sum((t.norm * t.optimum) ** 2 for t in judged.values()) / whole)
    assert abs(found["totals"]["error"] - total) < slack
    assert found["totals"]["optimal_error_lower_bound"] <= optimum + 1e-7
