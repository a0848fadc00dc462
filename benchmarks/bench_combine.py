"""The cost of combining ten Llama-2-7B adapters, and single modules beside PEFT and a dense sum.

python benchmarks/bench_combine.py [--runs N] [--out DIR] [--layers N] [--modules NAME …]

PEFT and the dense sum take hours for all modules, so they get one module of each shape, whole
processes, imports included, and the report multiplies by how many there are.
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
from adapters import LLAMA2_7B, Architecture
from processes import Command, Usage
from results import heading, installed, parser, publish
from safetensors.torch import load_file, save_file
from tables import alternating, disturbance, loud, medians, section, table

COUNT, RANK = 10, 64
SINGLE = {
    linear.name: replace(LLAMA2_7B, layers=1, linears=(linear,))
    for linear in LLAMA2_7B.linears
    if linear.name in ("self_attn.q_proj", "mlp.up_proj")
}
"""One module of each shape: the others have the same, or its transpose."""

READ, SHRINK = "read the files", "shrink one of them"
OURS, PEFT, DENSE = "lora-tools", "PEFT", "dense"


def main() -> None:
    """Measure, print the report and write it to a file."""
    options = parse()
    with TemporaryDirectory(prefix="lora-tools-bench-") as folder:
        root = Path(folder)
        large = replace(LLAMA2_7B, layers=options.layers)
        shapes = {"large": large} | {name: SINGLE[name] for name in options.modules}
        sources = {
            name: [made(root / f"{name}{number}", architecture, number) for number in range(COUNT)]
            for name, architecture in shapes.items()
        }
        print("made; the runs follow", file=sys.stderr)
        usages = processes.alternate(commands_of(root, sources), options.runs, warmups=0)
        publish(report(root, sources, usages, options.layers), "combine", options.out)


def parse() -> argparse.Namespace:
    """Read the command line."""
    known = parser(__doc__, 1, "counted runs of each command")
    known.add_argument("--layers", type=int, default=LLAMA2_7B.layers, help="of the large adapters")
    known.add_argument(
        "--modules", nargs="*", choices=[*SINGLE], default=[*SINGLE], help="beside the others"
    )
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


def commands_of(root: Path, sources: dict[str, list[Path]]) -> dict[str, Command]:
    """Return what is compared: large adapters with reading and shrinking, modules with the rest."""

    def ours(words: list[str], out: str, rank: int = RANK) -> Command:
        words = [*words, str(root / out), "--rank", str(rank), "--quiet"]
        return Command([sys.executable, "-m", "lora_tools", *words], root / out, provenance.ROOT)

    def own(what: str, name: str) -> Command:
        out = root / f"{what}-{name}"
        words = [sys.executable, __file__, "--task", what, name, *map(str, sources[name]), str(out)]
        return Command(words, out, provenance.ROOT)

    large = [str(source) for source in sources["large"]]
    commands = {
        READ: own("read", "large"),
        SHRINK: ours(["shrink", large[0]], "shrunk", RANK // 2),
        OURS: ours(["combine", *large], "ours-large"),
    }
    for name in [name for name in sources if name != "large"]:
        commands |= {
            f"{OURS}, {name}": ours(["combine", *map(str, sources[name])], f"ours-{name}"),
            f"{PEFT}, {name}": own("peft", name),
            f"{DENSE}, {name}": own("dense", name),
        }
    return commands


def task(what: str, name: str, sources: list[Path], out: Path) -> None:
    """Do one of the commands that are no program of anybody's."""
    match what:
        case "read":
            for source in sources:
                with (source / adapters.WEIGHTS).open("rb") as file:
                    while file.read(1 << 24):
                        pass
        case "peft":
            with_peft(SINGLE[name], sources, out)
        case "dense":
            with_dense(SINGLE[name], sources, out)


def with_peft(architecture: Architecture, sources: list[Path], out: Path) -> None:
    """Combine as PEFT does it: load a model, all adapters, and add_weighted_adapter."""
    from peft import PeftModel
    from torch import nn

    model = nn.Module()
    model.model = nn.Module()
    model.model.layers = nn.ModuleList()
    model.config = {}
    for _ in range(architecture.layers):
        layer = nn.Module()
        for linear in architecture.linears:
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


def with_dense(architecture: Architecture, sources: list[Path], out: Path) -> None:
    """Combine as the description of sd-scripts has it: dense sums, then a full SVD of each."""
    files = [load_file(source / adapters.WEIGHTS) for source in sources]
    tensors = {}
    for module, _ in architecture:
        total = sum(
            2.0 * file[f"{module}.lora_B.weight"].float() @ file[f"{module}.lora_A.weight"].float()
            for file in files
        )
        u, s, vt = torch.linalg.svd(total)
        tensors[f"{module}.lora_B.weight"] = (u[:, :RANK] * s[:RANK]).half().contiguous()
        tensors[f"{module}.lora_A.weight"] = vt[:RANK].half().contiguous()
    out.mkdir()
    save_file(tensors, out / adapters.WEIGHTS)
    config = adapters.config(architecture, RANK) | {"lora_alpha": RANK}
    (out / adapters.CONFIG).write_text(json.dumps(config))


def report(
    root: Path, sources: dict[str, list[Path]], usages: dict[str, list[Usage]], layers: int
) -> Iterator[str]:
    """Yield the lines of the report."""
    yield from heading(f"lora-tools combine, {COUNT} adapters of rank {RANK} into one")
    yield installed("versions", provenance.versions("torch", "safetensors", "numpy", "peft"))
    yield ""
    yield f"{COUNT} adapters with {layers} layers of Llama-2-7B's shapes,"
    yield f"{layers * len(LLAMA2_7B.linears)} modules each, float16, and single modules of them."
    yield 'PEFT: `add_weighted_adapter(combination_type="svd")` of a model with the adapters'
    yield "loaded. Dense: the sum of products in float32 and its full SVD, as the description of"
    yield f"sd-scripts has it. `{SHRINK}` lowers its rank to {RANK // 2}."
    yield from medians(usages, "Whole processes, medians")
    yield from alternating(usages)
    yield from disturbance(loud(usages))
    names = [name for name in sources if name != "large"]
    yield from section("All modules, extrapolated")
    yield "Processor seconds. PEFT and dense: those of one module of a shape, imports included,"
    yield "times how many modules have it or its transpose. lora-tools: measured, all modules."
    yield ""
    yield from table(("", "cpu s", "of lora-tools"), [*extrapolated(usages, names, layers)])
    yield from section("Error of the single modules, against the exact sum in float64")
    rows = []
    for name in names:
        exact = total(sources[name])
        for what, out in ((OURS, "ours"), (PEFT, "peft"), (DENSE, "dense")):
            rows.append((f"{what}, {name}", f"{error(exact, root / f'{out}-{name}'):.6f}"))
    yield from table(("", "error"), rows)


def extrapolated(
    usages: dict[str, list[Usage]], names: list[str], layers: int
) -> Iterator[tuple[str, str, str]]:
    """Yield what each way costs for all modules, and how many times what lora-tools costs."""
    own = processes.median(usages[OURS]).cpu
    yield OURS, f"{own:.0f}", "1"
    for what in (PEFT, DENSE):
        cpu = 0.0
        for name in names:
            (wanted,) = SINGLE[name].linears
            alike = [x for x in LLAMA2_7B.linears if {x.inp, x.out} == {wanted.inp, wanted.out}]
            cpu += layers * len(alike) * processes.median(usages[f"{what}, {name}"]).cpu
        if cpu:
            yield what, f"{cpu:.0f}", f"{cpu / own:.0f}"


def total(sources: list[Path]) -> torch.Tensor:
    """Return the dense sum in float64 of adapters of one module."""
    found = torch.zeros(())
    for source in sources:
        weights = next(source.rglob(adapters.WEIGHTS))
        config = json.loads((weights.parent / adapters.CONFIG).read_text())
        b, a = (
            next(tensor for key, tensor in load_file(weights).items() if f"lora_{x}" in key)
            for x in "BA"
        )
        found = found + config["lora_alpha"] / config["r"] * (b.double() @ a.double())
    return found


def error(exact: torch.Tensor, out: Path) -> float:
    """Return the relative error of a result."""
    return float((total([out]) - exact).norm() / exact.norm())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--task"]:
        task(sys.argv[2], sys.argv[3], [Path(word) for word in sys.argv[4:-1]], Path(sys.argv[-1]))
    else:
        main()
