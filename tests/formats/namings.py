"""Manifests of every naming, made up for properties that all of them share."""

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from lora_tools.files.header import Spec
from lora_tools.formats.manifest import Extra, Manifest, Module, Part
from lora_tools.formats.sites import Convolution, Linear, columns

PATHS = {
    "unet": [
        "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q",
        "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0",
        "mid_block.resnets.0.conv1",
        "up_blocks.3.attentions.2.proj_in",
    ],
    "transformer": [
        "transformer_blocks.0.attn.add_q_proj",
        "single_transformer_blocks.11.norm.linear",
        "single_transformer_blocks.11.proj_mlp",
    ],
    "diffusion_model": [
        "double_blocks.0.img_attn.qkv",
        "double_blocks.18.txt_attn.proj",
        "single_blocks.1.linear2",
        "input_blocks.4.1.proj_in",
    ],
    "double_blocks": [
        "diffusion_model.double_blocks.0.img_attn.qkv",
        "diffusion_model.double_blocks.18.txt_attn.qkv",
        "diffusion_model.double_blocks.18.txt_attn.proj",
    ],
    "text_encoder": ["text_model.encoder.layers.3.self_attn.q_proj"],
    "decoder": [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.k_proj",
        "model.layers.10.self_attn.o_proj",
        "model.layers.3.mlp.up_proj",
        "lm_head",
    ],
    "model": [
        "model.layers.0.self_attn.q_proj",
        "model.layers.10.mlp.down_proj",
        "somebodys_own.layer_3.proj",
        "lm_head",
    ],
    "qwen2": [
        "model.layers.0.self_attn.q_proj",
        "model.layers.10.self_attn.k_proj",
        "model.layers.10.mlp.down_proj",
        "lm_head",
    ],
}
PREFIXED = ("unet", "transformer", "diffusion_model", "text_encoder")
BASES = {"qwen2": {"model_type": "qwen2", "num_attention_heads": 1}}
"""Configurations of the models whose architecture a format has to know."""


@st.composite
def modules(draw: st.DrawFn, name: str, kinds: frozenset[str] = frozenset()) -> Module:
    """Return a module of random shape, alpha and dtypes, of one of these kinds."""
    out, rank, channels = (draw(st.integers(1, 5)) for _ in range(3))
    site, inp = Linear(), channels
    if "convolution" in kinds and draw(st.booleans()):
        kernel = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)))
        site, inp = Convolution(channels, kernel), columns(channels, kernel)
    alpha = draw(
        st.one_of(st.none(), st.integers(1, 64).map(float), st.floats(0.0078125, 100, width=32))
    )
    types = st.sampled_from(["F16", "BF16", "F32", "F64"])
    parts = {
        "b": Part("b", Spec(draw(types), (out, rank))),
        "a": Part("a", Spec(draw(types), (rank, inp))),
    }
    if "DoRA" in kinds and draw(st.booleans()):
        parts["magnitude"] = Part("m", Spec("F32", (out,)))
    elif "DoRA by column" in kinds and max(out, channels) > 1 and draw(st.booleans()):
        parts["columns"] = Part("m", Spec("F32", (1, channels)))
    return Module(name, site, out, inp, rank, alpha, False, parts, name, name)


@st.composite
def manifests(draw: st.DrawFn, component: str, kinds: frozenset[str] = frozenset()) -> Manifest:
    """Return an adapter of a component's modules."""
    prefix = f"{component}." if component in PREFIXED else ""
    names = draw(st.lists(st.sampled_from(PATHS[component]), min_size=1, unique=True))
    found = tuple(draw(modules(prefix + name, kinds)) for name in names)
    return Manifest("elsewhere", found, base=BASES.get(component))


def filled(specs: dict[str, Spec], seed: int = 0) -> dict[str, np.ndarray]:
    """Return random numbers for tensors, and 8 for those of one element."""
    import torch

    from lora_tools.files.dtypes import torch_dtype

    torch.manual_seed(seed)
    return {
        key: (torch.randn(spec.shape) if spec.numel > 1 else torch.full(spec.shape, 8.0)).to(
            torch_dtype(spec.dtype)
        )
        for key, spec in specs.items()
    }


def alphas(manifest: Manifest) -> dict[str, float]:
    """Return the values that a file of this manifest has for its single numbers."""
    return {
        module.parts["alpha"].key: module.alpha
        for module in manifest.modules
        if "alpha" in module.parts
    }


def without_parts(manifest: Manifest) -> list[Module]:
    """Return what modules mean, whatever their tensors are called."""
    return [replace(module, parts={}, key_prefix="", owner="") for module in manifest.modules]


__all__ = ["Extra", "alphas", "filled", "manifests", "modules", "without_parts"]
