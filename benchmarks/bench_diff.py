"""The cost of comparing a Llama-2-7B adapter with others, beside that of shrinking it.

python benchmarks/bench_diff.py [--runs N] [--out DIR]
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import adapters
import processes
import provenance
import torch
from processes import Command, Usage
from results import heading, listed, parser, publish
from safetensors.torch import load_file, save_file
from tables import costs, disturbance, loud, medians, section

RANK = 64
KEPT = 16
OURS = [sys.executable, "-m", "lora_tools"]


def main() -> None:
    """Measure, print the report and write it to a file."""
    options = parser(__doc__, 3, "counted runs, after one warm-up").parse_args()
    with TemporaryDirectory(prefix="lora-tools-bench-") as folder:
        source = adapters.llama2_7b(Path(folder, "a"), RANK)
        commands = make_commands(source)
        usages = processes.alternate(commands, options.runs)
        publish(report(commands, usages, source.parent), "diff", options.out)


def make_commands(source: Path) -> dict[str, Command]:
    """Make the other adapters, and return the commands that compare them with the first."""
    copied, cut, turned = (source.with_name(name) for name in ("copied", "cut", "turned"))
    shutil.copytree(source, copied)
    subprocess.run([*OURS, "shrink", source, cut, "--rank", str(KEPT), "--quiet"], check=True)
    turn(source, turned)
    none = source.with_name("none")  # a diff makes no file
    # The tolerance makes the answer "same", status 0, and changes nothing that is computed.
    diffs = {
        name: Command(
            [*OURS, "diff", str(source), str(other), "--tolerance", "9"], none, provenance.ROOT
        )
        for name, other in (("copy", copied), (f"rank {KEPT}", cut), ("other factors", turned))
    }
    made = source.with_name("made")
    shrink = [*OURS, "shrink", str(source), str(made), "--rank", str(KEPT)]
    return diffs | {"shrink": Command(shrink, made, provenance.ROOT)}


def turn(source: Path, out: Path) -> None:
    """Make the same update in other factors, in float32."""
    g = torch.linalg.qr(torch.randn(RANK, RANK, generator=torch.Generator().manual_seed(0)))[0]
    tensors = {
        key: (g.T @ tensor.float() if "lora_A" in key else tensor.float() @ g).contiguous()
        for key, tensor in load_file(source / adapters.WEIGHTS).items()
    }
    out.mkdir()
    save_file(tensors, out / adapters.WEIGHTS, metadata={"format": "pt"})
    shutil.copy(source / adapters.CONFIG, out)


def report(
    commands: dict[str, Command], usages: dict[str, list[Usage]], folder: Path
) -> Iterator[str]:
    """Yield the lines of the report."""
    yield from heading(f"lora-tools diff, Llama-2-7B adapters, rank {RANK}, float16")
    yield from listed(commands, folder)
    yield ""
    yield "224 modules each, 320 MB. *copy*: the same bytes. *other factors*: (B·G, G⁻¹·A) in"
    yield "float32, 640 MB, where Gram matrices have too few digits for the difference."
    yield from medians(usages, "Medians")
    yield from section("Every run")
    yield from costs((name, run) for name, runs in usages.items() for run in runs)
    yield from disturbance(loud(usages))


if __name__ == "__main__":
    main()
