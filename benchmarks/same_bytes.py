"""Do two commits write the same bytes? Every verb that writes, on the fixtures and real adapters.

python benchmarks/same_bytes.py OLD NEW [--real FOLDER]

OLD and NEW are checkouts (``git worktree add OLD REVISION``). Each command runs with the code of
both; tensor files and configurations have to be equal byte for byte, refusals refusals. Reports,
cards and timings may differ. Prints what differs, and exits with 1 if anything does.
"""

import argparse
import hashlib
import os
import shutil
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
    log: str = ""
    """What it printed, of which nothing is compared."""


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


# A process with torch and numpy loaded, which forks for each command: imports are most of the time.
SERVER = """
import os, sys, torch, numpy
import lora_tools.cli
for line in sys.stdin:
    folder, *words = line.rstrip("\\n").split("\\t")
    if not (child := os.fork()):
        os.chdir(folder)
        log = os.open("log", os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(log, 1), os.dup2(log, 2), os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["lora-tools", *words]
        lora_tools.cli.main()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Server:
    """The code of a checkout, ready to run commands."""

    def __init__(self, tree: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(tree), "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", SERVER],
            env=environment | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, command: Command, folder: Path) -> Result:
        """Run a command, and return what it has left in a folder."""
        folder.mkdir(parents=True)
        out = folder / command.out
        words = [str(out) if word == "OUT" else word for word in command.words]
        assert self.process.stdin
        assert self.process.stdout
        print(folder, *words, sep="\t", file=self.process.stdin, flush=True)
        status = int(self.process.stdout.readline())
        files = {
            str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(out.rglob("*"))
            if file.is_file() and file.name not in IGNORED
        }
        if out.is_file():
            files[out.name] = hashlib.sha256(out.read_bytes()).hexdigest()
        return Result(status, files, (folder / "log").read_text(errors="replace"))


def differences(old: Result, new: Result) -> list[str]:
    """Return what differs, a line each."""
    lines = []
    if old.status != new.status:
        lines.append(f"exit status {old.status} → {new.status}")
        lines += [
            f"{side}: {end}"
            for side, log in (("old", old.log), ("new", new.log))
            for end in log.splitlines()[-3:]
        ]
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
        servers = [Server(tree.resolve()) for tree in (options.old, options.new)]
        with ThreadPoolExecutor(2) as pool:
            for number, command in enumerate(todo):
                folders = [Path(scratch, str(number), side) for side in "ab"]
                runs = [
                    pool.submit(server.run, command, folder)
                    for server, folder in zip(servers, folders, strict=True)
                ]
                old, new = (run.result() for run in runs)
                shutil.rmtree(Path(scratch, str(number)))
                wrote += bool(new.files)
                if lines := differences(old, new):
                    bad += 1
                    print(" ".join(command.words), *lines, sep="\n    ", flush=True)
        for server in servers:
            server.process.communicate()
    print(f"{len(todo)} commands, of which {wrote} wrote files; {bad} differ")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
