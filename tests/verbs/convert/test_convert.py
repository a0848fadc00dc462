"""Conversions keep the update: bit for bit where only names change, and reported where not."""

import json
from math import sqrt

import pytest
import torch
from conftest import FIXTURES, MADE
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import deltas, relative_error
from safetensors.torch import load_file, save_file

from lora_tools.adapter import read, write
from lora_tools.errors import PolicyError, UnsupportedError
from lora_tools.formats.features import FEATURES, features
from lora_tools.formats.registry import FORMATS, format_named
from lora_tools.update import factors
from lora_tools.verbs.convert import convert


def converted(source, out, target, **options):
    out.mkdir(parents=True)
    plan = convert(read(source), format_named(target), **options)
    outcome = plan.report("convert")
    write(
        out, plan.manifest, outcome.watch(plan), like=plan.source.adapter, format=plan.source.format
    )
    return outcome


def peft(folder, modules, **config):
    """Write a PEFT adapter of {path: (out, in, rank, dtype)}, without any of our code."""
    folder.mkdir()
    tensors = {}
    for path, (out, inp, rank, dtype) in modules.items():
        key_prefix = f"base_model.model.{path}"
        tensors[f"{key_prefix}.lora_A.weight"] = torch.randn(rank, inp).to(dtype)
        tensors[f"{key_prefix}.lora_B.weight"] = torch.randn(out, rank).to(dtype)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ".*"} | config
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


LLAMA = {
    "model.layers.0.self_attn.q_proj": (8, 6, 4, torch.float32),
    "model.layers.0.mlp.down_proj": (6, 12, 2, torch.bfloat16),
    "model.layers.11.mlp.down_proj": (6, 12, 4, torch.float16),
    "somebodys_own.layer_3.proj": (3, 5, 4, torch.float64),
}
MIXED = {
    "rank_pattern": {"model.layers.0.mlp.down_proj": 2},
    "alpha_pattern": {"model.layers.0.mlp.down_proj": 3, "somebodys_own.layer_3.proj": 0.7},
}


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_to_kohya_and_back_keeps_every_bit(tmp_path, rslora):
    source = peft(tmp_path / "source", LLAMA, use_rslora=rslora, **MIXED)
    outcome = converted(source, tmp_path / "kohya", "kohya")
    back = converted(tmp_path / "kohya", tmp_path / "back", "peft")
    before, after = load_file(source / "adapter_model.safetensors"), deltas(tmp_path / "back")
    if not rslora:
        assert outcome.error == back.error == 0
        assert {row.outcome for row in outcome.rows + back.rows} == {"kept"}
        again = load_file(tmp_path / "back" / "adapter_model.safetensors")
        assert before.keys() == again.keys()
        assert all(torch.equal(before[key], again[key]) for key in before)
        wanted = deltas(source)
        assert all(torch.equal(wanted[name], after[name]) for name in wanted)
    assert relative_error(deltas(source), after) < 1e-12


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float16, 1e-3)])
def test_a_scale_that_is_folded_keeps_the_update(dtype, bound, tmp_path):
    modules = {path: (*shape[:3], dtype) for path, shape in LLAMA.items()}
    source = peft(tmp_path / "source", modules, **MIXED)
    outcome = converted(source, tmp_path / "mlx", "mlx")
    assert [row.outcome for row in outcome.rows].count("kept") == 2
    assert {row.rank_stored for row in outcome.rows} == {4}
    assert {row.scale for row in outcome.rows} == {2.0}
    converted(tmp_path / "mlx", tmp_path / "back", "peft")
    seen = relative_error(deltas(source), deltas(tmp_path / "back"))
    assert 0 < seen < bound
    assert seen == pytest.approx(outcome.error, rel=1e-6, abs=1e-8)  # below is noise


def test_mlx_stores_the_transposes(tmp_path):
    source = peft(tmp_path / "source", {"model.layers.0.q": (8, 6, 4, torch.float32)})
    converted(source, tmp_path / "mlx", "mlx")
    tensors = load_file(tmp_path / "mlx" / "adapters.safetensors")
    config = json.loads((tmp_path / "mlx" / "adapter_config.json").read_text())
    scale = config["lora_parameters"]["scale"]
    a, b = tensors["model.layers.0.q.lora_a"], tensors["model.layers.0.q.lora_b"]
    assert (a.shape, b.shape) == ((6, 4), (4, 8))
    wanted = deltas(source)["base_model.model.model.layers.0.q"]
    assert torch.equal(scale * (a.double() @ b.double()).T, wanted)


@settings(deadline=None, max_examples=25)
@given(rank=st.integers(1, 9), alpha=st.integers(1, 64), rslora=st.booleans())
def test_the_scale_is_right_in_every_format(tmp_path_factory, rank, alpha, rslora):
    folder = tmp_path_factory.mktemp("scale")
    shapes = {"down_blocks.0.attentions.0.proj_in": (3, 2, rank, torch.float64)}
    source = peft(folder / "peft", shapes, r=rank, lora_alpha=alpha, use_rslora=rslora)
    scale = alpha / (sqrt(rank) if rslora else rank)
    for target in ("kohya", "diffusers", "mlx", "peft"):
        converted(source, folder / target / "to", target)
        adapter = read(folder / target / "to")
        (name,) = adapter
        update = factors(adapter[name])
        assert update.scale == pytest.approx(scale, rel=1e-15)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("target", ["kohya", "mlx", "diffusers", "comfyui"])
def test_an_adapter_is_converted_whole_or_refused_with_a_list(name, target, tmp_path):
    adapter, naming = read(FIXTURES / name), format_named(target)
    beyond = [feature for feature in features(adapter.manifest) if feature not in naming.supports]
    tensors = [extra.key for extra in adapter.manifest.extras]
    nameless = target in ("comfyui", "diffusers") or (target, name) == ("mlx", "moe-experts")
    refused = beyond or tensors or nameless
    if refused:  # by kind, or because no pipeline has such names
        with pytest.raises(UnsupportedError) as caught:
            convert(adapter, naming)
        assert all(feature in str(caught.value) for feature in beyond)
        return
    outcome = converted(FIXTURES / name, tmp_path / "out", target)
    assert len(outcome.rows) == len(adapter) == len(read(tmp_path / "out"))


def test_what_is_dropped_is_listed(tmp_path):
    outcome = converted(
        FIXTURES / "minilm-embedding", tmp_path / "out", "kohya", drop=["embedding"]
    )
    assert outcome.dropped == {"embedding": ("embeddings.word_embeddings",)}
    assert "dropped: 1 × embedding" in outcome.summary()
    assert len(outcome.rows) == 6
    for fixture, feature, field in (
        ("minilm-dora", "DoRA", "use_dora"),
        ("minilm-lorabias", "bias", "lora_bias"),
    ):
        converted(FIXTURES / fixture, tmp_path / field, "peft", drop=[feature])
        config = json.loads((tmp_path / field / "adapter_config.json").read_text())
        assert config[field] is False  # or PEFT would make it anew
    plain = converted(FIXTURES / "minilm-dora", tmp_path / "plain", "kohya", drop=["DoRA"])
    assert len(plain.dropped["DoRA"]) == len(plain.rows)
    assert not any("dora_scale" in key for key in read(tmp_path / "plain").tensors)


def test_a_kind_that_is_none_is_refused():
    with pytest.raises(PolicyError, match="there is no feature dragons"):
        convert(read(FIXTURES / "minilm-plain"), format_named("kohya"), drop=["dragons"])


def test_names_get_their_dots_back_from_the_base(tmp_path):
    tensors = {
        "lora_unet_my_own_layer_0_q.lora_down.weight": torch.randn(2, 3),
        "lora_unet_my_own_layer_0_q.lora_up.weight": torch.randn(4, 2),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    adapter = read(tmp_path / "x.safetensors")
    assert list(adapter) == ["lora_unet_my_own_layer_0_q"]
    plan = convert(adapter, format_named("comfyui"), paths=["my_own.layer.0.q", "other"])
    assert [module.name for module in plan.manifest.modules] == ["diffusion_model.my_own.layer.0.q"]
    with pytest.raises(UnsupportedError, match="does not load these names"):
        convert(adapter, format_named("comfyui"))


def test_two_paths_that_flatten_to_one_are_refused(tmp_path):
    shapes = {"a.b_c": (3, 3, 4, torch.float32), "a_b.c": (3, 3, 4, torch.float32)}
    source = peft(tmp_path / "source", shapes)
    with pytest.raises(UnsupportedError, match="the same without dots"):
        convert(read(source), format_named("kohya"))


def test_every_kind_is_described_and_known_to_a_format():
    stated = {feature for format in FORMATS for feature in format.supports or ()}
    assert stated <= FEATURES.keys()


def test_a_unet_is_called_what_the_target_calls_it(tmp_path):
    key_prefix = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"
    tensors = {
        f"{key_prefix}.lora_down.weight": torch.randn(2, 6),
        f"{key_prefix}.lora_up.weight": torch.randn(8, 2),
        f"{key_prefix}.alpha": torch.tensor(1.0),
    }
    save_file(tensors, tmp_path / "sdxl.safetensors")
    names = {}
    for source, target in (("sdxl.safetensors", "diffusers"), ("diffusers", "comfyui")):
        outcome = converted(tmp_path / source, tmp_path / target, target)
        assert outcome.error == 0
        (names[target],) = read(tmp_path / target)
    path = "transformer_blocks.1.attn1.to_q"
    assert names == {
        "diffusers": f"unet.down_blocks.1.attentions.0.{path}",
        "comfyui": f"diffusion_model.input_blocks.4.1.{path}",
    }
    (update,) = read(tmp_path / "comfyui").values()
    assert torch.equal(torch.as_tensor(update.b), tensors[f"{key_prefix}.lora_up.weight"])
    assert update.scale == 0.5


def test_a_language_models_transformer_is_no_pipelines(tmp_path):
    shapes = {f"transformer.{path}": (4, 4, 4, torch.float32) for path in ("h.0.mlp", "h.1.mlp")}
    shapes["transformer.blocks.0.attn.Wqkv"] = (4, 4, 4, torch.float32)
    source = peft(tmp_path / "source", shapes)
    converted(source, tmp_path / "mlx", "mlx")
    assert set(read(tmp_path / "mlx")) == set(shapes)
    converted(source, tmp_path / "kohya", "kohya")
    converted(tmp_path / "kohya", tmp_path / "back", "peft")
    assert set(read(tmp_path / "back")) == set(shapes)
    with pytest.raises(UnsupportedError, match=r"not in diffusers' names: transformer\.h"):
        convert(read(source), format_named("diffusers"))


def test_what_has_no_place_is_listed(tmp_path):
    source = peft(tmp_path / "source", LLAMA, **MIXED)
    outcome = converted(source, tmp_path / "kohya", "kohya")
    assert "other fields" in outcome.left_out["adapter_config.json"]
    file = tmp_path / "hashed.safetensors"
    (made,) = (tmp_path / "kohya").glob("*.safetensors")
    save_file(load_file(made), file, metadata={"sshs_model_hash": "0", "ss_title": "mine"})
    again = converted(file, tmp_path / "again", "peft")
    assert again.left_out == {"header field sshs_model_hash": "describes another file"}
    assert read(tmp_path / "again").manifest.metadata["ss_title"] == "mine"


@pytest.mark.parametrize("fixture", ["minilm-plain", "minilm-rslora", "minilm-patterns"])
@pytest.mark.parametrize("target", ["peft", "kohya"])
def test_an_alpha_is_written_and_the_scale_folded(fixture, target, tmp_path):
    """For loaders that assume one: the update is the same, and the error that of the bytes."""
    report = converted(FIXTURES / fixture, tmp_path / "out", target, alpha=16.0)
    written = read(tmp_path / "out")
    assert {module.alpha for module in written.manifest.modules} == {16.0}
    assert not any(module.rslora for module in written.manifest.modules)
    before = deltas(FIXTURES / fixture)
    lost = whole = 0.0
    for name, update in written.items():
        low = factors(update)
        found = low.scale * torch.as_tensor(low.b).double() @ torch.as_tensor(low.a).double()
        wanted = before[f"base_model.model.{name}"]
        lost += float((wanted - found).square().sum())
        whole += float(wanted.square().sum())
    assert report.error < 1e-3  # of float16, where the factor is no power of two
    assert (lost / whole) ** 0.5 == pytest.approx(report.error, rel=1e-3, abs=1e-7)
    if target == "peft":
        config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        assert config["lora_alpha"] == 16
        assert not config["alpha_pattern"]


def test_an_alpha_that_a_format_has_not_is_refused(tmp_path):
    tensors = {}
    for name in ("qkv_lora1", "proj_lora1"):
        prefix = f"double_blocks.0.processor.{name}"
        out = 3 * 3072 if "qkv" in name else 3072
        tensors |= {f"{prefix}.down.weight": torch.randn(2, 3072)}
        tensors |= {f"{prefix}.up.weight": torch.randn(out, 2)}
    save_file(tensors, tmp_path / "x.safetensors")
    adapter = read(tmp_path / "x.safetensors")
    assert adapter.format.name == "xlabs"
    with pytest.raises(UnsupportedError, match="xlabs has no alpha of its own"):
        convert(adapter, format_named("xlabs"), alpha=16.0)
    for alpha in (0.0, -1.0, float("nan")):
        with pytest.raises(PolicyError, match="is not above 0"):
            convert(read(FIXTURES / "minilm-plain"), format_named("peft"), alpha=alpha)
