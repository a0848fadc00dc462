"""Merge plans: where updates belong, and what is refused before a byte is written."""

import json
from pathlib import Path

import dense
import pytest
import torch
from safetensors.torch import save_file

from lora_tools import read
from lora_tools.errors import FormatError, LoraToolsError, PolicyError, UnsupportedError
from lora_tools.merging.planner import BESIDE
from lora_tools.model import open_model
from lora_tools.verbs.inspect import inspect
from lora_tools.verbs.merge import MergeOptions, WeightedAdapter, merge, plan
from lora_tools.verbs.verify import verify

R, H = 3, 8


def adapter(
    folder: Path, shapes: dict[str, tuple[int, int]], extras=None, **config
) -> WeightedAdapter:
    """Save random factors for modules of shapes (out, in)."""
    folder.mkdir(parents=True)
    tensors = dict(extras or {})
    for name, (out, inp) in shapes.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(R, inp)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(out, R)
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = sorted({name.rpartition(".")[2] for name in shapes})
    known = {"peft_type": "LORA", "r": R, "lora_alpha": 2 * R, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(known | config))
    return WeightedAdapter(read(folder))


def base_of(tmp_path: Path, dtype=torch.float64, config=None, **shapes) -> Path:
    state = {name.replace("__", "."): torch.randn(shape) for name, shape in shapes.items()}
    return dense.save_base(tmp_path / "base", state, dtype, **(config or {}))


def delta(strong: WeightedAdapter, name: str) -> torch.Tensor:
    """Return an update in float64, from the file alone."""
    tensors = dense.load_model(strong.adapter.path)
    a, b = (tensors[f"base_model.model.{name}.lora_{x}.weight"].double() for x in "AB")
    return 2 * b @ a


def merged(
    base: Path, strong: WeightedAdapter, tmp_path: Path, **options
) -> dict[str, torch.Tensor]:
    merge(plan(open_model(base), [strong], MergeOptions(**options))).write(tmp_path / "out")
    return dense.load_model(tmp_path / "out")


Q, K = (8, H), (4, H)
SPLIT = {"l.0.q_proj.weight": Q, "l.0.k_proj.weight": K, "l.0.v_proj.weight": K}


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_fused_update_is_shared_out_among_split_weights(prefix, tmp_path):
    base = base_of(tmp_path, **{prefix + name: shape for name, shape in SPLIT.items()})
    strong = adapter(tmp_path / "adapter", {"l.0.qkv_proj": (16, H)})
    before, after = dense.load_model(base), merged(base, strong, tmp_path)
    whole = delta(strong, "l.0.qkv_proj")
    for name, rows in (("q", slice(0, 8)), ("k", slice(8, 12)), ("v", slice(12, 16))):
        key = f"{prefix}l.0.{name}_proj.weight"
        assert torch.allclose(after[key] - before[key], whole[rows], atol=1e-12)


@pytest.mark.parametrize("fused", ["l.0.qkv_proj.weight", "l.0.in_proj_weight"])
def test_split_updates_find_their_rows_in_a_fused_weight(fused, tmp_path):
    base = base_of(tmp_path, **{fused: (16, H)})
    shapes = {name.removesuffix(".weight"): shape for name, shape in SPLIT.items()}
    strong = adapter(tmp_path / "adapter", shapes)
    change = merged(base, strong, tmp_path)[fused] - dense.load_model(base)[fused]
    wanted = torch.cat([delta(strong, name) for name in shapes])
    assert torch.allclose(change, wanted, atol=1e-12)


def test_updates_of_single_experts_find_their_place_in_a_stack(tmp_path):
    base = base_of(
        tmp_path, **{"l.mlp.experts.gate_up_proj": (3, 12, H), "l.mlp.experts.down_proj": (3, H, 6)}
    )
    shapes = {f"l.block_sparse_moe.experts.{e}.{w}": (6, H) for e in (0, 2) for w in ("w1", "w3")}
    shapes["l.block_sparse_moe.experts.1.w2"] = (H, 6)
    strong = adapter(tmp_path / "adapter", shapes)
    before, after = dense.load_model(base), merged(base, strong, tmp_path)
    change = {key: after[key] - before[key] for key in before}
    stem = "l.block_sparse_moe.experts"
    for expert in (0, 2):
        gate, up = change["l.mlp.experts.gate_up_proj"][expert].split(6)
        assert torch.allclose(gate, delta(strong, f"{stem}.{expert}.w1"), atol=1e-12)
        assert torch.allclose(up, delta(strong, f"{stem}.{expert}.w3"), atol=1e-12)
    assert not change["l.mlp.experts.gate_up_proj"][1].any()
    down = change["l.mlp.experts.down_proj"]
    assert torch.allclose(down[1], delta(strong, f"{stem}.1.w2"), atol=1e-12)
    assert not down[[0, 2]].any()


@pytest.mark.parametrize(
    ("version", "model_type", "transposed"),
    [("0.18.0", "mixtral", True), ("0.19.1", "mixtral", False), ("0.21.2", "gpt_oss", True)],
)
def test_square_experts_are_turned_as_pefts_version_says(version, model_type, transposed, tmp_path):
    base = base_of(
        tmp_path, config={"model_type": model_type}, **{"l.experts.down_proj": (2, H, H)}
    )
    a, b = torch.randn(2 * R, H), torch.randn(H, 2 * R)
    factors = {"lora_A.weight": a, "lora_B.weight": b}
    extras = {f"base_model.model.l.experts.{name}": t for name, t in factors.items()}
    more = {"target_parameters": ["experts.down_proj"], "target_modules": []}
    strong = adapter(tmp_path / "adapter", {}, extras, **more, peft_version=version)
    change = merged(base, strong, tmp_path)["l.experts.down_proj"]
    change -= dense.load_model(base)["l.experts.down_proj"]
    wanted = 2 * torch.einsum(
        "ore,eri->eoi", b.double().reshape(H, R, 2), a.double().reshape(2, R, H)
    )
    assert torch.allclose(change, wanted.mT if transposed else wanted, atol=1e-12)
    silent = adapter(tmp_path / "silent", {}, extras, **more)
    with pytest.raises(FormatError, match="does not say which PEFT wrote it"):
        plan(open_model(base), [silent])


def test_a_convolution_with_groups_is_merged_only_where_its_weight_can_hold_it(tmp_path):
    base = base_of(tmp_path, **{"conv.weight": (6, 2, 3, 3)})  # 4 channels in 2 groups
    a, b = torch.randn(4, 4, 3, 3), torch.randn(6, 2, 1, 1)
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["conv"]}
    keys = [f"base_model.model.conv.lora_{x}.weight" for x in "AB"]
    wild = adapter(tmp_path / "wild", {}, dict(zip(keys, (a, b), strict=True)), **config)
    with pytest.raises(FormatError, match="each of which reads all channels"):
        plan(open_model(base), [wild])
    recipe = plan(open_model(base), [wild], MergeOptions(allow_missing=True))
    assert "groups" in next(iter(recipe.left_out.values()))
    tame = a.clone()
    tame[:2, 2:] = 0
    tame[2:, :2] = 0
    strong = adapter(tmp_path / "tame", {}, dict(zip(keys, (tame, b), strict=True)), **config)
    change = merged(base, strong, tmp_path)["conv.weight"] - dense.load_model(base)["conv.weight"]
    x = torch.randn(1, 4, 7, 7).double()
    conv = torch.nn.functional.conv2d
    wanted = 2 * conv(conv(x, tame.double()), b.double(), groups=2)
    assert torch.allclose(conv(x, change, groups=2), wanted, atol=1e-10)


def test_scaled_float8_is_multiplied_out(tmp_path):
    weight = torch.randn(6, 5).to(torch.float8_e4m3fn)
    other, blocks = torch.randn(4, 6).to(torch.float8_e4m3fn), torch.rand(2, 2) + 0.5
    state = {
        "q_proj.weight": weight,
        "q_proj.weight_scale": torch.rand(6, 1) + 0.5,
        "o_proj.weight": other,
        "o_proj.weight_scale_inv": blocks,
    }
    folder = tmp_path / "base"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 3]}}
    (folder / "config.json").write_text(json.dumps(config))
    strong = adapter(tmp_path / "adapter", {"q_proj": (6, 5)})
    with pytest.raises(UnsupportedError, match=r"float8|cannot be rounded"):
        plan(open_model(folder), [strong])
    got = merged(folder, strong, tmp_path, dtype="F32")
    assert got.keys() == {"q_proj.weight", "o_proj.weight"}
    wanted = weight.double() * state["q_proj.weight_scale"].double() + delta(strong, "q_proj")
    assert torch.allclose(got["q_proj.weight"].double(), wanted, rtol=1e-6)
    scale = blocks.double().repeat_interleave(2, 0).repeat_interleave(3, 1)
    assert torch.equal(got["o_proj.weight"], (other.double() * scale).float())
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_comfyuis_scaled_float8_is_multiplied_out_and_loses_its_mark(tmp_path):
    weight, factor = torch.randn(6, 5).to(torch.float8_e4m3fn), torch.tensor([0.37])
    state = {
        "q_proj.weight": weight,
        "q_proj.scale_weight": factor,
        "q_proj.scale_input": torch.ones(1),
        "scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn),
    }
    folder = tmp_path / "base"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    strong = adapter(tmp_path / "adapter", {"q_proj": (6, 5)})
    got = merged(folder, strong, tmp_path, dtype="F32")
    assert got.keys() == {"q_proj.weight"}
    wanted = weight.double() * factor.double() + delta(strong, "q_proj")
    assert torch.allclose(got["q_proj.weight"].double(), wanted, rtol=1e-6)


REFUSED = {
    "layer_replication": (
        {"layer_replication": [[0, 1], [0, 1]]},
        {},
        "layers that the base shares",
    ),
    "gptq": ({}, {"quantization_config": {"quant_method": "gptq"}}, "quantised with GPTQ"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_merged_is_refused_by_name(name, tmp_path):
    adapters, config, stated = REFUSED[name]
    base = base_of(tmp_path, config=config, **{"q_proj.weight": (8, H)})
    strong = adapter(tmp_path / "adapter", {"q_proj": (8, H)}, **adapters)
    with pytest.raises(UnsupportedError, match=stated):
        plan(open_model(base), [strong])


def test_unmatched_entries_are_named_and_may_be_left_out(tmp_path):
    base = base_of(tmp_path, **{"a.q_proj.weight": (8, H), "a.v_proj.weight": (4, 4)})
    shapes = {"a.q_proj": (8, H), "a.k_proj": (8, H), "a.v_proj": (8, H)}
    strong = adapter(tmp_path / "adapter", shapes)
    with pytest.raises(FormatError, match=r"2 entries are unmatched") as caught:
        plan(open_model(base), [strong])
    stated = str(caught.value)
    assert "a.k_proj: no such weight" in stated
    assert "a.v_proj: an update of shape [8, 8] for a.v_proj.weight, which has [4, 4]" in stated
    recipe = plan(open_model(base), [strong], MergeOptions(allow_missing=True))
    assert len(recipe.left_out) == 2
    assert recipe.entries["a.q_proj.weight"].patches


def test_replacements_that_contradict_each_other_are_refused(tmp_path):
    base = base_of(tmp_path, torch.float32, **{"q_proj.weight": (8, H), "score.weight": (2, H)})
    saved = {"modules_to_save": ["score"]}
    strong = [
        adapter(
            tmp_path / name,
            {"q_proj": (8, H)},
            {"base_model.model.score.weight": torch.full((2, H), value)},
            **saved,
        )
        for name, value in (("one", 1.0), ("two", 2.0), ("like-one", 1.0))
    ]
    with pytest.raises(UnsupportedError, match=r"score.weight: replaced by .*one and by .*two"):
        plan(open_model(base), strong[:2])
    got = merge(plan(open_model(base), [strong[0], strong[2]]))
    report = got.write(tmp_path / "out")
    assert {row.tensor: row.outcome for row in report.rows}["score.weight"] == "replaced"
    assert torch.equal(dense.load_model(tmp_path / "out")["score.weight"], torch.ones(2, H))
    out = plan(open_model(base), [WeightedAdapter(strong[0].adapter, -1.0)])
    assert "cannot undo" in next(iter(out.left_out.values()))


def test_dora_is_neither_taken_out_nor_added_to(tmp_path):
    base = base_of(tmp_path, **{"q_proj.weight": (8, H)})
    extras = {"base_model.model.q_proj.lora_magnitude_vector": torch.rand(8)}
    dora = adapter(tmp_path / "dora", {"q_proj": (8, H)}, extras, use_dora=True)
    plain = adapter(tmp_path / "plain", {"q_proj": (8, H)})
    with pytest.raises(UnsupportedError, match="cannot be taken out"):
        plan(open_model(base), [WeightedAdapter(dora.adapter, -1.0)])
    for pair in ([dora, plain], [plain, dora]):
        with pytest.raises(UnsupportedError, match="nothing else can be added"):
            plan(open_model(base), pair)


def test_there_has_to_be_something_to_untie(tmp_path):
    base = base_of(tmp_path, **{"q_proj.weight": (8, H)})
    with pytest.raises(PolicyError, match="nothing to untie"):
        plan(
            open_model(base),
            [adapter(tmp_path / "a", {"q_proj": (8, H)})],
            MergeOptions(untie=True),
        )


def test_nan_and_overflow_are_named(tmp_path):
    base = base_of(tmp_path, torch.float16, **{"q_proj.weight": (8, H)})
    key = "base_model.model.q_proj.lora_A.weight"
    large = adapter(tmp_path / "large", {"q_proj": (8, H)})
    tensors = dense.load_model(tmp_path / "large")
    for name, value, stated in (
        ("nan", float("nan"), "NaN or Inf"),
        ("big", 1e9, "--dtype float32"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        save_file(
            tensors | {key: torch.full_like(tensors[key], value)},
            folder / "adapter_model.safetensors",
        )
        config = (tmp_path / "large" / "adapter_config.json").read_text()
        (folder / "adapter_config.json").write_text(config)
        with pytest.raises(LoraToolsError) as caught:
            merge(plan(open_model(base), [WeightedAdapter(read(folder))])).write(tmp_path / "out")
        assert stated in str(caught.value) + "".join(getattr(caught.value, "__notes__", ()))
        assert not (tmp_path / "out").exists()
    del large


def test_dora_by_column_is_refused_by_name(tmp_path):
    base = base_of(tmp_path, **{"q.weight": (6, H)})
    file = tmp_path / "kohya.safetensors"
    tensors = {
        "lora_unet_q.lora_down.weight": torch.randn(R, H),
        "lora_unet_q.lora_up.weight": torch.randn(6, R),
        "lora_unet_q.alpha": torch.tensor(1.0),
        "lora_unet_q.dora_scale": torch.ones(1, H),
    }
    save_file(tensors, file)
    with pytest.raises(UnsupportedError, match=r"DoRA by input column.*lora_unet_q"):
        plan(open_model(base), [WeightedAdapter(read(file))])


def test_layer_31_is_not_layer_0_of_a_base_with_one(tmp_path):
    base = base_of(tmp_path, **{"model.layers.0.q_proj.weight": (8, H)})
    strong = adapter(tmp_path / "adapter", {"model.layers.31.q_proj": (8, H)})
    with pytest.raises(FormatError, match=r"layers\.31\.q_proj: no such weight") as caught:
        plan(open_model(base), [strong])
    assert "model.layers.0.q_proj.weight" in "".join(caught.value.__notes__)
    left = plan(open_model(base), [strong], MergeOptions(allow_missing=True))
    assert [*left.left_out] == [f"{strong.adapter.path}: model.layers.31.q_proj"]
    assert left.entries["model.layers.0.q_proj.weight"].plain


def test_a_vision_tower_is_not_a_language_model(tmp_path):
    base = base_of(tmp_path, **{f"model.layers.{i}.q_proj.weight": (8, H) for i in range(2)})
    shapes = {f"vision_tower.encoder.layers.{i}.q_proj": (8, H) for i in range(2)}
    with pytest.raises(FormatError, match="2 entries are unmatched") as caught:
        plan(open_model(base), [adapter(tmp_path / "adapter", shapes)])
    stated = str(caught.value)
    assert "is under vision_tower.encoder., the base has such names only under model." in stated


def test_two_components_in_one_place_are_refused_with_both(tmp_path):
    base = base_of(tmp_path, **{"layers.0.q_proj.weight": (8, H)})
    shapes = {f"{tower}.layers.0.q_proj": (8, H) for tower in ("left", "right")}
    with pytest.raises(FormatError, match=r"left\.layers.* and right\.layers.* both fit layers"):
        plan(open_model(base), [adapter(tmp_path / "adapter", shapes)])


def test_a_prefix_is_in_the_report_of_a_merge_and_of_its_proof(tmp_path):
    base = base_of(tmp_path, torch.float32, **{"lm.model.layers.0.q_proj.weight": (8, H)})
    strong = adapter(tmp_path / "adapter", {"model.layers.0.q_proj": (8, H)})
    made = plan(open_model(base), [strong])
    report = merge(made).write(tmp_path / "out")
    path = str(strong.adapter.path)
    swap = {"path": path, "from": "", "to": "lm.", "count": 1, "family": ""}
    assert report.to_dict()["prefixes"] == [swap]
    stated = "names begin with '' where those of the base begin with 'lm.' (1 of them)"
    assert stated in report.to_text()
    proof = verify(open_model(tmp_path / "out").tensors, made)
    assert proof.passed
    assert proof.to_dict()["prefixes"] == [swap]
    assert stated in proof.summary()
    compared = inspect(strong.adapter, base=open_model(base)).to_dict()
    assert compared["prefixes"] == [swap]
    assert any(stated in note for note in compared["notes"])


def test_what_llava_trained_beside_the_adapter_is_named(tmp_path):
    base = base_of(tmp_path, l__0__q_proj__weight=Q)
    weighted = adapter(tmp_path / "adapter", {"l.0.q_proj": Q})
    torch.save({"model.mm_projector.0.weight": torch.zeros(2)}, tmp_path / "adapter" / BESIDE)
    merging = plan(open_model(base), [WeightedAdapter(read(weighted.adapter.path))])
    (reason,) = (why for name, why in merging.left_out.items() if name.endswith(BESIDE))
    assert "LLaVA trained beside the adapter" in reason


def test_a_convolution_whose_kernel_no_file_has_is_refused_by_name(tmp_path):
    """AdaLoRA has a convolution's A as a matrix, without a kernel."""
    base = base_of(tmp_path, l__0__conv__weight=(8, 4, 3, 3))
    weighted = adapter(tmp_path / "adapter", {"l.0.conv": (8, 36)})
    with pytest.raises(FormatError, match="a convolution, whose kernel is in no file"):
        plan(open_model(base), [weighted])
