"""The cost of comparing a Llama-2-7B adapter with others, beside that of shrinking it.

python benchmarks/bench_diff.py [--runs N] [--out DIR]
"""

import argparse
import datetime
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
from processes import QUIET, Command, Usage
from safetensors.torch import load_file, save_file
from tables import disturbance, section, table

RANK = 64
KEPT = 16
OURS = [sys.executable, "-m", "lora_tools"]


def main() -> None:
    """Measure, print the report and write it to a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3, help="counted runs, after one warm-up")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="where the report goes"
    )
    options = parser.parse_args()
    with TemporaryDirectory(prefix="lora-tools-bench-") as folder:
        source = adapters.llama2_7b(Path(folder, "a"), RANK)
        commands = make_commands(source)
        usages = processes.alternate(commands, options.runs)
        lines = list(report(commands, usages, source.parent))
    print("\n".join(lines))
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / f"diff_cpu{provenance.cores()}_{datetime.date.today()}.md"
    target.write_text("\n".join(lines) + "\n")


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
    yield f"# lora-tools diff, Llama-2-7B adapters, rank {RANK}, float16"
    yield ""
    yield f"- date: {datetime.datetime.now().astimezone().isoformat(timespec='minutes')}"
    yield f"- commit: {provenance.commit()}"
    yield f"- hardware: {provenance.hardware()}"
    yield f"- threads: {provenance.threads()}"
    for name, command in commands.items():
        shown = str(command).replace(str(folder), "$TMP").replace(f"{provenance.ROOT}/", "")
        yield f"- {name}: `{shown}`"
    yield ""
    yield "224 modules each, 320 MB. *copy*: the same bytes. *other factors*: (B·G, G⁻¹·A) in"
    yield "float32, 640 MB, where Gram matrices have too few digits for the difference."
    for title, rows in (
        ("Medians", [(name, *figures(processes.median(runs))) for name, runs in usages.items()]),
        ("Every run", [(name, *figures(run)) for name, runs in usages.items() for run in runs]),
    ):
        yield from section(title)
        yield from table(("", "wall s", "cpu s", "peak MB", "others' cores"), rows)
    loud = sum(usage.others > QUIET for runs in usages.values() for usage in runs)
    if loud:
        yield ""
        yield disturbance(loud)


def figures(usage: Usage) -> tuple[str, ...]:
    """Return a usage as cells."""
    return f"{usage.wall:.2f}", f"{usage.cpu:.2f}", f"{usage.peak / 1e6:.0f}", f"{usage.others:.2f}"


if __name__ == "__main__":
    main()
