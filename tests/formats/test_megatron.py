"""Megatron: queries, keys and values that lie group by group, taken apart row by row."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_tools.adapter import read, write
from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.files.header import Spec
from lora_tools.formats.base import Contents
from lora_tools.formats.registry import FORMATS, format_named
from lora_tools.verbs.convert import convert

MEGATRON, PEFT = format_named("megatron"), format_named("peft")
QUERIES, GROUPS, HEAD, HIDDEN, R, ALPHA = 6, 2, 3, 10, 2, 6
BASE = {"model_type": "llama", "num_attention_heads": QUERIES, "num_key_value_heads": GROUPS}
LAYERS = {
    "self_attention.linear_qkv": ((QUERIES + 2 * GROUPS) * HEAD, HIDDEN),
    "self_attention.linear_proj": (HIDDEN, QUERIES * HEAD),
    "mlp.linear_fc1": (2 * 7, HIDDEN),
    "mlp.linear_fc2": (HIDDEN, 7),
}
NAMES = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
NAMES += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


def saved(tmp_path, prefix=""):
    """Write the tensors of LoRA's adapters under Megatron's names."""
    found = {}
    for layer, (out, inp) in LAYERS.items():
        key_prefix = f"{prefix}decoder.layers.3.{layer}.adapter"
        found[f"{key_prefix}.linear_in.weight"] = torch.randn(R, inp)
        found[f"{key_prefix}.linear_out.weight"] = torch.randn(out, R)
    found[f"{prefix}output_layer.adapter.linear_in.weight"] = torch.randn(R, HIDDEN)
    found[f"{prefix}output_layer.adapter.linear_out.weight"] = torch.randn(20, R)
    save_file(found, tmp_path / "megatron.safetensors")
    return tmp_path / "megatron.safetensors", found


def dense(found: dict[str, Tensor], key_prefix: str) -> Tensor:
    b, a = (found[f"{key_prefix}.linear_{way}.weight"].double() for way in ("out", "in"))
    return ALPHA / R * b @ a


def wanted(found: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Return each module's update: walk the rows of the fused layers head by head."""
    block = f"{prefix}decoder.layers.3"
    fused = dense(found, f"{block}.self_attention.linear_qkv.adapter")
    rows: dict[str, list[Tensor]] = {"q": [], "k": [], "v": []}
    heads = iter(fused.split(HEAD))
    for _ in range(GROUPS):
        for _ in range(QUERIES // GROUPS):
            rows["q"].append(next(heads))
        rows["k"].append(next(heads))
        rows["v"].append(next(heads))
    gated = dense(found, f"{block}.mlp.linear_fc1.adapter")
    updates = {f"self_attn.{part}_proj": torch.cat(pieces) for part, pieces in rows.items()}
    updates |= {"mlp.gate_proj": gated[:7], "mlp.up_proj": gated[7:]}
    updates["self_attn.o_proj"] = dense(found, f"{block}.self_attention.linear_proj.adapter")
    updates["mlp.down_proj"] = dense(found, f"{block}.mlp.linear_fc2.adapter")
    updates = {f"model.layers.3.{name}": update for name, update in updates.items()}
    return updates | {"lm_head": dense(found, f"{prefix}output_layer.adapter")}


@pytest.mark.parametrize("prefix", ["", "module.", "module.module.", "model."])
def test_updates_are_those_of_the_fused_layers_rows(tmp_path, prefix):
    file, found = saved(tmp_path, prefix)
    adapter = read(file, base=BASE, alpha=ALPHA)
    assert adapter.format is MEGATRON
    updates = wanted(found, prefix)
    assert set(adapter) == set(updates)
    for name, update in updates.items():
        ours = torch.as_tensor(adapter[name].dense("float64"))
        assert adapter.module(name).shape == tuple(update.shape)
        torch.testing.assert_close(ours, update, rtol=1e-12, atol=1e-12)
    notes = " ".join(adapter.manifest.notes)
    assert "alpha is 6" in notes
    assert "linear_fc1 are read as those of gate, then up" in notes


def test_it_becomes_peft_without_loss(tmp_path):
    file, found = saved(tmp_path)
    source = read(file, base=BASE, alpha=ALPHA)
    plan = convert(source, PEFT)
    (tmp_path / "peft").mkdir()
    outcome = plan.report("convert")
    write(tmp_path / "peft", plan.manifest, outcome.watch(plan), like=source, format=PEFT)
    assert outcome.error == 0
    written = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert len(written) == 2 * 8
    for name, update in wanted(found).items():
        b, a = (written[f"base_model.model.{name}.lora_{part}.weight"].double() for part in "BA")
        torch.testing.assert_close(ALPHA / R * b @ a, update, rtol=1e-12, atol=1e-12)


def test_canonical_adapters_are_of_one_part_each(tmp_path):
    sizes = {"q": QUERIES * HEAD, "v": GROUPS * HEAD}
    key_prefix = "decoder.layers.0.self_attention.linear_qkv.adapter"
    found = {}
    for part, out in sizes.items():
        found[f"{key_prefix}.adapter_{part}.linear_in.weight"] = torch.randn(R, HIDDEN)
        found[f"{key_prefix}.adapter_{part}.linear_out.weight"] = torch.randn(out, R)
    up = "decoder.layers.0.mlp.linear_fc1.adapter.adapter_up"
    found[f"{up}.linear_in.weight"] = torch.randn(R, HIDDEN)
    found[f"{up}.linear_out.weight"] = torch.randn(7, R)
    save_file(found, tmp_path / "m.safetensors")
    adapter = read(tmp_path / "m.safetensors", base=BASE, alpha=ALPHA)
    block = "model.layers.0"
    assert set(adapter) == {
        f"{block}.{n}" for n in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
    }
    for part in sizes:
        ours = torch.as_tensor(adapter[f"{block}.self_attn.{part}_proj"].dense("float64"))
        torch.testing.assert_close(ours, dense(found, f"{key_prefix}.adapter_{part}"))


def test_alpha_and_base_are_needed(tmp_path):
    file, _ = saved(tmp_path)
    with pytest.raises(FormatError, match="alpha is unknown"):
        read(file, base=BASE)
    with pytest.raises(UnsupportedError, match=r"Megatron's names .* depend on the base") as caught:
        read(file, alpha=ALPHA)
    assert "--base MODEL" in caught.value.__notes__[0]
    with pytest.raises(UnsupportedError, match="of type qwen3_next"):
        read(file, alpha=ALPHA, base=BASE | {"model_type": "qwen3_next"})
    for heads in ({"num_attention_heads": 7}, {"num_attention_heads": 4, "num_key_value_heads": 3}):
        with pytest.raises(FormatError, match="rows are not those of"):
            read(file, alpha=ALPHA, base=BASE | heads)


def pair(key_prefix: str, out: int = 4, rank: int = 2) -> dict[str, Spec]:
    return {
        f"{key_prefix}.linear_in.weight": Spec("F32", (2, 4)),
        f"{key_prefix}.linear_out.weight": Spec("F32", (out, rank)),
    }


KNOWN = pair("decoder.layers.0.self_attention.linear_proj.adapter")


def test_detection():
    for specs in (KNOWN, dict(reversed(KNOWN.items()))):
        assert [f.name for f in FORMATS if f.detect(specs, None)] == ["megatron"]
    assert not MEGATRON.detect(pair("x.adapter"), None)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (pair("decoder.layers.0.mlp.linear_fc3.adapter"), "no layer of Megatron's"),
        (pair("vision.layers.0.mlp.linear_fc2.adapter"), "no layer of Megatron's"),
        (pair("decoder.layers.0.mlp.linear_fc2.adapter.adapter_q"), "no layer of Megatron's"),
        (pair("decoder.layers.0.mlp.linear_fc1.adapter.adapter_q"), "no layer of Megatron's"),
        (
            pair("decoder.layers.0.mlp.linear_fc1.adapter", out=5),
            "5 rows are not those of .*gate_proj.*up_proj",
        ),
        (pair("decoder.layers.0.mlp.linear_fc2.adapter", rank=1), "times the rank"),
        ({"decoder.layers.0.mlp.linear_fc2.adapter.weight_magnitude": Spec("F32", (4,))}, "names"),
        ({"x.linear_in.weight": Spec("F32", (2, 4))}, "there is no x.linear_out.weight"),
    ],
)
def test_what_is_not_understood_is_refused(specs, message):
    with pytest.raises(FormatError, match=message):
        MEGATRON.read(Contents(KNOWN | specs, base=BASE, alpha=4))


def test_it_is_not_written(tmp_path):
    file, _ = saved(tmp_path)
    with pytest.raises(UnsupportedError, match="read, not written"):
        MEGATRON.write(read(file, base=BASE, alpha=ALPHA).manifest)
