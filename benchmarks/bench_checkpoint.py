"""The cost of a merge into one file of SDXL's shape, beside a copy of the file.

python benchmarks/bench_checkpoint.py [--runs N] [--out DIR] [--width N]

A width of 320 is SDXL's: 6.9 GB in float16. A width of 96 makes about a tenth of it.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import processes
import provenance
import torch
from diffusers import UNet2DConditionModel
from processes import Command, Usage
from results import heading, installed, parser, publish
from safetensors.torch import save_file
from tables import alternating, disturbance, loud, medians, middle, table

from lora_tools.architectures.families import family
from lora_tools.architectures.index import Candidate, find, positions

OURS, COPY = "lora-tools", "cp; sync"
RANK, MOST_TIME, MOST_MEMORY = 16, 2.5, 1e9
ENCODERS = {
    "conditioner.embedders.0.transformer.": (12, 768),
    "conditioner.embedders.1.model.": (32, 1280),
}
VOCABULARY, VAE = 49408, 83_653_863
"""Words of the text encoders, and elements of the autoencoder, which nothing is added to."""


def main() -> None:
    """Measure, print the report and write it to a file."""
    options = parse()
    with TemporaryDirectory(prefix="lora-tools-bench-") as name:
        folder = Path(name)
        nbytes = make(folder, options.width)
        usages = processes.alternate(make_commands(folder), options.runs)
        publish(chain(head(nbytes), whole(usages)), "checkpoint", options.out)


def parse() -> argparse.Namespace:
    """Read the command line."""
    known = parser(__doc__, 5, "counted runs, after one warm-up")
    known.add_argument("--width", type=int, default=320, help="channels of the first level")
    return known.parse_args()


def shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the checkpoint, as sgm has them."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(width, 2 * width, 4 * width),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    known = family("Stable Diffusion XL")
    found = {
        f"model.diffusion_model.{original(name, known)}": tuple(tensor.shape)
        for name, tensor in unet.state_dict().items()
    }
    for number, (before, (layers, hidden)) in enumerate(ENCODERS.items()):
        hidden = hidden * width // 320 // 64 * 64
        found |= {before + k: s for k, s in encoder(layers, hidden, openclip=bool(number)).items()}
    found["first_stage_model.decoder.conv_in.weight"] = (VAE * width**2 // 320**2 // 9, 1, 3, 3)
    return found


def original(name: str, known) -> str:
    """Return what the original calls a tensor of the UNet."""
    match = next(find(name, Candidate(known, "diffusers")))
    place = next(positions(match.path, None, Candidate(known, "original")))
    return f"{place.path}.{match.rest}"


def encoder(layers: int, hidden: int, *, openclip: bool) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a text encoder, in OpenCLIP's names or in transformers'."""
    if openclip:
        block, words = "transformer.resblocks.{}.", "token_embedding.weight"
        own = {
            "attn.in_proj_weight": (3 * hidden, hidden),
            "attn.out_proj.weight": (hidden, hidden),
        }
        own |= {"mlp.c_fc.weight": (4 * hidden, hidden), "mlp.c_proj.weight": (hidden, 4 * hidden)}
    else:
        block = "text_model.encoder.layers.{}."
        words = "text_model.embeddings.token_embedding.weight"
        own = {f"self_attn.{x}_proj.weight": (hidden, hidden) for x in ("q", "k", "v", "out")}
        own |= {"mlp.fc1.weight": (4 * hidden, hidden), "mlp.fc2.weight": (hidden, 4 * hidden)}
    found = {block.format(i) + name: shape for i in range(layers) for name, shape in own.items()}
    return found | {words: (VOCABULARY, hidden)}


def make(folder: Path, width: int) -> int:
    """Write the checkpoint in float16, and a LoRA of it as kohya has it; return its bytes."""
    torch.manual_seed(0)
    every = shapes(width)
    tensors = {
        name: 0.02 * torch.randn(shape, dtype=torch.float16) for name, shape in every.items()
    }
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    (folder / "base").mkdir()
    save_file(tensors, folder / "base" / "xl.safetensors")
    del tensors
    factors = {}
    for name, shape in every.items():
        if (
            len(shape) != 2
            or not name.endswith(".weight")
            or "embed" in name.rpartition(".")[0][-20:]
        ):
            continue
        before = next(
            (f"lora_te{n + 1}_" for n, e in enumerate(ENCODERS) if name.startswith(e)), ""
        )
        if before == "lora_te2_":  # trainers have these in transformers' names
            continue
        path = name.removesuffix(".weight")
        for prefix in ("model.diffusion_model.", *ENCODERS):
            path = path.removeprefix(prefix)
        key = (before or "lora_unet_") + path.replace(".", "_")
        factors[f"{key}.lora_down.weight"] = (0.02 * torch.randn(RANK, shape[1])).half()
        factors[f"{key}.lora_up.weight"] = (0.02 * torch.randn(shape[0], RANK)).half()
        factors[f"{key}.alpha"] = torch.tensor(8.0)
    layers, hidden = ENCODERS["conditioner.embedders.1.model."]
    for name, shape in encoder(layers, hidden * width // 320 // 64 * 64, openclip=False).items():
        if "layers" in name:
            key = "lora_te2_" + name.removesuffix(".weight").replace(".", "_")
            factors[f"{key}.lora_down.weight"] = (0.02 * torch.randn(RANK, shape[1])).half()
            factors[f"{key}.lora_up.weight"] = (0.02 * torch.randn(shape[0], RANK)).half()
            factors[f"{key}.alpha"] = torch.tensor(8.0)
    save_file(factors, folder / "lora.safetensors")
    os.sync()
    return nbytes


def make_commands(folder: Path) -> dict[str, Command]:
    """Return the commands to compare."""
    base, lora = folder / "base" / "xl.safetensors", folder / "lora.safetensors"
    ours, copied = folder / "ours", folder / "copied.safetensors"
    merge = f"{sys.executable} -m lora_tools merge {base} {lora} {ours} --quiet"
    return {
        COPY: Command(["sh", "-c", f"cp {base} {copied} && sync"], copied, provenance.ROOT),
        OURS: Command(["sh", "-c", f"{merge} && sync"], ours, provenance.ROOT),
    }


def head(nbytes: int) -> Iterator[str]:
    """Say what was run, where, and with which versions."""
    yield from heading(f"lora-tools merge, one file of SDXL's shape, {nbytes / 1e9:.2f} GB")
    yield installed("versions", provenance.versions("numpy", "torch", "safetensors"))
    yield f"- adapter: kohya's, rank {RANK}, of the UNet and both text encoders"
    yield ""
    yield "Warm caches: each command ran once before. Both write to the same disk."


def whole(usages: dict[str, list[Usage]]) -> Iterator[str]:
    """Show medians, the ratio of neighbouring runs, and what is promised of them."""
    yield from medians(usages, "Whole processes, medians")
    yield ""
    pairs = zip(usages[OURS], usages[COPY], strict=True)
    ratios = [ours.wall / copy.wall for ours, copy in pairs]
    peak = max(usage.peak for usage in usages[OURS])
    rows = [(f"{OURS} / {COPY}", *middle(ratios, 2))]
    yield from table(("wall time", "median of pairs", "range"), rows)
    kept = sorted(ratios)[len(ratios) // 2] <= MOST_TIME and peak <= MOST_MEMORY
    yield ""
    yield (
        f"At most {MOST_TIME} times a copy, and under {MOST_MEMORY / 1e9:.0f} GB:"
        f" {'kept' if kept else 'NOT KEPT'} ({peak / 1e6:,.0f} MB)."
    )
    yield from alternating(usages)
    yield from disturbance(loud(usages))


if __name__ == "__main__":
    main()
