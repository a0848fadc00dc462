"""diffusers: what its own loaders make of files written here, on a tiny UNet and a tiny Flux."""

import json
import warnings
from math import sqrt

import pytest
import torch
from conftest import real
from judges import judge
from pipelines import flux, unet
from safetensors.torch import load_file, save_file

from lora_tools.adapter import read, write
from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.files.header import Spec
from lora_tools.formats.base import Contents
from lora_tools.formats.registry import FORMATS, detected, format_named
from lora_tools.verbs.convert import convert

DIFFUSERS = format_named("diffusers")
UNET = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": 4,
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0": 2,
    "mid_block.attentions.0.transformer_blocks.0.ff.net.2": 4,
    "mid_block.resnets.0.conv1": 3,
    "down_blocks.0.attentions.0.proj_in": 4,
}
FLUX = {
    "transformer_blocks.0.attn.add_q_proj": 4,
    "single_transformer_blocks.0.proj_mlp": 2,
    "single_transformer_blocks.0.attn.to_k": 4,
}


def peft(folder, model, targets, given=None, **config):
    """Write an adapter as peft would, alphas and all; return its dense updates."""
    torch.manual_seed(1)
    tensors, wanted = {}, {}
    alphas = dict(zip(targets, given or (3.0, 5.0, 4.0, 2.0, 8.0), strict=False))
    for path, rank in targets.items():
        weight = model.get_submodule(path).weight
        ones = (1,) * (weight.ndim - 2)
        a = torch.randn(rank, *weight.shape[1:])
        b = torch.randn(weight.shape[0], rank, *ones)
        key_prefix = f"base_model.model.{path}"
        tensors |= {f"{key_prefix}.lora_A.weight": a, f"{key_prefix}.lora_B.weight": b}
        scale = alphas[path] / (sqrt(rank) if config.get("use_rslora") else rank)
        wanted[path] = (scale * b.flatten(1) @ a.flatten(1)).reshape(weight.shape)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config |= {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 4,
        "rank_pattern": targets,
        "alpha_pattern": alphas,
        "target_modules": list(targets),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return wanted


def converted(source, out, target):
    plan = convert(read(source), format_named(target))
    out.mkdir()
    updates = plan.report("convert").watch(plan)
    write(out, plan.manifest, updates, like=plan.source.adapter, format=plan.source.format)
    (file,) = out.glob("*.safetensors")
    return file


def updates_of(model):
    return {
        name: layer.get_delta_weight("default").detach()
        for name, layer in model.named_modules()
        if getattr(layer, "lora_A", None)
    }


@pytest.mark.parametrize(
    ("target", "rslora"), [("diffusers", False), ("diffusers", True), ("kohya", False)]
)
def test_diffusers_loads_a_unets_adapter_at_its_strength(target, rslora, tmp_path):
    model = unet()
    # diffusers 0.42 gives attention layers of a kohya file the first alpha that it meets.
    alphas = (5.0,) * len(UNET) if target == "kohya" else None
    wanted = peft(tmp_path / "peft", model, UNET, alphas, use_rslora=rslora)
    file = converted(tmp_path / "peft", tmp_path / target, target)
    loader = judge("diffusers.loaders").StableDiffusionLoraLoaderMixin
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state, alphas, metadata = loader.lora_state_dict(
            str(file.parent),
            weight_name=file.name,
            unet_config=model.config,
            return_lora_metadata=True,
        )
        loader.load_lora_into_unet(state, alphas, model, adapter_name="default", metadata=metadata)
    seen = updates_of(model)
    assert seen.keys() == wanted.keys()
    for path, delta in wanted.items():
        torch.testing.assert_close(seen[path], delta, rtol=1e-5, atol=1e-5)


def test_diffusers_loads_a_transformers_adapter_at_its_strength(tmp_path):
    model = flux()
    wanted = peft(tmp_path / "peft", model, FLUX)
    file = converted(tmp_path / "peft", tmp_path / "out", "diffusers")
    loader = judge("diffusers.loaders").FluxLoraLoaderMixin
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state, metadata = loader.lora_state_dict(
            str(file.parent), weight_name=file.name, return_lora_metadata=True
        )
        loader.load_lora_into_transformer(
            state, None, model, adapter_name="default", metadata=metadata
        )
    seen = updates_of(model)
    assert seen.keys() == wanted.keys()
    for path, delta in wanted.items():
        torch.testing.assert_close(seen[path], delta, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
def test_diffusers_loads_a_transformers_kohya_file_at_its_strength(rslora, tmp_path):
    """Layers that were stacked here, and are split by diffusers' own code."""
    model = flux()
    block = "transformer_blocks.0"
    targets = {f"{block}.attn.to_{x}": 4 for x in "qkv"}
    targets |= {f"{block}.attn.add_q_proj": 2, f"{block}.ff.net.2": 3, f"{block}.norm1.linear": 4}
    alphas = (3.0, 5.0, 4.0, 2.0, 8.0, 1.0)
    named = {"base_model_name_or_path": "black-forest-labs/FLUX.1-dev", "use_rslora": rslora}
    wanted = peft(tmp_path / "peft", model, targets, alphas, **named)
    file = converted(tmp_path / "peft", tmp_path / "out", "kohya")
    loader = judge("diffusers.loaders").FluxLoraLoaderMixin
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state, metadata = loader.lora_state_dict(
            str(file.parent), weight_name=file.name, return_lora_metadata=True
        )
        loader.load_lora_into_transformer(
            state, None, model, adapter_name="default", metadata=metadata
        )
    seen = updates_of(model)
    for path, delta in wanted.items():
        torch.testing.assert_close(seen.pop(path), delta, rtol=1e-5, atol=1e-5)
    # What else the stack covers, diffusers' code makes layers of: they add nothing.
    assert set(seen) == {f"{block}.attn.add_k_proj", f"{block}.attn.add_v_proj"}
    assert not any(delta.any() for delta in seen.values())


WHOLE = {f"transformer_blocks.0.attn.to_{x}": 3072 for x in "qkv"} | {
    **{f"single_transformer_blocks.0.attn.to_{x}": 3072 for x in "qkv"},
    "single_transformer_blocks.0.proj_mlp": 12288,
}


@pytest.mark.parametrize("target", ["kohya", "comfyui"])
def test_diffusers_splits_what_is_stacked_here_in_its_true_size(target, tmp_path):
    """Its code knows Flux's own sizes only: the factors are compared, by what they do to a vector.

    It takes ComfyUI's names of Flux's layers under kohya's suffixes, so those are put there:
    ComfyUI itself knows both.
    """
    utils = judge("diffusers.loaders.lora_conversion_utils")
    torch.manual_seed(0)
    tensors = {}
    for path, out in WHOLE.items():
        key_prefix = f"base_model.model.{path}"
        tensors[f"{key_prefix}.lora_A.weight"] = torch.randn(2, 3072)
        tensors[f"{key_prefix}.lora_B.weight"] = torch.randn(out, 2)
    (tmp_path / "peft").mkdir()
    save_file(tensors, tmp_path / "peft" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3.0, "target_modules": ".*"}
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(config))
    file = converted(tmp_path / "peft", tmp_path / "out", target)
    written = {}
    for key, tensor in load_file(file).items():
        written[key.replace("lora_A", "lora_down").replace("lora_B", "lora_up")] = tensor
    state = utils._convert_kohya_flux_lora_to_diffusers(written)
    x = torch.randn(3072)
    for path in WHOLE:
        a, b = (tensors[f"base_model.model.{path}.lora_{f}.weight"] for f in "AB")
        found = [state[f"transformer.{path}.lora_{f}.weight"] for f in "AB"]
        seen, wanted = found[1] @ (found[0] @ x), 3 / 2 * b @ (a @ x)
        torch.testing.assert_close(seen, wanted, rtol=1e-4, atol=1e-2)


def test_what_diffusers_itself_writes_is_read_at_its_strength(tmp_path):
    model = unet()
    config = judge("peft").LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["to_q", "conv1"],
        rank_pattern={"conv1": 2},
        alpha_pattern={"to_q": 10},
        init_lora_weights=False,
    )
    model.add_adapter(config, adapter_name="default")
    model.save_lora_adapter(tmp_path, adapter_name="default")
    (file,) = tmp_path.glob("*.safetensors")
    layers = {f"unet.{key}": value for key, value in load_file(file).items()}
    fields = {f"unet.{k}": v for k, v in config.to_dict().items() if not isinstance(v, set)}
    metadata = {"lora_adapter_metadata": json.dumps(fields, default=list)}
    save_file(layers, file, metadata=metadata)
    adapter = read(file)
    assert adapter.format.name == "diffusers"
    wanted = updates_of(model)
    assert {name.removeprefix("unet.") for name in adapter} == wanted.keys()
    for name in adapter:
        seen = torch.as_tensor(adapter[name].dense("float32"))
        delta = wanted[name.removeprefix("unet.")]
        torch.testing.assert_close(seen.reshape(delta.shape), delta, rtol=1e-5, atol=1e-5)


def test_the_oldest_spelling_is_read(tmp_path):
    file = real("diffusers-sd15-catundchat") / "pytorch_lora_weights.safetensors"
    adapter = read(file)
    assert len(adapter) == 128
    assert {module.scale for module in adapter.manifest.modules} == {1.0}
    loader = judge("diffusers.loaders").StableDiffusionLoraLoaderMixin
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state, alphas = loader.lora_state_dict(str(file.parent), weight_name=file.name)
    assert not alphas
    key_prefixes = {key.rpartition(".lora")[0] for key in state} | {
        key.replace(".processor.", ".").rpartition("_lora.")[0].replace("to_out", "to_out.0")
        for key in state
        if "_lora." in key
    }
    found = {
        key_prefix if key_prefix.startswith("unet.") else f"unet.{key_prefix}"
        for key_prefix in key_prefixes
        if key_prefix
    }
    assert set(adapter) <= found


def pair(key_prefix, a=".lora_A.weight", b=".lora_B.weight"):
    return {key_prefix + a: Spec("F32", (2, 3)), key_prefix + b: Spec("F32", (4, 2))}


NAMES = {
    "unet.mid_block.attentions.0.proj_in": pair("unet.mid_block.attentions.0.proj_in"),
    "unet.conv_in": pair("unet.conv_in", ".lora.down.weight", ".lora.up.weight"),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": pair(
        "text_encoder.text_model.encoder.layers.0.self_attn.to_q",
        "_lora.down.weight",
        "_lora.up.weight",
    ),
    "text_encoder.text_model.encoder.layers.0.mlp.fc1": pair(
        "text_encoder.text_model.encoder.layers.0.mlp.fc1",
        ".lora_linear_layer.down.weight",
        ".lora_linear_layer.up.weight",
    ),
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0": pair(
        "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out",
        "_lora.down.weight",
        "_lora.up.weight",
    ),
    "transformer.transformer_blocks.0.attn.to_q": pair(
        "base_model.model.transformer_blocks.0.attn.to_q"
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_every_way_of_naming_leads_to_one_name(name):
    assert DIFFUSERS.detect(NAMES[name], None)
    manifest = DIFFUSERS.read(Contents(NAMES[name], None, {}, {}))
    assert [module.name for module in manifest.modules] == [name]
    written = DIFFUSERS.write(manifest)
    assert next(iter(written.specs)).startswith(f"{name}.lora_")
    assert "scale is 1" in manifest.notes[0]


def with_config(**fields):
    fields = {
        f"unet.{field}": value for field, value in ({"r": 2, "lora_alpha": 2} | fields).items()
    }
    return {"lora_adapter_metadata": json.dumps(fields)}


@pytest.mark.parametrize(
    ("metadata", "kind", "message"),
    [
        (with_config(r=3), FormatError, "rank 2, but 3 in the header"),
        (with_config(use_dora=True), FormatError, "use_dora and the tensors"),
        (with_config(use_qalora=True), UnsupportedError, "use_qalora: no sum"),
        ({"lora_adapter_metadata": "["}, FormatError, "not valid JSON"),
    ],
)
def test_headers_that_contradict_their_tensors_are_refused(metadata, kind, message):
    with pytest.raises(kind, match=message):
        DIFFUSERS.read(Contents(pair("unet.conv_in"), None, metadata, {}))


def test_numbered_parts_of_fused_layers_are_no_modules():
    specs = {
        f"transformer.{key_prefix}.lora_{way}.weight": Spec("F32", (2, 2))
        for key_prefix in ("double_blocks.0.img_attn.qkv.0", "single_blocks.0.linear1.3")
        for way in ("down", "up")
    }
    for order in (specs, dict(reversed(specs.items()))):
        assert not [format.name for format in FORMATS if format.detect(order, None)]
        with pytest.raises(UnsupportedError, match="number the parts of fused layers"):
            detected(order, None)


@pytest.mark.parametrize("build", [unet, flux], ids=["unet", "flux"])
def test_what_a_model_saves_has_the_alpha_of_its_header(build, tmp_path):
    """`save_lora_adapter` writes the configuration without a component before its fields."""
    peft = judge("peft")
    model = build()
    model.add_adapter(peft.LoraConfig(r=4, lora_alpha=3, target_modules=["to_q"]))
    model.save_lora_adapter(str(tmp_path))
    (file,) = tmp_path.glob("*.safetensors")
    adapter = read(file)
    assert adapter.format.name == "diffusers"
    assert {module.scale for module in adapter.manifest.modules} == {0.75}
