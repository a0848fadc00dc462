"""An encoding is one file: one that is made up here is read by every verb that reads weights."""

import json
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from lora_tools import codecs
from lora_tools.cli import cli
from lora_tools.codecs import CODECS, Span, StoredPart
from lora_tools.errors import UnsupportedError
from lora_tools.model import open_model

N, K, RANK = 12, 10, 2
LAYER = "model.layers.0.mlp.up_proj"


@dataclass(frozen=True, slots=True)
class Lined:
    """Whole numbers of one byte as ``lined``, times a number for each row as ``lines``."""

    title = "lined integers"
    methods = frozenset({"lining"})
    loses = "all but 8 bits"

    numbers: StoredPart
    factors: StoredPart
    misfit: str = ""

    @property
    def name(self) -> str:
        return f"{self.numbers.key.removesuffix('.lined')}.weight"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.numbers.spec.shape

    @property
    def parts(self) -> tuple[StoredPart, ...]:
        return self.numbers, self.factors

    @classmethod
    def detect(cls, key, model) -> "Lined | None":
        specs, lines = model.tensors.specs, f"{key.removesuffix('.lined')}.lines"
        if not key.endswith(".lined") or lines not in specs:
            return None
        return cls(StoredPart(key, specs[key]), StoredPart(lines, specs[lines]))

    @classmethod
    def belongs(cls, key: str, keys: Collection[str]) -> bool:
        return key.endswith(".lines")

    def spans(self, start, stop) -> tuple[Span, ...]:
        return Span(start, stop), Span(start // K * 4, stop // K * 4)

    def decode(self, parts, start, stop, out) -> None:
        table = parts[0].view(np.int8).reshape(-1, K).astype(np.float64)
        out[:] = (table * parts[1].view(np.float32)[:, None]).reshape(-1)

    def encode(self, numbers, parts, start, stop) -> np.ndarray:
        table = numbers.reshape(-1, K) / parts[1].view(np.float32)[:, None]
        return np.rint(table).clip(-127, 127).astype(np.int8).view(np.uint8).reshape(-1)


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setattr(codecs, "CODECS", (Lined, *CODECS))


@pytest.fixture
def dense(tmp_path) -> torch.Tensor:
    """Write ``base``, lined, and ``adapter``; return the base's weight in float64."""
    torch.manual_seed(0)
    whole = torch.randint(-99, 99, (N, K), dtype=torch.int8)
    lines, norm = torch.rand(N) + 0.5, torch.rand(K)
    (tmp_path / "base").mkdir()
    save_file(
        {
            f"{LAYER}.lined": whole,
            f"{LAYER}.lines": lines,
            "model.norm.weight": norm.bfloat16(),
        },
        tmp_path / "base" / "model.safetensors",
    )
    config = {"quantization_config": {"quant_method": "lining"}, "model_type": "llama"}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    (tmp_path / "adapter").mkdir()
    save_file(
        {
            f"base_model.model.{LAYER}.lora_A.weight": torch.randn(RANK, K),
            f"base_model.model.{LAYER}.lora_B.weight": torch.randn(N, RANK),
        },
        tmp_path / "adapter" / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["up_proj"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    return whole.double() * lines.double()[:, None]


def run(tmp_path, *words: str) -> dict:
    """Run a command with paths below a folder, and return its JSON."""
    paths = ("base", "adapter", "merged", "extracted")
    line = [str(tmp_path / word) if word in paths else word for word in words]
    result = CliRunner().invoke(cli, [*line, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def update(folder) -> torch.Tensor:
    state = load_file(folder / "adapter_model.safetensors")
    b, a = (state[f"base_model.model.{LAYER}.lora_{x}.weight"].double() for x in "BA")
    return b @ a


@pytest.mark.usefixtures("known")
def test_a_new_encoding_is_merged_verified_extracted_and_compared(tmp_path, dense):
    delta = update(tmp_path / "adapter")
    report = run(tmp_path, "merge", "base", "adapter", "merged", "--dtype", "float32")
    state = load_file(tmp_path / "merged" / "model.safetensors")
    assert state.keys() == {f"{LAYER}.weight", "model.norm.weight"}
    merged = state[f"{LAYER}.weight"].double()
    assert torch.equal(merged, (dense + delta).float().double())
    (row,) = (row for row in report["tensors"] if row["tensor"] == f"{LAYER}.weight")
    assert row["norm"] == pytest.approx(float(delta.norm()), rel=1e-6)
    assert row["error"] == pytest.approx(float((merged - dense - delta).norm() / delta.norm()))
    assert "quantization_config" not in json.loads(
        (tmp_path / "merged" / "config.json").read_text()
    )

    assert run(tmp_path, "verify", "merged", "base", "adapter")["passed"]

    report = run(
        tmp_path, "extract", "base", "merged", "extracted", "--rank", str(RANK), "--small", "skip"
    )
    (row,) = (row for row in report["modules"] if row["outcome"] == "extracted")
    change = merged - dense
    assert row["norm"] == pytest.approx(float(change.norm()), rel=1e-5)
    left = float((change - update(tmp_path / "extracted")).norm() / change.norm())
    assert row["error"] == pytest.approx(left, abs=1e-6)

    report = run(tmp_path, "inspect", "adapter", "--base", "base")
    assert f"{float(dense.norm()):.6g}" in {
        f"{module['base_norm']:.6g}" for module in report["modules"] if module.get("base_tensor")
    }


def test_it_is_refused_by_who_does_not_know_it(tmp_path, dense):
    from lora_tools.base import base_of

    with pytest.raises(UnsupportedError, match="the unknown method 'lining'"):
        base_of(open_model(tmp_path / "base"), "")


@pytest.mark.usefixtures("known", "dense")
def test_a_configuration_that_names_it_needs_its_tensors(tmp_path):
    from lora_tools.base import base_of

    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "base" / "model.safetensors")
    with pytest.raises(UnsupportedError, match="lining and without any tensor of lined integers"):
        base_of(open_model(tmp_path / "base"), "")
