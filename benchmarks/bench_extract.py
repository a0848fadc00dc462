"""The cost of an extraction, beside mergekit; and beside reading both models once.

python benchmarks/bench_extract.py [--runs N] [--large] [--no-peers] [--out DIR]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import distances
import peers
import processes
import provenance
import tunes
from processes import QUIET, Command
from results import heading, installed, parser, publish
from tables import COSTS, disturbance, figures, loud, section, table

RANK = 32
OURS, MERGEKIT = "lora-tools", "mergekit"
SHAPES = {
    "hidden 2048 / 5504, 4 layers": tunes.Shape(2048, 5504, 4),
    "hidden 4096 / 11008, 2 layers": tunes.Shape(4096, 11008, 2),
}
LARGE = tunes.Shape(4096, 11008, 32, vocabulary=32000, same=True)


def main() -> None:
    """Measure, print the report and write it to a file."""
    options = parse()
    if not options.no_peers:
        peers.install(peers.MERGEKIT)
    publish(report(options), "extract-large" if options.large else "extract", options.out)


def parse() -> argparse.Namespace:
    """Read the command line."""
    known = parser(__doc__, 3, "counted runs")
    known.add_argument("--warmups", type=int, default=1, help="runs before that do not count")
    known.add_argument(
        "--large",
        action="store_true",
        help="a pair of 13 GB a side instead, beside reading it: 27 GB of disk, and root",
    )
    known.add_argument("--no-peers", action="store_true", help="measure lora-tools alone")
    return known.parse_args()


def report(options: argparse.Namespace) -> Iterator[str]:
    """Yield the lines of the report, measuring on the way."""
    yield from heading(f"lora-tools extract, Llama shapes in bfloat16, rank {RANK}")
    yield installed("versions", provenance.versions("lora-tools", "numpy"))
    if not options.no_peers and not options.large:
        yield installed(MERGEKIT, peers.versions(peers.MERGEKIT, "mergekit", "torch"))
    yield f"- models: `benchmarks/tunes.py`; ‖ΔW‖ is {tunes.CHANGE:.0%} of ‖W‖, its singular values"
    yield f"  fall as i^-{tunes.DECAY} and end in the rounding of bfloat16"
    with TemporaryDirectory(prefix="lora-tools-bench-") as folder:
        if options.large:
            yield from large(Path(folder))
        else:
            for name, shape in SHAPES.items():
                yield from beside(Path(folder, str(shape.hidden)), name, shape, options)


def beside(
    folder: Path, name: str, shape: tunes.Shape, options: argparse.Namespace
) -> Iterator[str]:
    """Measure both tools on one pair, in turn, and judge both outputs by one script."""
    yield from section(name)
    base, tuned = tunes.make(folder, shape)
    commands = {OURS: ours(base, tuned, folder / "ours")}
    if not options.no_peers:
        commands[MERGEKIT] = theirs(base, tuned, folder / "theirs")
    usages = processes.alternate(commands, options.runs, options.warmups)
    rows = []
    for tool, runs in usages.items():
        error, count = distances.distance(base, tuned, commands[tool].out)
        rows.append((tool, *figures(processes.median(runs)), f"{error:.8f}", str(count)))
    yield from table(("median", *COSTS, "error", "modules"), rows)
    yield ""
    if MERGEKIT in usages:
        pairs = zip(usages[MERGEKIT], usages[OURS], strict=True)
        times = ", ".join(f"{peer.wall / own.wall:.1f}" for peer, own in pairs)
        mine, other = float(rows[0][5]), float(rows[1][5])
        yield f"Times as fast, run by run: {times}. Error over {MERGEKIT}'s: {mine / other:.7f}."
    totals = json.loads((commands[OURS].out / "lora_tools_report.json").read_text())["totals"]
    yield (
        f"Reported error {totals['error']:.8f}, certified bound"
        f" {totals['optimal_error_lower_bound']:.8f}. Error: ‖ΔW − s·B·A‖ / ‖ΔW‖ over all modules,"
        " from the files in float64 (`benchmarks/distances.py`)."
    )
    yield from disturbance(loud(usages))


def large(folder: Path) -> Iterator[str]:
    """Measure a whole large model beside reading it once, the caches dropped before each."""
    yield from section("hidden 4096 / 11008, 32 layers, 13 GB a side")
    base, tuned = tunes.make(folder, LARGE)
    files = [file for side in (base, tuned) for file in sorted(side.glob("*.safetensors"))]
    size = sum(file.stat().st_size for file in files)
    drop_caches()
    began = time.perf_counter()
    with Path(os.devnull).open("wb") as sink:
        subprocess.run(["cat", *map(str, files)], stdout=sink, check=True)
    reading = time.perf_counter() - began
    drop_caches()
    processes.settle()
    usage = processes.run(ours(base, tuned, folder / "ours"))
    yield from table(
        ("", *COSTS),
        [("cat > /dev/null", f"{reading:.1f}", "", "", ""), (OURS, *figures(usage))],
    )
    yield ""
    yield f"{size / 1e9:.1f} GB read; {usage.wall / reading:.2f} times the time of reading it."
    yield "All layers have the same numbers, written out 32 times."
    yield from disturbance(int(usage.others > QUIET))


def drop_caches() -> None:
    """Forget every page of every file; needs root."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def ours(base: Path, tuned: Path, out: Path) -> Command:
    """Return our command."""
    argv = [sys.executable, "-m", "lora_tools", "extract", base, tuned, out, "--rank", RANK]
    return Command([*map(str, argv), "--force", "--no-resume"], out, provenance.ROOT)


def theirs(base: Path, tuned: Path, out: Path) -> Command:
    """Return mergekit's: the same modules, nothing saved whole."""
    argv = [peers.MERGEKIT.script("mergekit-extract-lora")]
    argv += ["--base-model", base, "--model", tuned, "--out-path", out, "--max-rank", RANK]
    argv += ["-e", "embed_tokens", "-e", "lm_head", "--skip-undecomposable"]
    return Command(list(map(str, argv)), out, provenance.ROOT)


if __name__ == "__main__":
    main()
