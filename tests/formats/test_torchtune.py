"""torchtune: queries and keys in the interleaved RoPE layout, judged by what attention computes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lora_tools.adapter import read, write
from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.files.header import Spec
from lora_tools.formats.base import Contents
from lora_tools.formats.registry import FORMATS, format_named
from lora_tools.formats.rotary import Paired
from lora_tools.linalg.rank import Fixed
from lora_tools.verbs.convert import convert
from lora_tools.verbs.shrink import shrink

TORCHTUNE, PEFT = format_named("torchtune"), format_named("peft")
BASE = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2}
HEAD, HIDDEN, RANK, ALPHA = 8, 24, 3, 6
SHAPES = {
    "attn.q_proj": (4 * HEAD, HIDDEN),
    "attn.k_proj": (2 * HEAD, HIDDEN),
    "attn.v_proj": (2 * HEAD, HIDDEN),
    "attn.output_proj": (HIDDEN, 4 * HEAD),
    "mlp.w1": (40, HIDDEN),
    "mlp.w2": (HIDDEN, 40),
    "mlp.w3": (40, HIDDEN),
}
PATHS = {
    "model.layers.0.self_attn.q_proj": "layers.0.attn.q_proj",
    "model.layers.0.self_attn.k_proj": "layers.0.attn.k_proj",
    "model.layers.0.self_attn.v_proj": "layers.0.attn.v_proj",
    "model.layers.0.self_attn.o_proj": "layers.0.attn.output_proj",
    "model.layers.0.mlp.gate_proj": "layers.0.mlp.w1",
    "model.layers.0.mlp.down_proj": "layers.0.mlp.w2",
    "model.layers.0.mlp.up_proj": "layers.0.mlp.w3",
    "lm_head": "output",
}
CONFIG = {"r": RANK, "lora_alpha": ALPHA, "target_modules": ["q_proj"], "peft_type": "LORA"}


def tensors(*, dora: bool = False) -> dict[str, Tensor]:
    """Return what torchtune's `get_adapter_params` would, in its own names."""
    shapes = {f"layers.0.{name}": shape for name, shape in SHAPES.items()}
    shapes["output"] = (50, HIDDEN)
    found = {}
    for key_prefix, (out, inp) in shapes.items():
        found[f"{key_prefix}.lora_a.weight"] = torch.randn(RANK, inp)
        found[f"{key_prefix}.lora_b.weight"] = torch.randn(out, RANK)
        if dora:
            found[f"{key_prefix}.magnitude"] = torch.rand(out) + 0.5
    return found


def saved(tmp_path, *, dora=False, config=CONFIG):
    """Lay an adapter down as torchtune does: a pickle, and the configuration it makes for PEFT."""
    folder = tmp_path / "epoch_0"
    folder.mkdir()
    found = tensors(dora=dora)
    torch.save(found, folder / "adapter_model.pt")
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder, found


def converted(adapter, target, out):
    plan = convert(adapter, target)
    out.mkdir()
    outcome = plan.report("convert")
    write(out, plan.manifest, outcome.watch(plan), like=adapter, format=target)
    return outcome


def dense(found, key_prefix):
    """Return a module's update as torchtune's LoRALinear adds it, in the order of its weight."""
    a, b = (found[f"{key_prefix}.lora_{part}.weight"].double() for part in "ab")
    return (ALPHA / RANK) * (b @ a)


def halves(rows: Tensor, heads: int) -> Tensor:
    """Reorder rows one by one: the pair (2 i, 2 i + 1) of a head becomes (i, i + d / 2)."""
    size = len(rows) // heads
    result = torch.empty_like(rows)
    for head in range(heads):
        for i in range(size // 2):
            result[head * size + i] = rows[head * size + 2 * i]
            result[head * size + i + size // 2] = rows[head * size + 2 * i + 1]
    return result


def expected(found, path, key_prefix):
    delta = dense(found, key_prefix)
    heads = {"q_proj": 4, "k_proj": 2}.get(path.rpartition(".")[2])
    return halves(delta, heads) if heads else delta


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate (tokens, heads, d) as torchtune does: neighbours are one complex number."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(
        pairs * torch.polar(torch.ones_like(angles), angles)[:, None]
    ).flatten(-2)


def test_attention_is_what_transformers_makes_of_what_was_read(tmp_path):
    """The scores of queries and keys are the same, in torchtune's order and in transformers'."""
    folder, found = saved(tmp_path)
    adapter = read(folder, base=BASE)
    tokens, x = 5, torch.randn(5, HIDDEN, dtype=torch.float64)
    frequencies = 1e4 ** (-torch.arange(0, HEAD, 2, dtype=torch.float64) / HEAD)
    angles = torch.arange(tokens)[:, None] * frequencies
    theirs = [
        turned((x @ dense(found, f"layers.0.attn.{name}").T).reshape(tokens, -1, HEAD), angles)
        for name in ("q_proj", "k_proj")
    ]
    q, k = (
        (x @ torch.as_tensor(adapter[f"model.layers.0.self_attn.{name}"].dense("float64")).T)
        .reshape(1, tokens, -1, HEAD)
        .transpose(1, 2)
        for name in ("q_proj", "k_proj")
    )
    both = torch.cat([angles, angles], -1)[None]
    ours = [each[0].transpose(0, 1) for each in apply_rotary_pos_emb(q, k, both.cos(), both.sin())]
    for heads in range(4):
        scores = [s[0][:, heads] @ s[1][:, heads // 2].T for s in (theirs, ours)]
        torch.testing.assert_close(*scores)


@pytest.mark.parametrize("dora", [False, True])
def test_what_is_read_is_in_the_order_of_transformers(tmp_path, dora):
    folder, found = saved(tmp_path, dora=dora)
    adapter = read(folder, base=BASE)
    assert adapter.format is TORCHTUNE
    assert (
        dict(zip(adapter, (m.key_prefix for m in adapter.manifest.modules), strict=True)) == PATHS
    )
    for path, key_prefix in PATHS.items():
        update = adapter[path]
        low = update.direction if dora else update
        ours = torch.as_tensor(low.dense("float64"))
        torch.testing.assert_close(ours, expected(found, path, key_prefix), rtol=1e-12, atol=1e-12)
        if dora:
            heads = {"q_proj": 4, "k_proj": 2}.get(path.rpartition(".")[2])
            norms = found[f"{key_prefix}.magnitude"]
            wanted = halves(norms, heads) if heads else norms
            assert torch.equal(torch.as_tensor(update.magnitude), wanted)


@pytest.mark.parametrize("dora", [False, True])
def test_it_goes_to_peft_and_back_bit_for_bit(tmp_path, dora):
    folder, found = saved(tmp_path, dora=dora)
    source = read(folder, base=BASE)
    outcome = converted(source, PEFT, tmp_path / "peft")
    assert outcome.error == 0
    assert {row.outcome for row in outcome.rows} == {"kept"}
    written = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    for path, key_prefix in PATHS.items():
        b, a = (written[f"base_model.model.{path}.lora_{part}.weight"].double() for part in "BA")
        torch.testing.assert_close(
            2 * b @ a, expected(found, path, key_prefix), rtol=1e-12, atol=1e-12
        )
    again = converted(read(tmp_path / "peft", base=BASE), TORCHTUNE, tmp_path / "back")
    assert again.error == 0
    back = load_file(tmp_path / "back" / "adapter_0.safetensors")
    assert back.keys() == found.keys()
    assert all(torch.equal(back[key], found[key]) for key in found)
    config = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (RANK, ALPHA)
    assert {"output_proj", "w1", "output"} <= set(config["target_modules"])


def test_mixed_ranks_and_scales_are_written_as_one(tmp_path):
    folder, _ = saved(tmp_path)
    converted(read(folder, base=BASE), PEFT, tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    config |= {"alpha_pattern": {"v_proj": 7}, "rank_pattern": {"o_proj": 2}}
    file = tmp_path / "peft" / "adapter_model.safetensors"
    weights = load_file(file)
    for key in [key for key in weights if "o_proj" in key]:
        cut = weights[key][:2] if "lora_A" in key else weights[key][:, :2]
        weights[key] = cut.contiguous()
    save_file(weights, file)
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(config))
    source = read(tmp_path / "peft", base=BASE)
    outcome = converted(source, TORCHTUNE, tmp_path / "tune")
    by_name = {row.module.rpartition(".")[2]: row for row in outcome.rows}
    assert by_name["v_proj"].outcome == "rescaled"
    assert by_name["o_proj"].rank_stored == RANK
    tune = read(tmp_path / "tune", base=BASE)
    for name in source:
        a, b = (torch.as_tensor(each[name].dense("float64")) for each in (source, tune))
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_without_the_base_nothing_is_converted_either_way(tmp_path):
    folder, _ = saved(tmp_path)
    adapter = read(folder)
    assert adapter.module("model.layers.0.self_attn.q_proj").rows == Paired(None)
    assert adapter.module("model.layers.0.self_attn.v_proj").rows is None
    assert "--base" in adapter.manifest.notes[0]
    with pytest.raises(UnsupportedError, match="interleaved RoPE layout") as caught:
        convert(adapter, PEFT)
    assert "--base" in caught.value.__notes__[0]
    converted(read(folder, base=BASE), PEFT, tmp_path / "peft")
    with pytest.raises(UnsupportedError, match="orders its rows by heads") as caught:
        convert(read(tmp_path / "peft"), TORCHTUNE)
    assert "--base" in caught.value.__notes__[0]


def test_without_the_base_it_is_shrunk_in_its_own_order(tmp_path):
    folder, found = saved(tmp_path)
    source = read(folder)
    shrunk = shrink(source, Fixed(2))
    (tmp_path / "small").mkdir()
    report = shrunk.report("shrink", "rank 2")
    write(tmp_path / "small", shrunk.manifest, report.watch(shrunk), like=source)
    small = load_file(tmp_path / "small" / "adapter_0.safetensors")
    config = json.loads((tmp_path / "small" / "adapter_config.json").read_text())
    for row, key_prefix in zip(report.rows, PATHS.values(), strict=True):
        b, a = (small[f"{key_prefix}.lora_{part}.weight"].double() for part in "ba")
        wanted = dense(found, key_prefix)
        error = (config["lora_alpha"] / config["r"]) * (b @ a) - wanted
        assert row.error == pytest.approx(float(error.norm() / wanted.norm()), rel=1e-6)


def test_qwen_keeps_the_order_of_transformers(tmp_path):
    folder, found = saved(tmp_path)
    adapter = read(folder, base=BASE | {"model_type": "qwen2"})
    ours = adapter["model.layers.0.self_attn.q_proj"].dense("float64")
    wanted = dense(found, "layers.0.attn.q_proj")
    torch.testing.assert_close(torch.as_tensor(ours), wanted, rtol=1e-12, atol=1e-12)


def test_alpha_is_stated_where_no_file_has_it(tmp_path):
    folder, _ = saved(tmp_path, config=None)
    with pytest.raises(FormatError, match="alpha is unknown") as caught:
        read(folder)
    assert "--alpha N" in caught.value.__notes__[0]
    (scale,) = {module.scale for module in read(folder, alpha=12).manifest.modules}
    assert scale == 12 / RANK


SPECS = {
    "layers.0.attn.q_proj.lora_a.weight": Spec("F32", (2, 4)),
    "layers.0.attn.q_proj.lora_b.weight": Spec("F32", (8, 2)),
}
PAIR = {"r": 2, "lora_alpha": 4}


def test_detection():
    for config in (None, PAIR, PAIR | {"peft_type": "LORA"}):
        for specs in (SPECS, dict(reversed(SPECS.items()))):
            assert [f.name for f in FORMATS if f.detect(specs, config)] == ["torchtune"]
    mlx = {"layers.0.q.lora_a": Spec("F32", (4, 2)), "layers.0.q.lora_b": Spec("F32", (2, 8))}
    assert not TORCHTUNE.detect(mlx, None)


@pytest.mark.parametrize(
    ("specs", "config", "base", "kind", "message"),
    [
        ({"x.lora_a.weight": Spec("F32", (2, 4))}, PAIR, None, FormatError, "lack: x"),
        ({"layers.0.mlp.w1.magnitude": Spec("F32", (2,))}, PAIR, None, FormatError, "no lora_a"),
        ({"layers.0.attn.q_proj.magnitude": Spec("F32", (4,))}, PAIR, None, FormatError, "fit"),
        ({"layers.0.attn.q_proj.bias": Spec("F32", (4,))}, PAIR, None, FormatError, "understood"),
        ({"output.lora_a.weight": Spec("I8", (2, 4))}, PAIR, None, FormatError, "type I8"),
        ({}, {"r": 2}, None, FormatError, "alpha is unknown"),
        ({}, {"r": 2, "lora_alpha": "4"}, None, FormatError, "(is no|not a) number"),
        ({}, PAIR, BASE | {"num_attention_heads": 3}, FormatError, "not those of 3 heads"),
        ({}, PAIR, {"model_type": "llama"}, FormatError, "how many heads"),
        ({}, PAIR, {"model_type": "phi3"}, UnsupportedError, "of type phi3"),
    ],
)
def test_what_does_not_fit_is_refused(specs, config, base, kind, message):
    with pytest.raises(kind, match=message):
        TORCHTUNE.read(Contents(SPECS | specs, config, base=base))


def test_a_rank_unlike_the_configurations_is_a_problem():
    (problem,) = TORCHTUNE.read(Contents(SPECS, PAIR | {"r": 4})).problems
    assert "r is 4" in problem


def test_modules_that_torchtune_lacks_are_not_written():
    (module,) = TORCHTUNE.read(Contents(SPECS, PAIR, base=BASE)).modules
    manifest = TORCHTUNE.read(Contents(SPECS, PAIR, base=BASE))
    for name in ("model.embed_tokens", "layers.0.self_attn.q_proj", "model.layers.0.mlp.fc1"):
        other = replace(manifest, modules=(replace(module, name=name),))
        with pytest.raises(UnsupportedError, match=f"no LoRA at {name}"):
            TORCHTUNE.write(other)


def test_arrays_of_numpy_and_torch_are_ordered_alike():
    base = BASE | {"num_attention_heads": 2}
    (module,) = TORCHTUNE.read(Contents(SPECS, PAIR, base=base)).modules
    values = {key: np.random.randn(*spec.shape).astype("f4") for key, spec in SPECS.items()}
    ours = TORCHTUNE.update(module, values)
    theirs = TORCHTUNE.update(module, {key: torch.tensor(x) for key, x in values.items()})
    assert np.array_equal(ours.b, theirs.b.numpy())
    assert not np.array_equal(ours.b, values["layers.0.attn.q_proj.lora_b.weight"])
