"""The cost of combining ten Llama-2-7B adapters, and smaller ones beside PEFT and a dense sum.

python benchmarks/bench_combine.py [--runs N] [--out DIR] [--layers N]
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import adapters
import processes
import provenance
import torch
from adapters import LLAMA2_7B, Architecture, Linear
from processes import Command, Usage
from results import heading, installed, listed, parser, publish
from safetensors.torch import load_file, save_file
from tables import alternating, disturbance, loud, medians, section, table

COUNT, RANK = 10, 64
SMALL = Architecture(
    base_model="small",
    layers=2,
    linears=(
        Linear("self_attn.q_proj", 1024, 1024),
        Linear("self_attn.v_proj", 1024, 1024),
        Linear("mlp.up_proj", 1024, 2816),
        Linear("mlp.down_proj", 2816, 1024),
    ),
)
"""A model of which dense singular value decompositions end within minutes."""

READ = "read the files"
OURS, PEFT, DENSE = "lora-tools", "PEFT", "dense"


def main() -> None:
    """Measure, print the report and write it to a file."""
    options = parse()
    with TemporaryDirectory(prefix="lora-tools-bench-") as folder:
        root = Path(folder)
        large = replace(LLAMA2_7B, layers=options.layers)
        sources = {
            n: [made(root / f"{n}{i}", a, i) for i in range(COUNT)]
            for n, a in (("large", large), ("small", SMALL))
        }
        print("made; the runs follow", file=sys.stderr)
        commands = commands_of(root, sources["large"], sources["small"])
        usages = processes.alternate(commands, options.runs, warmups=0)
        publish(
            report(root, commands, usages, sources["small"], options.layers), "combine", options.out
        )


def parse() -> argparse.Namespace:
    """Read the command line."""
    known = parser(__doc__, 1, "counted runs of each command")
    known.add_argument("--layers", type=int, default=LLAMA2_7B.layers, help="of the large adapters")
    return known.parse_args()


def made(path: Path, architecture: Architecture, number: int) -> Path:
    """Make one of several adapters, which differ in their factors."""
    path.mkdir()
    tensors = {}
    for module, linear in architecture:
        a, b = adapters.factors(f"{number} {module}", linear, RANK)
        tensors[f"{module}.lora_A.weight"] = a.half()
        tensors[f"{module}.lora_B.weight"] = b.half()
    save_file(tensors, path / adapters.WEIGHTS, metadata={"format": "pt"})
    config = adapters.config(architecture, RANK) | {"task_type": None}
    (path / adapters.CONFIG).write_text(json.dumps(config))
    return path


def commands_of(root: Path, large: list[Path], small: list[Path]) -> dict[str, Command]:
    """Return what is compared: large adapters with reading them, small ones with dense sums."""

    def ours(sources: list[Path], out: Path) -> Command:
        words = ["combine", *map(str, sources), str(out), "--rank", str(RANK), "--quiet"]
        return Command([sys.executable, "-m", "lora_tools", *words], out, provenance.ROOT)

    def own(what: str, sources: list[Path], out: Path) -> Command:
        words = [sys.executable, __file__, "--task", what, *map(str, sources), str(out)]
        return Command(words, out, provenance.ROOT)

    return {
        READ: own("read", large, root / "nothing"),
        OURS: ours(large, root / "ours"),
        f"{OURS}, small": ours(small, root / "ours-small"),
        f"{PEFT}, small": own("peft", small, root / "peft-small"),
        f"{DENSE}, small": own("dense", small, root / "dense-small"),
    }


def task(what: str, sources: list[Path], out: Path) -> None:
    """Do one of the commands that are no program of anybody's."""
    match what:
        case "read":
            for source in sources:
                with (source / adapters.WEIGHTS).open("rb") as file:
                    while file.read(1 << 24):
                        pass
        case "peft":
            with_peft(sources, out)
        case "dense":
            with_dense(sources, out)


def with_peft(sources: list[Path], out: Path) -> None:
    """Combine as PEFT does it: load a model, all adapters, and add_weighted_adapter."""
    from peft import PeftModel
    from torch import nn

    model = nn.Module()
    model.model = nn.Module()
    model.model.layers = nn.ModuleList()
    model.config = {}
    for _ in range(SMALL.layers):
        layer = nn.Module()
        for linear in SMALL.linears:
            parent, _, leaf = linear.name.rpartition(".")
            if not hasattr(layer, parent):
                setattr(layer, parent, nn.Module())
            setattr(getattr(layer, parent), leaf, nn.Linear(linear.inp, linear.out, bias=False))
        model.model.layers.append(layer)
    names = [str(n) for n in range(len(sources))]
    loaded = PeftModel.from_pretrained(model, str(sources[0]), adapter_name=names[0])
    for name, source in list(zip(names, sources, strict=True))[1:]:
        loaded.load_adapter(str(source), adapter_name=name)
    loaded.add_weighted_adapter(
        names, [1.0] * len(names), "sum", combination_type="svd", svd_rank=RANK
    )
    loaded.save_pretrained(str(out), selected_adapters=["sum"])


def with_dense(sources: list[Path], out: Path) -> None:
    """Combine as the description of sd-scripts has it: dense sums, then a full SVD of each."""
    files = [load_file(source / adapters.WEIGHTS) for source in sources]
    tensors = {}
    for module, _ in SMALL:
        total = sum(
            2.0 * file[f"{module}.lora_B.weight"].float() @ file[f"{module}.lora_A.weight"].float()
            for file in files
        )
        u, s, vt = torch.linalg.svd(total)
        tensors[f"{module}.lora_B.weight"] = (u[:, :RANK] * s[:RANK]).half().contiguous()
        tensors[f"{module}.lora_A.weight"] = vt[:RANK].half().contiguous()
    out.mkdir()
    save_file(tensors, out / adapters.WEIGHTS)
    config = adapters.config(SMALL, RANK) | {"lora_alpha": RANK}
    (out / adapters.CONFIG).write_text(json.dumps(config))


def report(
    root: Path,
    commands: dict[str, Command],
    usages: dict[str, list[Usage]],
    small: list[Path],
    layers: int,
) -> Iterator[str]:
    """Yield the lines of the report."""
    yield from heading(f"lora-tools combine, {COUNT} adapters of rank {RANK} into one")
    yield installed("versions", provenance.versions("torch", "safetensors", "numpy", "peft"))
    yield from listed({OURS: commands[f"{OURS}, small"]}, root)
    yield ""
    yield f"Large: {COUNT} adapters with {layers} layers of Llama-2-7B's shapes,"
    yield f"{layers * len(LLAMA2_7B.linears)} modules each, float16. Small: {SMALL.layers} layers,"
    yield '1024 and 2816 wide. PEFT: `add_weighted_adapter(combination_type="svd")` of a model'
    yield "with the adapters loaded. Dense: the sum of products in float32 and its full SVD,"
    yield "as the description of sd-scripts has it."
    yield from medians(usages, "Whole processes, medians")
    yield from alternating(usages)
    yield from disturbance(loud(usages))
    yield from section("Error of the small results, against the exact sum in float64")
    exact = deltas(small)
    names = (OURS, PEFT, DENSE)
    rows = [(name, f"{error(exact, commands[f'{name}, small'].out):.6f}") for name in names]
    yield from table(("", "error"), rows)


def deltas(sources: list[Path]) -> dict[str, torch.Tensor]:
    """Return the dense sum of adapters in float64."""
    found: dict[str, torch.Tensor] = {}
    for source in sources:
        weights = next(source.rglob(adapters.WEIGHTS))
        config = json.loads((weights.parent / adapters.CONFIG).read_text())
        file = load_file(weights)
        for module, _ in SMALL:
            b, a = (file[f"{module}.lora_{f}.weight"].double() for f in "BA")
            delta = config["lora_alpha"] / config["r"] * (b @ a)
            found[module] = found.get(module, 0) + delta
    return found


def error(exact: dict[str, torch.Tensor], out: Path) -> float:
    """Return the relative error of a result."""
    found = deltas([out])
    lost = sum(float((exact[name] - found[name]).square().sum()) for name in exact)
    return (lost / sum(float(delta.square().sum()) for delta in exact.values())) ** 0.5


if __name__ == "__main__":
    if sys.argv[1:2] == ["--task"]:
        task(sys.argv[2], [Path(word) for word in sys.argv[3:-1]], Path(sys.argv[-1]))
    else:
        main()
