"""loralib: what its own layers merge into their weights."""

import loralib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lora_tools.adapter import read, write
from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.files.header import Spec
from lora_tools.formats.base import Contents
from lora_tools.formats.registry import FORMATS, format_named
from lora_tools.formats.sites import Embedding, Linear
from lora_tools.verbs.convert import convert
from lora_tools.verbs.inspect import inspect

LORALIB, PEFT = format_named("loralib"), format_named("peft")
ALPHA = 6


class Model(nn.Module):
    """One of each of loralib's layers, no two sizes alike; `c_attn` has three parts."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = loralib.Embedding(11, 6, r=2, lora_alpha=ALPHA)
        self.proj = loralib.Linear(6, 5, r=4, lora_alpha=ALPHA)
        whole = {"r": 2, "lora_alpha": ALPHA, "enable_lora": [True] * 3}
        self.c_attn = loralib.MergedLinear(8, 24, **whole)


def saved(tmp_path, model, bias="none"):
    """Give the factors numbers, save them as loralib does; return the file and what is merged."""
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data = torch.randn_like(value)
    model = model.double()
    torch.save(loralib.lora_state_dict(model, bias=bias), tmp_path / "lora.pt")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()  # which merges
    return tmp_path / "lora.pt", {
        name.removesuffix(".weight"): (value - before[name]).detach()
        for name, value in model.state_dict().items()
        if name.endswith(".weight")
    }


def test_updates_are_what_loralib_merges(tmp_path):
    file, merged = saved(tmp_path, Model())
    adapter = read(file, alpha=ALPHA)
    assert adapter.format is LORALIB
    assert set(adapter) == set(merged)
    assert adapter.module("wte").site == Embedding()
    assert (adapter.module("c_attn").rank, adapter.module("c_attn").scale) == (6, ALPHA / 2)
    for name, delta in merged.items():
        ours = torch.as_tensor(adapter[name].dense("float64"))
        ours = ours.T if name == "wte" else ours
        assert adapter.module(name).shape == tuple(delta.shape)
        torch.testing.assert_close(ours, delta, rtol=1e-12, atol=1e-12)


def test_it_becomes_peft(tmp_path):
    file, merged = saved(tmp_path, Model())
    plan = convert(read(file, alpha=ALPHA), PEFT)
    (tmp_path / "peft").mkdir()
    outcome = plan.outcome()
    write(tmp_path / "peft", plan.manifest, outcome.watch(plan), like=plan.source, format=PEFT)
    assert outcome.error == 0
    peft = read(tmp_path / "peft")
    for name, delta in merged.items():
        ours = torch.as_tensor(peft[name].dense("float64"))
        ours = ours.T if name == "wte" else ours
        torch.testing.assert_close(ours, delta, rtol=1e-12, atol=1e-12)


def test_the_weights_of_gpt2_are_transposed(tmp_path):
    class GPT2(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c_proj = loralib.Linear(6, 6, r=2, lora_alpha=ALPHA, fan_in_fan_out=True)
            self.c_attn = loralib.MergedLinear(
                8, 24, r=2, lora_alpha=ALPHA, enable_lora=[True] * 3, fan_in_fan_out=True
            )

    file, merged = saved(tmp_path, GPT2())
    adapter = read(file, alpha=ALPHA, base={"model_type": "gpt2"})
    for name, delta in merged.items():
        assert adapter.module(name).site == Linear(transposed=True)
        assert adapter.module(name).shape == tuple(delta.shape)
        ours = torch.as_tensor(adapter[name].dense("float64")).T
        torch.testing.assert_close(ours, delta, rtol=1e-12, atol=1e-12)


def test_alpha_has_to_be_stated(tmp_path):
    file, _ = saved(tmp_path, Model())
    with pytest.raises(FormatError, match="alpha is unknown") as caught:
        read(file)
    assert "--alpha N" in caught.value.__notes__[0]
    (note,) = inspect(read(file, alpha=4)).to_dict()["notes"]
    assert "alpha is 4" in note


def test_biases_are_listed_and_carried(tmp_path):
    file, _ = saved(tmp_path, Model(), bias="all")
    adapter = read(file, alpha=ALPHA)
    kinds = {extra.key: extra.kind for extra in adapter.manifest.extras}
    assert kinds == {"proj.bias": "bias", "c_attn.bias": "bias"}
    with pytest.raises(UnsupportedError, match="bias: "):
        convert(adapter, PEFT)
    assert convert(adapter, PEFT, drop=["bias"]).outcome().dropped == {
        "bias": ("proj.bias", "c_attn.bias")
    }


@pytest.mark.parametrize(
    ("enable", "name"),
    [
        ([True, False, True], "c_attn"),
        ([False, True, False], "c_attn"),
        ([True, True, True], "linear_1"),
        ([True, True, True, True], "c_attn"),
    ],
)
def test_parts_that_the_file_does_not_name_are_refused(tmp_path, enable, name):
    layer = loralib.MergedLinear(8, 8 * len(enable), r=2, lora_alpha=ALPHA, enable_lora=enable)
    file, _ = saved(tmp_path, nn.ModuleDict({name: layer}))
    with pytest.raises(UnsupportedError, match=f"{name} is a fused layer") as caught:
        read(file, alpha=ALPHA)
    assert "lora-tools extract" in caught.value.__notes__[0]


def test_convolutions_are_refused(tmp_path):
    layer = loralib.Conv2d(3, 4, 3, r=2, lora_alpha=ALPHA)
    file, _ = saved(tmp_path, nn.ModuleDict({"conv1": layer}))
    with pytest.raises(UnsupportedError, match="conv1 is a convolution"):
        read(file, alpha=ALPHA)


def test_diagonals_are_the_same_in_every_library(tmp_path):
    model = nn.ModuleDict(
        {"qkv": loralib.MergedLinear(8, 24, r=2, lora_alpha=ALPHA, enable_lora=[True] * 3)}
    )
    file, merged = saved(tmp_path, model)
    tensors = torch.load(file)
    save_file({key: value.bfloat16() for key, value in tensors.items()}, tmp_path / "b.safetensors")
    save_file({key: value.float() for key, value in tensors.items()}, tmp_path / "f.safetensors")
    adapters = [read(tmp_path / f"{x}.safetensors", alpha=ALPHA) for x in "bf"]
    half, single = (LORALIB.update(x.module("qkv"), x.tensors.arrays) for x in adapters)
    assert isinstance(half.b, torch.Tensor)
    assert isinstance(single.b, np.ndarray)
    for update, tolerance in ((half, 5e-2), (single, 1e-5)):
        ours = torch.as_tensor(update.dense("float64"))
        torch.testing.assert_close(ours, merged["qkv"], rtol=tolerance, atol=tolerance)


PAIR = {"m.q.lora_A": Spec("F32", (2, 5)), "m.q.lora_B": Spec("F32", (7, 2))}


def test_detection():
    for specs in (PAIR, dict(reversed(PAIR.items()))):
        assert [f.name for f in FORMATS if f.detect(specs, None)] == ["loralib"]
    adalora = PAIR | {"m.q.lora_E": Spec("F32", (2, 1))}
    dumped = {f"base_model.model.{key}": spec for key, spec in PAIR.items()}
    lit = {f"transformer.h.0.attn.qkv.lora_{part}": Spec("F32", (2, 2)) for part in "AB"}
    for others in (adalora, dumped, lit):
        assert not LORALIB.detect(others, None)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ({"m.v.lora_A": Spec("F32", (2, 5))}, "there is no m.v.lora_B"),
        ({"m.v.lora_B": Spec("F32", (2, 5))}, "there is no m.v.lora_A"),
        ({"m.q.lora_B": Spec("F32", (7, 3))}, "no pair of factors"),
        ({"m.q.lora_B": Spec("F32", (7, 0))}, "no pair of factors"),
        ({"m.q.lora_B": Spec("I8", (7, 2))}, "elements of type I8"),
    ],
)
def test_what_does_not_fit_is_refused(specs, message):
    with pytest.raises(FormatError, match=message):
        LORALIB.read(Contents(PAIR | specs, alpha=4))


def test_strange_factors_are_a_problem():
    manifest = LORALIB.read(Contents(PAIR | {"m.q.lora_C": Spec("F32", (1,))}, alpha=4))
    assert manifest.problems == ("m.q.lora_C is not understood",)


def test_it_is_not_written():
    with pytest.raises(UnsupportedError, match="read, not written"):
        LORALIB.write(LORALIB.read(Contents(PAIR, alpha=4)))
