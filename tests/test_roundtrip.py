"""Extract and merge undo each other: what comes back misses the fine-tune by the reported error."""

import json
import subprocess
import sys
from math import sqrt
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM


def run(*arguments: object) -> str:
    command = [sys.executable, "-m", "lora_tools", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Save a small Llama, and the same after a change of every linear weight."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:
                left, right = torch.randn(weight.shape[0], 5), torch.randn(5, weight.shape[1])
                weight += 1e-3 * (left @ right) + 1e-4 * torch.randn(weight.shape)
    model.save_pretrained(tmp_path / "tuned")
    return tmp_path / "base", tmp_path / "tuned"


@pytest.mark.parametrize("rank", [3, 8])
def test_merging_what_was_extracted_gives_the_fine_tune(pair, rank, tmp_path):
    base, tuned = pair
    told = json.loads(run("extract", base, tuned, tmp_path / "a", "--rank", rank, "--json"))
    run("merge", base, tmp_path / "a", tmp_path / "merged")
    assert "exact" in run("verify", tmp_path / "merged", base, tmp_path / "a")
    before, after, back = (
        load_file(folder / "model.safetensors") for folder in (base, tuned, tmp_path / "merged")
    )
    lost = whole = 0.0
    for key, weight in after.items():
        lost += float((back[key].double() - weight.double()).square().sum())
        whole += float((weight.double() - before[key].double()).square().sum())
    assert sqrt(lost / whole) == pytest.approx(told["totals"]["error"], rel=1e-3)
