"""The cost of shrinking a Llama-2-7B adapter, beside sft; and one module, beside a dense SVD.

python benchmarks/bench_shrink.py [--runs N] [--out DIR] [--no-peers]
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import adapters
import fidelity
import peers
import processes
import provenance
import truncation
from processes import Command, Usage
from results import heading, installed, listed, parser, publish
from tables import alternating, disturbance, loud, medians, middle, section, table

RANK = 64
KEPT = 16
OURS = "lora-tools"
SFT = "sft"


def main() -> None:
    """Measure, print the report and write it to a file."""
    options = parse()
    if not options.no_peers:
        peers.install(peers.SFT)
    with TemporaryDirectory(prefix="lora-tools-bench-") as folder:
        source = adapters.llama2_7b(Path(folder, "llama2-7b-r64"), RANK)
        commands = make_commands(source, not options.no_peers)
        print(f"{source}: made; {options.runs} runs of each command follow", file=sys.stderr)
        usages = processes.alternate(commands, options.runs)
        publish(report(source, commands, usages, options.runs), "shrink", options.out)


def parse() -> argparse.Namespace:
    """Read the command line."""
    known = parser(__doc__, 5, "counted runs of each command, after one warm-up")
    known.add_argument(
        "--no-peers", action="store_true", help="measure lora-tools alone, install nothing"
    )
    options = known.parse_args()
    # Asked now: minutes later the last part of the report would fail.
    if importlib.util.find_spec("lora_tools") is None:
        known.error("lora_tools is not installed in this environment: pip install -e .")
    return options


def make_commands(source: Path, with_peers: bool) -> dict[str, Command]:
    """Return the commands to compare: the same file in, the same rank and dtype out."""
    ours, theirs = source.with_name("ours"), source.with_name("sft.safetensors")
    shrink = [
        sys.executable,
        "-m",
        "lora_tools",
        "shrink",
        str(source),
        str(ours),
        "--rank",
        str(KEPT),
    ]
    commands = {OURS: Command(shrink, ours, provenance.ROOT)}
    if with_peers:
        sft, weights = str(peers.SFT.script("sft")), str(source / adapters.WEIGHTS)
        resize = [sft, "lora", "resize", weights, "--rank", str(KEPT), "--output", str(theirs)]
        commands[SFT] = Command(resize, theirs, provenance.ROOT)
    return commands


def report(
    source: Path, commands: dict[str, Command], usages: dict[str, list[Usage]], runs: int
) -> Iterator[str]:
    """Yield the lines of the report, measuring the later parts on the way."""
    yield from head(commands, source.parent)
    yield from whole_processes(usages)
    yield from quality(source, commands)
    yield from truncation.compare(RANK, KEPT, runs)


def head(commands: dict[str, Command], folder: Path) -> Iterator[str]:
    """Say what was run, where, and with which versions."""
    yield from heading("lora-tools shrink, Llama-2-7B adapter, rank 64 to 16, float16")
    yield installed(OURS, provenance.versions("torch", "safetensors", "numpy"))
    if SFT in commands:
        packages = ("sft-cli", "torch", "safetensors", "numpy")
        yield installed(SFT, peers.versions(peers.SFT, *packages))
    yield from listed(commands, folder)
    yield ""
    yield "The adapter is synthetic (`benchmarks/adapters.py`): 224 modules, 320 MB,"
    yield "singular values falling as i^-0.6 to i^-1.4, from module to module."


def whole_processes(usages: dict[str, list[Usage]]) -> Iterator[str]:
    """Show each command's medians, the ratios of the runs, and the runs themselves."""
    yield from medians(usages, "Whole processes, medians")
    if SFT in usages:
        ratios = processes.ratios(usages[OURS], usages[SFT])
        rows = [
            (name, *middle(column, 3))
            for name, column in zip(("wall", "cpu", "peak"), zip(*ratios, strict=True), strict=True)
        ]
        yield ""
        yield from table((f"{OURS} / {SFT}", "median of pairs", "range"), rows)
    yield from alternating(usages)
    yield from disturbance(loud(usages))


def quality(source: Path, commands: dict[str, Command]) -> Iterator[str]:
    """Show how far each output is from the source, at the scale that its reader would use."""
    yield from section("Error of what was written")
    weights, config = source / adapters.WEIGHTS, source / adapters.CONFIG
    right = fidelity.scale(config)
    out = commands[OURS].out
    compared = [
        (
            OURS,
            out / adapters.WEIGHTS,
            fidelity.scale(out / adapters.CONFIG),
            "its adapter_config.json",
        )
    ]
    if SFT in commands:
        edited = json.loads(config.read_text())["lora_alpha"] / KEPT
        written = commands[SFT].out
        compared.append((SFT, written, right, f"kept by hand: lora_alpha {right * KEPT:g}"))
        compared.append((SFT, written, edited, f"the source's config, only r changed to {KEPT}"))
    rows = []
    for name, file, scale, origin in compared:
        whole, worst, optimum = fidelity.distance(weights, right, file, scale)
        dtypes = " ".join(sorted(fidelity.dtypes(file)))
        rows.append(
            (
                name,
                origin,
                f"{scale:g}",
                dtypes,
                f"{whole:.7f}",
                f"{whole / optimum - 1:.1e}",
                f"{worst:.4f}",
            )
        )
    yield from table(
        ("", "scale from", "scale", "dtype", "error", "above optimum", "worst module"), rows
    )
    yield ""
    yield "Error: ||s B A - s' B' A'|| / ||s B A||, Frobenius, from the files in float64"
    yield "(`benchmarks/fidelity.py`)."
    if SFT in commands:
        yield f"{SFT} writes no adapter_config.json and no alpha. PEFT refuses the"
        yield f"source's own beside its output (r is {RANK}); with r alone corrected the scale is"
        yield f"{edited:g}, not {right:g}."


if __name__ == "__main__":
    main()
