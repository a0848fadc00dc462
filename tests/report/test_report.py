import json
import math

import pytest
import torch

from lora_tools.report import SCHEMA, Change, Report, Row, percent, size
from lora_tools.update import LowRank


def row(module: str, *, norm: float = 1.0, error: float = 0.1, after: int = 2, **more) -> Row:
    values = {
        "key_prefix": module,
        "shape": (8, 6),
        "rank_before": 4,
        "scale_before": 2.0,
        "scale": 1.0,
        "alpha": float(after),
        "dtype": "F32",
        "energy": 1 - error**2,
        "optimal_error": error,
        "sigma_max": 3.0,
        "sigma_discarded": 0.5,
        "outcome": "shrunk",
    }
    ranks = {"rank_after": after, "rank_stored": after}
    return Row(module=module, norm=norm, error=error, **(values | ranks | more))


def test_updates_pass_through_and_rows_stay():
    update = LowRank(torch.ones(1, 2), torch.ones(3, 1), alpha=1.0)
    report = Report("shrink")
    passed = list(report.watch([Change("m", update, row("m"))]))
    assert passed == [("m", update)]
    assert [kept.module for kept in report.rows] == ["m"]


def test_totals_weigh_modules_by_their_norms():
    rows = [row("a", norm=3.0, error=0.1), row("b", norm=4.0, error=0.5)]
    report = Report("shrink", rows=rows)
    assert report.error == pytest.approx(math.sqrt((0.3**2 + 2.0**2) / 25))
    assert Report("shrink", rows=[row("z", norm=0.0, error=0.0)]).error == 0


def test_json_has_the_promised_fields():
    report = Report("shrink", rows=[row("a"), row("b", outcome="zero")], params=(10, 5))
    data = json.loads(report.to_json())
    assert data["schema"] == SCHEMA == "lora-tools/report/3"
    assert data["totals"].keys() == {
        "modules",
        "outcomes",
        "error",
        "optimal_error",
        "params_before",
        "params_after",
        "bytes_before",
        "bytes_after",
        "seconds",
    }
    wanted = {"module", "rank_before", "rank_after", "energy", "error", "optimal_error"}
    assert wanted <= data["modules"][0].keys()
    assert data["totals"]["outcomes"] == {"shrunk": 1, "zero": 1}


def test_the_table_collapses_layers_and_puts_the_worst_first():
    rows = [row(f"layers.{i}.q", error=0.1) for i in range(12)]
    rows += [row(f"layers.{i}.v", error=0.4, after=1 + i % 2) for i in range(12)]
    report = Report(
        "shrink", "rank 2", rows=rows, params=(1000, 100), nbytes=(4000, 400), seconds=1.25
    )
    assert report.to_text() == TABLE


TABLE = """\
module               shape    rank     energy    error    best possible    σ₁    σ discarded
-------------------  -------  -------  --------  -------  ---------------  ----  -------------
layers.[0..11].v     8×6      4 → 1–2  84 %      40 %     40 %             3     0.5
layers.[0..11].q     8×6      4 → 2    99 %      10 %     10 %             3     0.5
total of 24 modules           4 → 1–2  91.5 %    29.2 %   29.2 %           3     0.5

error 29.2 % as written (best possible at these ranks 29.2 %)
parameters 1,000 → 100, file 4.0 kB → 400 B, 1.2 s"""


def test_without_a_policy_the_table_is_of_scales():
    rows = [row(f"layers.{i}.q", error=0.0, after=4, outcome="rescaled") for i in range(2)]
    report = Report("convert", source_format="peft", target_format="kohya", rows=rows)
    lines = report.to_text().splitlines()
    assert lines[0].split() == ["module", "count", "shape", "rank", "scale", "outcome", "error"]
    assert lines[2].split() == [
        "layers.[0..1].q",
        "2",
        "8×6",
        "4",
        "2",
        "→",
        "1",
        "rescaled",
        "0",
        "%",
    ]
    assert lines[4] == "peft → kohya: 2 modules, 2 rescaled"


def test_markdown_tells_the_command():
    report = Report("shrink", policy="rank 2", arguments="lora-tools shrink a b", rows=[row("q")])
    text = report.to_markdown()
    assert "```sh\nlora-tools shrink a b\n```" in text
    assert "| q" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 %"), (1, "100 %"), (0.5, "50 %"), (0.99995, "99.995 %"), (3e-7, "3.0e-05 %")],
)
def test_percent(value, text):
    assert percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(999, "999 B"), (1000, "1.0 kB"), (3.2e8, "320.0 MB"), (2e9, "2.00 GB")]
)
def test_size(value, text):
    assert size(value) == text
