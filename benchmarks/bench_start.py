"""What a small command costs: two checkouts in turn, where most of the time is the start.

python benchmarks/bench_start.py OLD NEW [--pairs N] [--only NAME] [--real FOLDER]

OLD and NEW are checkouts (``git worktree add OLD REVISION``). Each command runs N times with the
code of either, in turn, its compiled files filled before; the ratios are medians of those of the
pairs. Exits with 1 if the processor time of any is above 1.05 times.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import processes
from processes import Command, Usage
from tables import middle, table

LIMIT = 1.05
HEADERS = ("command", "old s", "new s", "cpu", "range", "wall", "range")
FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
OLD_NAMES = "diffusers-sd15-catundchat/pytorch_lora_weights.safetensors"


def commands(pair: Path, real: Path | None) -> dict[str, list[str]]:
    """Return the arguments of each command, OUT in the place of its output."""
    plain = str(FIXTURES / "minilm-plain")
    base, tuned = str(pair / "base"), str(pair / "tuned")
    found = {
        "inspect": ["inspect", plain],
        "inspect --spectrum": ["inspect", plain, "--spectrum"],
        "shrink": ["shrink", plain, "OUT", "--rank", "4"],
        "convert": ["convert", plain, "OUT", "--to", "kohya"],
        "diff": ["diff", plain, plain],
        "extract": ["extract", base, tuned, "OUT", "--rank", "16"],
        "merge": ["merge", base, plain, "OUT"],
        "help": ["--help"],
    }
    if real:
        found["inspect SD 1.5"] = ["inspect", str(real / OLD_NAMES)]
    return found


def run(tree: Path, arguments: list[str], folder: Path) -> Usage:
    """Run a command with the code of a checkout."""
    out = folder / "out"
    words = [str(out) if word == "OUT" else word for word in arguments]
    argv = ["env", f"PYTHONPATH={tree}", sys.executable, "-m", "lora_tools", *words]
    return processes.run(Command(argv, out, folder))


def main() -> int:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--only", action="append", help="measure this command only; repeatable")
    parser.add_argument("--real", type=Path, help="a folder of folders of other people's adapters")
    options = parser.parse_args()
    trees = options.old.resolve(), options.new.resolve()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    rows, slow = [], False
    with TemporaryDirectory(prefix="lora-tools-bench-") as scratch:
        os.environ["PYTHONPYCACHEPREFIX"] = str(Path(scratch, "compiled"))
        pair = Path(scratch, "pair")
        subprocess.run([sys.executable, FIXTURES / "finetune.py", pair], check=True)
        for name, arguments in commands(pair, options.real).items():
            if options.only and name not in options.only:
                continue
            sides: tuple[list[Usage], list[Usage]] = ([], [])
            for turn in range(options.pairs + 1):
                for tree, usages in zip(trees, sides, strict=True):
                    usage = run(tree, arguments, Path(scratch))
                    if turn:  # the first compiles
                        usages.append(usage)
            wall, cpu, _ = zip(*processes.ratios(sides[1], sides[0]), strict=True)
            seconds = [f"{processes.median(usages).cpu:.3f}" for usages in sides]
            rows.append([name, *seconds, *middle(cpu, 2), *middle(wall, 2)])
            slow |= float(middle(cpu, 2)[0]) > LIMIT
            print(*rows[-1], sep="  ", flush=True)
    print("", *table(HEADERS, rows), sep="\n")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
