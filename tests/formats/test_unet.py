"""The two names of a UNet's modules, for every module that diffusers' own models have."""

import pytest
import torch
from judges import judge

from lora_tools.formats.paths import component_of
from lora_tools.formats.unet import is_xl, to_authors, to_diffusers

XL = {
    "block_out_channels": (32, 64, 128),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "addition_embed_type": "text_time",
    "projection_class_embeddings_input_dim": 32,
    "addition_time_embed_dim": 8,
    "use_linear_projection": True,
    "cross_attention_dim": 32,
}
MODELS = {False: {"cross_attention_dim": 32, "block_out_channels": (32, 32, 32, 32)}, True: XL}


def paths(xl):
    with torch.device("meta"):
        model = judge("diffusers").UNet2DConditionModel(**MODELS[xl])
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return [name for name, layer in model.named_modules() if isinstance(layer, kinds)]


@pytest.mark.parametrize("xl", [False, True])
def test_every_module_has_two_names(xl):
    found = paths(xl)
    assert is_xl(found) is xl
    theirs = {path: to_authors(path, xl=xl) for path in found}
    assert None not in theirs.values()
    assert len(set(theirs.values())) == len(found)
    assert {to_diffusers(name): name for name in theirs.values()} == theirs
    assert {component_of(path) for path in found} == {"unet"}
    assert {component_of(name) for name in theirs.values()} == {"diffusion_model"}


# As sd-scripts, and files of both models, have them.
KNOWN = [
    (True, "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "input_blocks.4.1."),
    (True, "up_blocks.0.attentions.2.transformer_blocks.9.ff.net.2", "output_blocks.2.1."),
    (True, "up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
    (True, "add_embedding.linear_2", "label_emb.0.2"),
    (False, "down_blocks.3.resnets.1.conv1", "input_blocks.11.0.in_layers.2"),
    (False, "up_blocks.0.upsamplers.0.conv", "output_blocks.2.1.conv"),
    (False, "up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv"),
    (False, "down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
    (False, "mid_block.resnets.1.time_emb_proj", "middle_block.2.emb_layers.1"),
    (False, "conv_in", "input_blocks.0.0"),
]


@pytest.mark.parametrize(("xl", "ours", "theirs"), KNOWN)
def test_known_pairs(xl, ours, theirs):
    found = to_authors(ours, xl=xl)
    assert found.startswith(theirs)
    assert to_diffusers(found) == ours


@pytest.mark.parametrize("path", ["double_blocks.0.img_attn.qkv", "input_blocks.1.0.norm", "x"])
def test_other_paths_have_none(path):
    assert to_diffusers(path) is None
    assert to_authors(path, xl=True) is None
