"""Diffusion models of one layer of each kind, made by diffusers itself."""

import torch
from judges import judge


def unet():
    """Return a UNet, always of the same weights."""
    torch.manual_seed(0)
    return judge("diffusers").UNet2DConditionModel(
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=8,
        norm_num_groups=2,
        attention_head_dim=2,
    )


def flux():
    """Return a Flux transformer, always of the same weights."""
    torch.manual_seed(0)
    return judge("diffusers").FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    )
