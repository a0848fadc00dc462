"""Stacks of experts as each version of PEFT has adapted them, in bases of every layout."""

import warnings

import dense
import peft
import pytest
import torch
from moe import ALPHA, LAYOUTS, VERSIONS, D, E, R, laid_out, reads_first, saved, stacks_of
from torch import nn

from lora_tools import read
from lora_tools.errors import FormatError
from lora_tools.model import open_model
from lora_tools.verbs.merge import WeightedAdapter, merge, plan
from lora_tools.verbs.verify import verify


@pytest.mark.parametrize("size", [D // 2, 6, D], ids=["square-gate-up", "oblong", "square-down"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("version", VERSIONS)
def test_experts_of_every_version_find_their_axes(version, layout, size, tmp_path):
    state, shapes, kind = laid_out(layout, size)
    base = dense.save_base(tmp_path / "base", state, torch.float64, model_type=kind)
    turned = layout == "gpt_oss"
    added = saved(tmp_path / "adapter", version, shapes, stored_transposed=turned)
    made = plan(open_model(base), [WeightedAdapter(read(tmp_path / "adapter"))])
    merge(made).write(tmp_path / "out")
    before, after = (stacks_of(layout, dense.load_model(f)) for f in (base, tmp_path / "out"))
    for name, wanted in added.items():
        assert torch.allclose(after[name] - before[name], wanted, atol=1e-12), name
    assert verify(open_model(tmp_path / "out").tensors, made).passed


@pytest.mark.parametrize("layout", ["stacked", "qwen3_moe"])
@pytest.mark.parametrize(
    ("version", "why"),
    [
        (None, "does not say which PEFT wrote it"),
        ("0.19.1.dev0", r"says PEFT 0\.19\.1\.dev0, of which there were several"),
        ("0.18.2.dev0@abc", r"of which there were several"),
    ],
)
def test_square_experts_of_an_unknown_version_are_refused(version, why, layout, tmp_path):
    state, shapes, kind = laid_out(layout, D)
    base = dense.save_base(tmp_path / "base", state, torch.float64, model_type=kind)
    saved(tmp_path / "adapter", "0.21.2", shapes, peft_version=version)
    with pytest.raises(FormatError, match=why):
        plan(open_model(base), [WeightedAdapter(read(tmp_path / "adapter"))])


def test_the_installed_peft_has_the_axes_that_its_version_is_taken_for():
    """Run with PEFT 0.18, 0.19.0 and later, this is what the rule rests on."""
    for stored_transposed in (False, True):
        holder = nn.Module()
        holder.experts = nn.Module()
        holder.experts.is_transposed = stored_transposed
        holder.experts.down_proj = nn.Parameter(torch.randn(E, 4, 6))
        config = peft.LoraConfig(r=R, lora_alpha=ALPHA, target_parameters=["experts.down_proj"])
        config.target_modules = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layer = peft.get_peft_model(holder, config).base_model.model.experts
        first = reads_first(peft.__version__, stored_transposed=stored_transposed)
        assert layer.lora_A["default"].weight.shape == (E * R, 4 if first else 6)
        nn.init.normal_(layer.lora_B["default"].weight)
        a, b = (getattr(layer, f"lora_{x}")["default"].weight.double() for x in "AB")
        terms = b.reshape(len(b), R, E), a.reshape(E, R, -1)
        added = torch.einsum("ore,eri->eio" if first else "ore,eri->eoi", *terms)
        assert torch.allclose(layer.get_delta_weight("default").double(), ALPHA / R * added)
