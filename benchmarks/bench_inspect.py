"""The cost of inspecting a Llama-2-7B adapter, and the headers of a model of 140 GB.

python benchmarks/bench_inspect.py [--runs N] [--out DIR] [--no-peers]
"""

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import adapters
import peers
import processes
import provenance
from bench_shrink import parse
from processes import Command, Usage
from results import heading, installed, listed, publish
from tables import disturbance, loud, medians, table

RANK = 64
HEADER, SPECTRUM, SHRINK, MODEL = "inspect", "inspect --spectrum", "shrink --rank 16", "inspect 70B"
INFO, SVD = "sft lora info", "sft lora svd"


def main() -> None:
    """Measure, print the report and write it to a file."""
    options = parse()
    if not options.no_peers:
        peers.install(peers.SFT)
    with TemporaryDirectory(prefix="lora-tools-bench-") as folder:
        source = adapters.llama2_7b(Path(folder, "llama2-7b-r64"), RANK)
        model = sparse_model(Path(folder, "model-70b"))
        commands = make_commands(source, model, not options.no_peers)
        slow = {name: commands.pop(name) for name in (SVD,) if name in commands}
        usages = processes.alternate(commands, options.runs)
        usages |= {name: [processes.run(command)] for name, command in slow.items()}
        publish(report(commands | slow, usages, Path(folder)), "inspect", options.out)


def make_commands(source: Path, model: Path, with_peers: bool) -> dict[str, Command]:
    """Return the commands to compare."""
    out = source.with_name("small")
    ours = {
        HEADER: ["inspect", str(source)],
        SPECTRUM: ["inspect", str(source), "--spectrum"],
        SHRINK: ["shrink", str(source), str(out), "--rank", "16"],
        MODEL: ["inspect", str(model)],
    }
    commands = {
        name: Command([sys.executable, "-m", "lora_tools", *arguments], out, provenance.ROOT)
        for name, arguments in ours.items()
    }
    if with_peers:
        sft, weights = str(peers.SFT.script("sft")), str(source / adapters.WEIGHTS)
        for name, verb in ((INFO, "info"), (SVD, "svd")):
            commands[name] = Command([sft, "lora", verb, weights], out, provenance.ROOT)
    return commands


def sparse_model(folder: Path, shards: int = 30) -> Path:
    """Make the headers of Llama-2-70B in bfloat16: files that are holes where their numbers are."""
    folder.mkdir()
    layer = {
        "self_attn.q_proj": (8192, 8192),
        "self_attn.k_proj": (1024, 8192),
        "self_attn.v_proj": (1024, 8192),
        "self_attn.o_proj": (8192, 8192),
        "mlp.gate_proj": (28672, 8192),
        "mlp.up_proj": (28672, 8192),
        "mlp.down_proj": (8192, 28672),
        "input_layernorm": (8192,),
        "post_attention_layernorm": (8192,),
    }
    shapes = {
        f"model.layers.{i}.{name}.weight": shape for i in range(80) for name, shape in layer.items()
    }
    shapes |= {"model.embed_tokens.weight": (32000, 8192), "lm_head.weight": (32000, 8192)}
    names = list(shapes)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        header, position = {}, 0
        for name in names[number::shards]:
            size = 2
            for side in shapes[name]:
                size *= side
            offsets = [position, position + size]
            header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": offsets}
            position += size
            weight_map[name] = file
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + position)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def report(
    commands: dict[str, Command], usages: dict[str, list[Usage]], folder: Path
) -> Iterator[str]:
    """Yield the lines of the report."""
    yield from heading(
        "lora-tools inspect, Llama-2-7B adapter of rank 64 in float16; headers of a 70B model"
    )
    yield installed("lora-tools", provenance.versions("torch", "safetensors", "numpy"))
    if INFO in commands:
        packages = ("sft-cli", "torch", "safetensors", "numpy")
        yield installed("sft", peers.versions(peers.SFT, *packages))
    yield from listed(commands, folder)
    yield ""
    yield "The adapter is synthetic (`benchmarks/adapters.py`): 224 modules, 320 MB. The model is"
    yield "722 tensors, 138 GB in 30 shards, of which only headers and index are on the disk."
    yield from medians(usages, "Whole processes, medians")
    yield ""
    pairs = [(SPECTRUM, SHRINK)]
    pairs += [(HEADER, INFO), (SPECTRUM, SVD)] if INFO in commands else []
    rows = []
    for ours, theirs in pairs:
        count = len(usages[theirs])
        columns = list(zip(*processes.ratios(usages[ours][:count], usages[theirs]), strict=True))
        cells = (f"{statistics.median(c):.3f} ({min(c):.3f} to {max(c):.3f})" for c in columns)
        rows.append((f"{ours} / {theirs}", *cells))
    yield from table(("median of pairs (range)", "wall", "cpu", "peak"), rows)
    if SVD in commands:
        yield ""
        yield f"{SVD} ran once."
    yield from disturbance(loud(usages))


if __name__ == "__main__":
    main()
