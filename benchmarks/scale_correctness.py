"""Who keeps the strength of an adapter: each tool's files, loaded by diffusers and by peft.

python benchmarks/scale_correctness.py [--out DIR]

The truth is what peft computes from the adapter as it was trained. Every other number is the share
of it that arrives: 1 is right, 0.5 is half the strength. No time is measured.
"""

import argparse
import datetime
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from math import sqrt
from pathlib import Path

import peers
import provenance
import torch
from safetensors.torch import save_file
from scale_routes import CONFIG, KEPT, PREFIX, ROUTES, WEIGHTS, Deltas, unet
from tables import table

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
FEED = "mid_block.attentions.0.transformer_blocks.0"
PATHS = (f"{ATTENTION}.to_q", f"{ATTENTION}.to_v", f"{FEED}.ff.net.2")
ADAPTERS = {
    "r 16, alpha 16": {"alphas": (16, 16, 16)},
    "r 16, alpha 32": {"alphas": (32, 32, 32)},
    "rsLoRA": {"alphas": (32, 32, 32), "use_rslora": True},
    "alpha_pattern": {"alphas": (32, 8, 4)},
    "rank_pattern": {"alphas": (32, 32, 32), "ranks": (16, 8, 16)},
}


def main() -> None:
    """Send every adapter every way, print the table and write it to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="where the report goes"
    )
    options = parser.parse_args()
    for peer in (peers.SFT, peers.GRADIENCE):
        peers.install(peer)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lines = list(report(Path(folder)))
    print("\n".join(lines))
    options.out.mkdir(parents=True, exist_ok=True)
    name = f"scale_correctness_cpu{provenance.cores()}_{datetime.date.today()}.md"
    (options.out / name).write_text("\n".join(lines) + "\n")


def report(folder: Path) -> Iterator[str]:
    """Yield the lines of the report."""
    cells: dict[str, list[str]] = {route: [] for route in ROUTES}
    failed: dict[str, str] = {}
    for number, (adapter, how) in enumerate(ADAPTERS.items()):
        place = folder / str(number)
        truth = trained(place / "source", seed=number, **how)
        for index, (route, (make, load)) in enumerate(ROUTES.items()):
            try:
                cell = share(load(make(place / "source", place / f"to{index}")), truth)
            except Exception as error:  # noqa: BLE001 - a tool that fails is a result
                cell = "fails"
                failed.setdefault(route, f"{type(error).__name__}: {error}")
            cells[route].append(cell)
            print(adapter, "|", route, "|", cell, file=sys.stderr)
    versions = provenance.versions("lora-tools", "peft", "diffusers", "torch")
    versions |= {peer.name: peer.version for peer in (peers.SFT, peers.GRADIENCE)}
    yield "# Who keeps the strength of an adapter"
    yield ""
    yield f"- date: {datetime.datetime.now().astimezone().isoformat(timespec='minutes')}"
    yield f"- commit: {provenance.commit()}"
    yield f"- hardware: {provenance.hardware()}"
    yield "- command: `python benchmarks/scale_correctness.py`"
    yield f"- versions: {', '.join(f'{name} {version}' for name, version in versions.items())}"
    yield ""
    yield "An adapter of a small UNet, as peft writes it, goes through a tool and into a loader. 1"
    yield "is the strength that peft gives it; two numbers are the least and the most of any layer."
    yield f"The updates have rank {KEPT}, so that a truncation to {KEPT} should lose nothing."
    yield "Layers are linear: sft and gradience know no others. diffusers' loader gives all"
    yield "attention layers of a kohya file the first alpha that it meets."
    yield ""
    yield from table(("way", *ADAPTERS), [(route, *each) for route, each in cells.items()])
    yield ""
    for where, error in failed.items():
        yield f"- {where}: {' '.join(error.split())[:200]}"


def trained(
    folder: Path,
    alphas: tuple[float, ...],
    *,
    seed: int,
    ranks: tuple[int, ...] = (16, 16, 16),
    use_rslora: bool = False,
) -> Deltas:
    """Write an adapter as peft does and return its updates by their definition."""
    model, tensors, truth = unet(), {}, {}
    torch.manual_seed(seed)
    for path, rank, alpha in zip(PATHS, ranks, alphas, strict=True):
        weight = model.get_submodule(path).weight
        out, inp = weight.flatten(1).shape
        a = torch.randn(rank, KEPT) @ torch.randn(KEPT, inp)
        b = torch.randn(out, rank, *(1,) * (weight.ndim - 2))
        stem = f"{PREFIX}{path}"
        tensors[f"{stem}.lora_A.weight"] = a.reshape(rank, *weight.shape[1:])
        tensors[f"{stem}.lora_B.weight"] = b
        scale = alpha / (sqrt(rank) if use_rslora else rank)
        truth[path] = scale * (b.flatten(1) @ a).reshape(weight.shape)
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": 16, "lora_alpha": alphas[0], "use_rslora": use_rslora}
    config["rank_pattern"] = {p: r for p, r in zip(PATHS, ranks, strict=True) if r != 16}
    config["alpha_pattern"] = {p: a for p, a in zip(PATHS, alphas, strict=True) if a != alphas[0]}
    (folder / CONFIG).write_text(json.dumps(config | {"target_modules": list(PATHS)}))
    return truth


def share(seen: Deltas, truth: Deltas) -> str:
    """Return the share of the strength that arrives: the least and the most of any layer."""
    if seen.keys() != truth.keys():
        return "layers missing"
    shares = [float((seen[p] * truth[p]).sum() / truth[p].square().sum()) for p in truth]
    low, high = f"{min(shares):.3g}", f"{max(shares):.3g}"
    return low if low == high else f"{low}–{high}"


if __name__ == "__main__":
    main()
