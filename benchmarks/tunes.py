"""Synthetic fine-tunes: pairs of Llama-shaped checkpoints whose difference has a known character.

python benchmarks/tunes.py FOLDER HIDDEN INTERMEDIATE LAYERS [--vocabulary N] [--same]
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

SIZE = 0.02  # of a base weight's elements, as transformers initialises Llama
CHANGE = 0.02  # ‖ΔW‖ / ‖W‖
DECAY = 0.7  # σ_i of the change falls as i ** -DECAY
DIRECTIONS = 512  # of it; the rest is what rounding to bfloat16 adds


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama without grouped attention. ``same`` repeats one layer's numbers in all of them."""

    hidden: int
    intermediate: int
    layers: int
    vocabulary: int = 1024
    same: bool = False

    @property
    def config(self) -> dict:
        """Its config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // 128,
            "num_key_value_heads": self.hidden // 128,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "dtype": "bfloat16",
            "torch_dtype": "bfloat16",
        }

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Return the matrices of one layer."""
        square, up = (self.hidden, self.hidden), (self.intermediate, self.hidden)
        return {
            **{f"self_attn.{name}_proj": square for name in "qkvo"},
            "mlp.gate_proj": up,
            "mlp.up_proj": up,
            "mlp.down_proj": (self.hidden, self.intermediate),
        }


def pairs(shape: Shape) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Yield base and tuned tensors, a shard's worth at a time."""
    torch.manual_seed(0)
    outer = {
        name: torch.randn(shape.vocabulary, shape.hidden).mul_(SIZE).bfloat16()
        for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    outer["model.norm.weight"] = torch.ones(shape.hidden, dtype=torch.bfloat16)
    yield {name: (tensor, tensor) for name, tensor in outer.items()}
    layer: dict[str, tuple[Tensor, Tensor]] = {}
    for number in range(shape.layers):
        if not (shape.same and layer):
            layer = {name: tuned(*size) for name, size in shape.matrices().items()}
        norms = {
            f"model.layers.{number}.{name}.weight": (outer["model.norm.weight"].clone(),) * 2
            for name in ("input_layernorm", "post_attention_layernorm")
        }
        yield {f"model.layers.{number}.{name}.weight": pair for name, pair in layer.items()} | norms


def tuned(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return a base weight and the same with a power law of directions added, in bfloat16."""
    base = torch.randn(rows, columns).mul_(SIZE).bfloat16()
    sizes = torch.arange(1, DIRECTIONS + 1) ** -DECAY
    change = (torch.randn(rows, DIRECTIONS) * sizes) @ torch.randn(DIRECTIONS, columns)
    change *= CHANGE * base.float().norm() / change.norm()
    return base, (base.float() + change).bfloat16()


def make(folder: Path, shape: Shape) -> tuple[Path, Path]:
    """Write both models, each a folder of shards with an index, and return their paths."""
    sides = folder / "base", folder / "tuned"
    for side in sides:
        side.mkdir(parents=True)
        (side / "config.json").write_text(json.dumps(shape.config, indent=2))
    maps: tuple[dict[str, str], dict[str, str]] = ({}, {})
    total = shape.layers + 1
    for number, shard in enumerate(pairs(shape), start=1):
        file = f"model-{number:05d}-of-{total:05d}.safetensors"
        for which, side in enumerate(sides):
            save_file({name: pair[which] for name, pair in shard.items()}, side / file)
            maps[which].update(dict.fromkeys(shard, file))
    for side, weight_map in zip(sides, maps, strict=True):
        index = {"metadata": {}, "weight_map": weight_map}
        (side / "model.safetensors.index.json").write_text(json.dumps(index))
    return sides


def main() -> None:
    """Make a pair from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    for name in ("hidden", "intermediate", "layers"):
        parser.add_argument(name, type=int)
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--same", action="store_true", help="all layers have the same numbers")
    options = vars(parser.parse_args())
    folder = options.pop("folder")
    print(*make(folder, Shape(**options)))


if __name__ == "__main__":
    main()
