"""The cost of inspecting a Llama-2-7B adapter, and the headers of a model of 140 GB.

python benchmarks/bench_inspect.py [--runs N] [--out DIR] [--no-peers]
"""

import datetime
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
from bench_shrink import figures, listed, parse
from processes import QUIET, Command, Usage
from tables import disturbance, section, table

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
        lines = list(report(commands | slow, usages, Path(folder)))
    print("\n".join(lines))
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / f"inspect_cpu{provenance.cores()}_{datetime.date.today()}.md"
    target.write_text("\n".join(lines) + "\n")
    print(target, file=sys.stderr)


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
    yield "# lora-tools inspect, Llama-2-7B adapter of rank 64 in float16; headers of a 70B model"
    yield ""
    yield f"- date: {datetime.datetime.now().astimezone().isoformat(timespec='minutes')}"
    yield f"- commit: {provenance.commit()}"
    yield f"- hardware: {provenance.hardware()}"
    yield f"- threads: {provenance.threads()}"
    yield f"- lora-tools: {listed(provenance.versions('torch', 'safetensors', 'numpy'))}"
    if INFO in commands:
        installed = peers.versions(peers.SFT, "sft-cli", "torch", "safetensors", "numpy")
        yield f"- sft: {listed(installed)}"
    for name, command in commands.items():
        shown = str(command).replace(str(folder), "$TMP").replace(f"{provenance.ROOT}/", "")
        yield f"- {name}: `{shown}`"
    yield ""
    yield "The adapter is synthetic (`benchmarks/adapters.py`): 224 modules, 320 MB. The model is"
    yield "722 tensors, 138 GB in 30 shards, of which only headers and index are on the disk."
    yield from section("Whole processes, medians")
    rows = [(name, *figures(processes.median(runs))) for name, runs in usages.items()]
    yield from table(("", "wall s", "cpu s", "peak MB", "others' cores"), rows)
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
    disturbed = sum(run.others > QUIET for runs in usages.values() for run in runs)
    if disturbed:
        yield ""
        yield disturbance(disturbed)


if __name__ == "__main__":
    main()
