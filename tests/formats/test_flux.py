"""Flux's fused layers, split: each of diffusers' layers has its rows of the update."""

import pytest
import torch
from judges import judge
from safetensors.torch import save_file

from lora_tools.adapter import read, write
from lora_tools.errors import UnsupportedError
from lora_tools.formats.registry import format_named
from lora_tools.verbs.convert import convert

# What diffusers stacks to get the authors' weight (scripts/convert_flux_to_diffusers.py, inverted).
LAYERS = {
    "double_blocks.0.img_attn.qkv": [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"],
    "double_blocks.0.txt_attn.qkv": [f"transformer_blocks.0.attn.add_{x}_proj" for x in "qkv"],
    "double_blocks.0.img_attn.proj": ["transformer_blocks.0.attn.to_out.0"],
    "double_blocks.0.txt_attn.proj": ["transformer_blocks.0.attn.to_add_out"],
    "double_blocks.0.img_mlp.0": ["transformer_blocks.0.ff.net.0.proj"],
    "double_blocks.0.txt_mlp.2": ["transformer_blocks.0.ff_context.net.2"],
    "double_blocks.0.img_mod.lin": ["transformer_blocks.0.norm1.linear"],
    "double_blocks.0.txt_mod.lin": ["transformer_blocks.0.norm1_context.linear"],
    "single_blocks.1.linear1": [
        *(f"single_transformer_blocks.1.attn.to_{x}" for x in "qkv"),
        "single_transformer_blocks.1.proj_mlp",
    ],
    "single_blocks.1.linear2": ["single_transformer_blocks.1.proj_out"],
    "single_blocks.1.modulation.lin": ["single_transformer_blocks.1.norm.linear"],
    "img_in": ["x_embedder"],
    "txt_in": ["context_embedder"],
    "time_in.in_layer": ["time_text_embed.timestep_embedder.linear_1"],
    "vector_in.out_layer": ["time_text_embed.text_embedder.linear_2"],
    "guidance_in.in_layer": ["time_text_embed.guidance_embedder.linear_1"],
    "final_layer.linear": ["proj_out"],
}
LAST = "final_layer.adaLN_modulation.1"


def model():
    diffusers = judge("diffusers")
    sizes = {"in_channels": 4, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 8}
    more = {"num_attention_heads": 2, "joint_attention_dim": 8, "pooled_projection_dim": 8}
    more |= {"guidance_embeds": True, "axes_dims_rope": (2, 2, 4)}
    return dict(diffusers.FluxTransformer2DModel(**sizes, **more).named_modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_layers_are_split_bit_for_bit(dtype, tmp_path):
    torch.manual_seed(0)
    layers = model()
    tensors, wanted = {}, {}
    for path, parts in [*LAYERS.items(), (LAST, ["norm_out.linear"])]:
        out = sum(layers[part].out_features for part in parts)
        a = torch.randn(3, layers[parts[0]].in_features).to(dtype)
        b = torch.randn(out, 3).to(dtype)
        key_prefix = f"lora_unet_{path.replace('.', '_')}"
        tensors |= {f"{key_prefix}.lora_down.weight": a, f"{key_prefix}.lora_up.weight": b}
        tensors[f"{key_prefix}.alpha"] = torch.tensor(2.0)
        wanted[path] = (b.double() @ a.double()) * (2 / 3)
    save_file(tensors, tmp_path / "flux.safetensors")
    adapter = read(tmp_path / "flux.safetensors")
    plan = convert(adapter, format_named("diffusers"))
    (tmp_path / "out").mkdir()
    outcome = plan.report("convert")
    write(
        tmp_path / "out",
        plan.manifest,
        outcome.watch(plan),
        like=adapter,
        format=plan.source.format,
    )
    assert outcome.error == 0
    again = read(tmp_path / "out")
    assert len(again) == sum(map(len, LAYERS.values())) + 1

    def dense(path):
        delta = torch.as_tensor(again[f"transformer.{path}"].dense("float64"))
        assert delta.shape == layers[path].weight.shape
        return delta

    for path, parts in LAYERS.items():
        seen = torch.cat([dense(part) for part in parts])
        torch.testing.assert_close(seen, wanted[path], rtol=1e-14, atol=1e-14)
    # shift, scale there; scale, shift here
    shift, scale = wanted[LAST].chunk(2)
    seen = dense("norm_out.linear")
    torch.testing.assert_close(seen, torch.cat([scale, shift]), rtol=1e-14, atol=1e-14)


def fused_norms(path, shape):
    key_prefix = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {
        f"{key_prefix}.lora_down.weight": torch.randn(2, 8),
        f"{key_prefix}.lora_up.weight": torch.randn(24, 2),
        f"{key_prefix}.dora_scale": torch.rand(shape) + 1,
    }
    save_file(tensors, path)
    return tensors[f"{key_prefix}.dora_scale"]


def test_norms_of_a_fused_layers_rows_go_with_them(tmp_path):
    norms = fused_norms(tmp_path / "x.safetensors", (24, 1))
    adapter = read(tmp_path / "x.safetensors")
    plan = convert(adapter, format_named("diffusers"))
    (tmp_path / "out").mkdir()
    outcome = plan.report("convert")
    write(
        tmp_path / "out",
        plan.manifest,
        outcome.watch(plan),
        like=adapter,
        format=plan.source.format,
    )
    again = read(tmp_path / "out")
    parts = [again[f"transformer.transformer_blocks.0.attn.to_{x}"] for x in "qkv"]
    assert torch.equal(
        torch.cat([torch.as_tensor(p.magnitude).flatten() for p in parts]), norms[:, 0]
    )
    whole = adapter["diffusion_model.double_blocks.0.img_attn.qkv"].direction.dense("float64")
    split = torch.cat([torch.as_tensor(part.direction.dense("float64")) for part in parts])
    torch.testing.assert_close(split, torch.as_tensor(whole), rtol=1e-14, atol=1e-14)


def test_norms_of_a_fused_layers_columns_are_refused_or_dropped(tmp_path):
    fused_norms(tmp_path / "x.safetensors", (1, 8))
    adapter = read(tmp_path / "x.safetensors")
    with pytest.raises(UnsupportedError, match="DoRA by column"):
        convert(adapter, format_named("diffusers"))
    assert len(convert(adapter, format_named("diffusers"), drop=["DoRA by column"])) == 3
