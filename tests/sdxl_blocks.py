"""A small LoRA of SDXL, block by block."""

from pathlib import Path

import torch
from safetensors.torch import save_file

ATTENTION = "transformer_blocks_0_attn1_to_q"
SDXL = {
    "IN04": (f"input_blocks_4_1_{ATTENTION}", f"down_blocks_1_attentions_0_{ATTENTION}"),
    "IN05": (f"input_blocks_5_1_{ATTENTION}", f"down_blocks_1_attentions_1_{ATTENTION}"),
    "IN08": (f"input_blocks_8_1_{ATTENTION}", f"down_blocks_2_attentions_1_{ATTENTION}"),
    "MID": (f"middle_block_1_{ATTENTION}", f"mid_block_attentions_0_{ATTENTION}"),
    "OUT00": (f"output_blocks_0_1_{ATTENTION}", f"up_blocks_0_attentions_0_{ATTENTION}"),
    "OUT05": (f"output_blocks_5_1_{ATTENTION}", f"up_blocks_1_attentions_2_{ATTENTION}"),
}
"""Blocks of SDXL, and a module of each under the original names and under diffusers'."""
WIDE = ("IN08", "MID", "OUT00")
ENCODER = "lora_te1_text_model_encoder_layers_0_mlp_fc1"


def sdxl(path: Path, naming: int) -> dict[str, str]:
    """Write a LoRA of SDXL as kohya's trainer does, with one of its text encoders."""
    modules = {block: f"lora_unet_{names[naming]}" for block, names in SDXL.items()}
    modules["BASE"] = ENCODER
    tensors: dict[str, torch.Tensor] = {}
    for block, name in modules.items():
        size = 1280 if block in WIDE else 640
        tensors |= {
            f"{name}.lora_down.weight": torch.randn(2, size),
            f"{name}.lora_up.weight": torch.randn(size, 2),
            f"{name}.alpha": torch.tensor(2.0),
        }
    save_file(tensors, path)
    return modules
