"""Do two commits write the same bytes? Every verb that writes, on the fixtures and real adapters.

python benchmarks/same_bytes.py OLD NEW [--real FOLDER]

OLD and NEW are checkouts (``git worktree add OLD REVISION``). Each command runs with the code of
both; tensor files and configurations have to be equal byte for byte, refusals refusals. Reports,
cards and timings may differ. Prints what differs, and exits with 1 if anything does.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
IGNORED = ("lora_tools_report.json", "README.md")
TARGETS = ("peft", "kohya", "diffusers", "comfyui", "mlx", "xlabs", "torchtune")


class Command(NamedTuple):
    """A command line without its OUT, and whether OUT is a file."""

    words: tuple[str, ...]
    out: str = "out"


class Result(NamedTuple):
    """The status of a command, and the digest of each file that it wrote."""

    status: int
    files: dict[str, str]


def commands(adapters: list[Path], pair: Path) -> Iterator[Command]:
    """Yield what is compared."""
    for adapter in adapters:
        at = str(adapter)
        for policy in (("--rank", "2"), ("--energy", "0.9"), ("--max-error", "0.2")):
            yield Command(("shrink", at, "OUT", *policy))
        yield Command(("shrink", at, "OUT", "--rank", "64"))
        yield Command(("shrink", at, "OUT", "--rank", "3", "--scale", "keep"))
        yield Command(("shrink", at, "OUT", "--rank", "3", "--dtype", "bfloat16"))
        yield Command(("shrink", at, "OUT", "--rank", "5", "--for", "vllm"))
        for target in TARGETS:
            yield Command(("convert", at, "OUT", "--to", target))
            yield Command(("convert", at, "OUT", "--to", target, "--rank", "2"))
    base, tuned = str(pair / "base"), str(pair / "tuned")
    for policy in (("--rank", "4"), ("--max-error", "0.5"), ("--energy", "0.5")):
        yield Command(("extract", base, tuned, "OUT", *policy))
    for adapter in adapters:
        if adapter.name.startswith("minilm") and adapter.name != "minilm-bias":
            yield Command(("merge", base, str(adapter), "OUT"))
            yield Command(("merge", base, str(adapter), "OUT", "--dtype", "float16"))


def run(command: Command, tree: Path, folder: Path) -> Result:
    """Run a command with the code of a checkout."""
    folder.mkdir(parents=True)
    out = folder / command.out
    words = [str(out) if word == "OUT" else word for word in command.words]
    environment = os.environ | {"PYTHONPATH": str(tree), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "lora_tools", *words],
        env=environment,
        cwd=folder,
        capture_output=True,
        check=False,
    )
    files = {
        str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(out.rglob("*"))
        if file.is_file() and file.name not in IGNORED
    }
    return Result(done.returncode, files)


def differences(old: Result, new: Result) -> list[str]:
    """Return what differs, a line each."""
    lines = [f"exit status {old.status} → {new.status}"] if old.status != new.status else []
    for name in sorted(old.files.keys() | new.files.keys()):
        if old.files.get(name) != new.files.get(name):
            both = name in old.files and name in new.files
            lines.append(f"{name}: {'differs' if both else 'is in one only'}")
    return lines


def main() -> int:
    """Compare, and say what differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--real", type=Path, help="a folder of folders of other people's adapters")
    options = parser.parse_args()
    adapters = sorted(path.parent for path in FIXTURES.glob("*/adapter_model.*"))
    if options.real:
        kinds = ("*.safetensors", "*.bin", "*.pt")
        adapters += sorted(file for kind in kinds for file in options.real.glob(f"*/{kind}"))
    with tempfile.TemporaryDirectory() as scratch:
        pair = Path(scratch, "pair")
        subprocess.run([sys.executable, FIXTURES / "finetune.py", pair], check=True)
        todo = list(commands(adapters, pair))
        bad = wrote = 0

        def both(number: int) -> tuple[Result, Result]:
            folder = Path(scratch, str(number))
            trees = (options.old.resolve(), options.new.resolve())
            results = [
                run(todo[number], tree, folder / side)
                for side, tree in zip("ab", trees, strict=True)
            ]
            subprocess.run(["rm", "-rf", folder], check=True)
            return results[0], results[1]

        with ThreadPoolExecutor(2) as pool:
            for command, (old, new) in zip(todo, pool.map(both, range(len(todo))), strict=True):
                wrote += bool(new.files)
                if lines := differences(old, new):
                    bad += 1
                    print(" ".join(command.words), *lines, sep="\n    ", flush=True)
    print(f"{len(todo)} commands, of which {wrote} wrote files; {bad} differ")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
