"""LitGPT: its fused layer, taken apart into the layers that transformers has."""

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
from lora_tools.verbs.inspect import Listing, read_or_list

LITGPT, PEFT = format_named("litgpt"), format_named("peft")
BASE = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2}
HEAD, HIDDEN, R, ALPHA = 3, 10, 2, 6
ROWS = {"q_proj": 4 * HEAD, "k_proj": 2 * HEAD, "v_proj": 2 * HEAD}
SWITCHES = {"q_proj": "lora_query", "k_proj": "lora_key", "v_proj": "lora_value"}
PLAIN = {
    "transformer.h.0.attn.proj": ("model.layers.0.self_attn.o_proj", HIDDEN, 4 * HEAD),
    "transformer.h.0.mlp.fc_1": ("model.layers.0.mlp.gate_proj", 14, HIDDEN),
    "transformer.h.0.mlp.fc_2": ("model.layers.0.mlp.up_proj", 14, HIDDEN),
    "transformer.h.0.mlp.proj": ("model.layers.0.mlp.down_proj", HIDDEN, 14),
    "lm_head": ("lm_head", 20, HIDDEN),
}
SETTINGS = "lora_r: 2\nlora_alpha: 6\nlora_query: {}\nlora_key: {}\nlora_value: {}\ndevices: 1\n"


def saved(tmp_path, enabled=(True, False, True), *, settings=True):
    """Lay an adapter down as LitGPT does, with some parts of queries, keys and values."""
    rows = sum(rows for rows, on in zip(ROWS.values(), enabled, strict=True) if on)
    found = {
        "transformer.h.0.attn.qkv.lora_A": torch.randn(R * sum(enabled), HIDDEN),
        "transformer.h.0.attn.qkv.lora_B": torch.randn(rows, R),
    }
    for key_prefix, (_, out, inp) in PLAIN.items():
        found[f"{key_prefix}.lora_A"] = torch.randn(R, inp)
        found[f"{key_prefix}.lora_B"] = torch.randn(out, R)
    torch.save({"model": found}, tmp_path / "lit_model.pth.lora")
    if settings:
        (tmp_path / "hyperparameters.yaml").write_text(SETTINGS.format(*map(str, enabled)).lower())
    return tmp_path, found


def merged(found: dict[str, Tensor], enabled) -> Tensor:
    """Return what LitGPT adds to its fused weight, entry by entry: rows of q, then k, then v."""
    a = found["transformer.h.0.attn.qkv.lora_A"].double()
    b = found["transformer.h.0.attn.qkv.lora_B"].double()
    result = torch.zeros(sum(ROWS.values()), HIDDEN, dtype=torch.float64)
    row, read_b, part = 0, 0, 0
    for rows, on in zip(ROWS.values(), enabled, strict=True):
        for _ in range(rows):
            if on:
                for k in range(R):
                    result[row] += ALPHA / R * b[read_b, k] * a[part * R + k]
                read_b += 1
            row += 1
        part += on
    return result


PARTS = [
    (True, False, True),
    (True, True, True),
    (False, True, True),
    (False, False, True),
    (True, False, False),
]


@pytest.mark.parametrize("enabled", PARTS)
def test_updates_are_what_litgpt_adds(tmp_path, enabled):
    folder, found = saved(tmp_path, enabled)
    adapter = read(folder, base=BASE)
    assert adapter.format is LITGPT
    whole, start = merged(found, enabled), 0
    for (part, rows), on in zip(ROWS.items(), enabled, strict=True):
        name = f"model.layers.0.self_attn.{part}"
        assert (name in adapter) == on
        if on:
            ours = torch.as_tensor(adapter[name].dense("float64"))
            assert adapter.module(name).shape == (rows, HIDDEN)
            torch.testing.assert_close(ours, whole[start : start + rows])
        else:
            assert not whole[start : start + rows].any()
        start += rows
    for key_prefix, (name, out, inp) in PLAIN.items():
        ours = torch.as_tensor(adapter[name].dense("float64"))
        assert ours.shape == (out, inp)
        b, a = (found[f"{key_prefix}.lora_{x}"].double() for x in "BA")
        torch.testing.assert_close(ours, ALPHA / R * b @ a)
    assert adapter.params == sum(value.numel() for value in found.values())
    assert sum(module.params for module in adapter.manifest.modules) == adapter.params
    assert sum(module.nbytes for module in adapter.manifest.modules) == 4 * adapter.params


def test_it_becomes_peft_bit_for_bit(tmp_path):
    folder, found = saved(tmp_path)
    source = read(folder, base=BASE)
    plan = convert(source, PEFT)
    (tmp_path / "peft").mkdir()
    outcome = plan.report("convert")
    write(tmp_path / "peft", plan.manifest, outcome.watch(plan), like=source, format=PEFT)
    assert outcome.error == 0
    written = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    key_prefix = "base_model.model.model.layers.0.self_attn"
    a, b = (found[f"transformer.h.0.attn.qkv.lora_{x}"] for x in "AB")
    assert torch.equal(written[f"{key_prefix}.q_proj.lora_A.weight"], a[:R])
    assert torch.equal(written[f"{key_prefix}.v_proj.lora_A.weight"], a[R:])
    assert torch.equal(written[f"{key_prefix}.q_proj.lora_B.weight"], b[: 4 * HEAD])
    assert torch.equal(written[f"{key_prefix}.v_proj.lora_B.weight"], b[4 * HEAD :])
    peft = read(tmp_path / "peft")
    for name in source:
        ours = [torch.as_tensor(each[name].dense("float64")) for each in (source, peft)]
        assert torch.equal(*ours)


def test_without_settings_all_three_parts_are_told_by_their_number(tmp_path):
    folder, found = saved(tmp_path, (True, True, True), settings=False)
    with pytest.raises(FormatError, match="alpha is unknown"):
        read(folder, base=BASE)
    adapter = read(folder, base=BASE, alpha=ALPHA)
    whole = merged(found, (True, True, True))
    ours = torch.as_tensor(adapter["model.layers.0.self_attn.k_proj"].dense("float64"))
    torch.testing.assert_close(ours, whole[4 * HEAD : 6 * HEAD])


def test_without_settings_some_parts_are_refused(tmp_path):
    folder, _ = saved(tmp_path, (True, False, True), settings=False)
    with pytest.raises(UnsupportedError, match="2 parts are adapted, and which is not") as caught:
        read(folder, base=BASE, alpha=ALPHA)
    assert "hyperparameters.yaml" in caught.value.__notes__[0]


def test_the_base_is_needed_and_has_to_be_known(tmp_path):
    folder, _ = saved(tmp_path)
    with pytest.raises(UnsupportedError, match="depend on the base model") as caught:
        read(folder)
    assert "--base MODEL" in caught.value.__notes__[0]
    with pytest.raises(UnsupportedError, match="depend on the base model"):
        read_or_list(folder)
    assert isinstance(read_or_list(folder / "lit_model.pth.lora"), Listing)
    with pytest.raises(UnsupportedError, match="of type gpt_neox"):
        read(folder, base={"model_type": "gpt_neox"})
    with pytest.raises(FormatError, match=r"18 rows are not those of .*q_proj.*v_proj"):
        read(folder, base=BASE | {"num_attention_heads": 5})
    with pytest.raises(FormatError, match="how many heads"):
        read(folder, base={"model_type": "llama"})


def test_settings_that_are_no_yaml_are_refused(tmp_path):
    folder, _ = saved(tmp_path)
    for text in ("a: [", "- 1", "!!python/object:os.system {}"):
        (folder / "hyperparameters.yaml").write_text(text)
        with pytest.raises(FormatError, match=r"hyperparameters\.yaml: not"):
            read(folder, base=BASE)


def test_a_rank_unlike_the_settings_is_a_problem(tmp_path):
    folder, _ = saved(tmp_path)
    text = (folder / "hyperparameters.yaml").read_text()
    (folder / "hyperparameters.yaml").write_text(text.replace("lora_r: 2", "lora_r: 8"))
    with pytest.raises(FormatError, match="lora_r is 8"):
        read(folder, base=BASE)


def test_detection_and_flat_files(tmp_path):
    _, found = saved(tmp_path, (True, True, True))
    save_file(found, tmp_path / "flat.safetensors")
    assert read(tmp_path / "flat.safetensors", base=BASE).format is LITGPT
    specs = {key: Spec("F32", tuple(value.shape)) for key, value in found.items()}
    for order in (specs, dict(reversed(specs.items()))):
        assert [f.name for f in FORMATS if f.detect(order, None)] == ["litgpt"]


@pytest.mark.parametrize(
    ("key_prefix", "kind", "message"),
    [
        ("transformer.h.0.attn.attn", UnsupportedError, "older lit-gpt"),
        ("transformer.h.0.mlp.fc", FormatError, "no layer of LitGPT's that is known"),
        ("transformer.wte", FormatError, "no layer of LitGPT's that is known"),
    ],
)
def test_other_layers_are_refused(key_prefix, kind, message):
    specs = {
        f"{key_prefix}.lora_A": Spec("F32", (2, 4)),
        f"{key_prefix}.lora_B": Spec("F32", (4, 2)),
    }
    with pytest.raises(kind, match=message):
        LITGPT.read(Contents(specs, {"lora_alpha": 4}, base=BASE))


def test_it_is_not_written(tmp_path):
    folder, _ = saved(tmp_path)
    with pytest.raises(UnsupportedError, match="read, not written"):
        LITGPT.write(read(folder, base=BASE).manifest)
