"""Stacks of experts as each version of PEFT has adapted them, in bases of every layout."""

import json
import warnings
from pathlib import Path

import dense
import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_tools import read
from lora_tools.errors import FormatError
from lora_tools.model import open_model
from lora_tools.verbs.merge import WeightedAdapter, merge, plan
from lora_tools.verbs.verify import verify

E, R, D = 3, 2, 8
ALPHA = 5
VERSIONS = ("0.18.1", "0.19.0", "0.19.1", "0.21.2")
LAYER = "model.layers.0"
STACKED = f"{LAYER}.mlp.experts"
PER_EXPERT = {
    "mixtral": (f"{LAYER}.block_sparse_moe.experts", ("w1", "w3"), "w2"),
    "qwen3_moe": (STACKED, ("gate_proj", "up_proj"), "down_proj"),
}
LAYOUTS = ("stacked", "gpt_oss", *PER_EXPERT)


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:3]))


def reads_first(version: str, *, stored_transposed: bool) -> bool:
    """Whether A of that version reads dimension 1 of a stack: `ParamWrapper` of each."""
    if numbers(version) < (0, 19):
        return True
    return stored_transposed != (numbers(version) < (0, 19, 1))


def wrapped(version: str, shape: tuple[int, ...], *, stored_transposed: bool) -> tuple[Tensor, ...]:
    """Return A and B of a stack as that version saves them, and what it adds, in float64."""
    first = reads_first(version, stored_transposed=stored_transposed)
    inp, out = shape[1:] if first else (shape[2], shape[1])
    a, b = torch.randn(E * R, inp), torch.randn(out, R * E)
    terms = b.double().reshape(out, R, E), a.double().reshape(E, R, inp)
    added = torch.einsum("ore,eri->eio" if first else "ore,eri->eoi", *terms)
    return a, b, ALPHA / R * added


def saved(folder: Path, version: str, shapes: dict[str, tuple[int, ...]], **config):
    """Save an adapter of stacks as that version would; return what it adds to each."""
    stored_transposed = config.pop("stored_transposed", False)
    tensors, added = {}, {}
    for name, end in (("gate_up_proj", ".base_layer"), ("down_proj", "")):
        a, b, added[name] = wrapped(version, shapes[name], stored_transposed=stored_transposed)
        key = f"base_model.model.{STACKED}{end}"
        tensors |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    known = {"peft_type": "LORA", "r": R, "lora_alpha": ALPHA, "target_modules": []}
    # The bare names are those that PEFT itself writes for ``all-linear``.
    known |= {"target_parameters": ["gate_up_proj", "down_proj"], "peft_version": version}
    (folder / "adapter_config.json").write_text(json.dumps(known | config))
    return added


def laid_out(layout: str, size: int) -> tuple[dict[str, Tensor], dict[str, tuple[int, ...]], str]:
    """Return a base of that layout, the shapes of its stacks in memory, and its model's type."""
    gate_up, down = torch.randn(E, 2 * size, D).double(), torch.randn(E, D, size).double()
    if layout == "gpt_oss":
        gate_up, down = gate_up.mT.contiguous(), down.mT.contiguous()
    shapes = {"gate_up_proj": tuple(gate_up.shape), "down_proj": tuple(down.shape)}
    if layout not in PER_EXPERT:
        kind = "qwen3_moe" if layout == "stacked" else layout
        return (
            {f"{STACKED}.gate_up_proj": gate_up, f"{STACKED}.down_proj": down},
            shapes,
            kind,
        )
    experts, gates, last = PER_EXPERT[layout]
    state = {}
    for expert in range(E):
        for leaf, half in zip(gates, gate_up[expert].chunk(2), strict=True):
            state[f"{experts}.{expert}.{leaf}.weight"] = half.clone()
        state[f"{experts}.{expert}.{last}.weight"] = down[expert].clone()
    return state, shapes, layout


def stacks_of(layout: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's stacks as they are in memory."""
    if layout not in PER_EXPERT:
        return {name.rpartition(".")[2]: weight for name, weight in state.items()}
    experts, gates, last = PER_EXPERT[layout]
    weights = [[state[f"{experts}.{e}.{leaf}.weight"] for leaf in (*gates, last)] for e in range(E)]
    return {
        "gate_up_proj": torch.stack([torch.cat(each[:2]) for each in weights]),
        "down_proj": torch.stack([each[2] for each in weights]),
    }


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
