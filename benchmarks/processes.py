"""Whole processes, measured: wall time, processor time and peak memory, from outside.

Run as a script this file is the launcher that starts and reaps one command. The launcher is
needed because Linux counts the memory of the process that spawns into the peak of the process
spawned, so a harness that holds tensors would be measured instead of the command.
"""

import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

QUIET = 0.1  # cores; above it a run shared the machine and its times say little


class Usage(NamedTuple):
    """What one run of a command cost, from exec to exit, with the children that it waited for.

    ``peak`` is the largest resident set of any one process; mapped pages of files count.
    ``others`` says how far to trust the times: near zero on a quiet machine.
    """

    wall: float  # seconds
    cpu: float  # seconds, user and system
    peak: int  # bytes
    others: float  # cores that other work kept busy meanwhile; nan where the kernel does not say


@dataclass(frozen=True, slots=True)
class Command:
    """A command line and the file or folder that it makes, removed before each run."""

    argv: Sequence[str]
    out: Path
    cwd: Path

    def __str__(self) -> str:
        """Return the command line as one would type it."""
        return shlex.join(self.argv)


def run(command: Command) -> Usage:
    """Run a command and return what it cost.

    Raises CalledProcessError, with what the command printed as a note, if it fails.
    """
    remove(command.out)
    # Pages that another command left dirty are written now, not on this command's time.
    os.sync()
    with TemporaryDirectory() as folder:
        figures, log = Path(folder, "figures"), Path(folder, "log")
        launcher = [sys.executable, "-I", "-S", __file__, str(figures), str(log), *command.argv]
        subprocess.run(launcher, cwd=command.cwd, stdin=subprocess.DEVNULL, check=True)
        status, *usage = json.loads(figures.read_text())
        if status:
            error = subprocess.CalledProcessError(status, list(command.argv))
            error.add_note(log.read_text(errors="replace")[-4000:])
            raise error
    return Usage(*usage)


def alternate(
    commands: Mapping[str, Command], runs: int, warmups: int = 1
) -> dict[str, list[Usage]]:
    """Run the commands in turn, A B A B, and return the usages of each, warm-ups left out.

    Each run waits for a quiet machine. Runs of the same index were neighbours in time, so their
    ratio cancels a slow drift of the machine. The outputs of the last round stay.
    """
    usages: dict[str, list[Usage]] = {name: [] for name in commands}
    for turn in range(warmups + runs):
        for name, command in commands.items():
            settle()
            usage = run(command)
            if turn >= warmups:
                usages[name].append(usage)
    return usages


def settle(patience: float = 60, quiet: float = QUIET) -> None:
    """Wait for a second with less than ``quiet`` cores busy, at most ``patience`` seconds.

    Sharing cores does not merely slow a program down: threads that spin at a barrier while their
    partner is off its core multiplied wall and processor time by up to six here.
    """
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        before = busy()
        time.sleep(1)
        # Written so that nan, from a kernel that does not say, ends the wait.
        if not busy() - before > quiet:
            return


def median(usages: Sequence[Usage]) -> Usage:
    """Return the median of each figure by itself; they may come from different runs."""
    wall, cpu, peak, others = (statistics.median(figures) for figures in zip(*usages, strict=True))
    return Usage(wall, cpu, int(peak), others)


def ratios(ours: Sequence[Usage], theirs: Sequence[Usage]) -> list[tuple[float, float, float]]:
    """Return ours / theirs in wall time, processor time and peak memory, run by run."""
    return [
        (a.wall / b.wall, a.cpu / b.cpu, a.peak / b.peak) for a, b in zip(ours, theirs, strict=True)
    ]


def remove(path: Path) -> None:
    """Remove a file or a folder, or nothing."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def busy() -> float:
    """Return the core seconds that the machine has worked, or lost to its host, since boot."""
    try:
        with Path("/proc/stat").open() as file:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(
                int, file.readline().split()[1:9]
            )
    except OSError:
        return float("nan")
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def launch(figures: str, log: str, argv: list[str]) -> None:
    """Run ``argv``, its output in ``log``; write exit status and usage as JSON to ``figures``."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    output = (os.POSIX_SPAWN_OPEN, 1, log, flags, 0o600)
    before, start = busy(), time.perf_counter()
    pid = os.posix_spawnp(
        argv[0], argv, os.environ, file_actions=[output, (os.POSIX_SPAWN_DUP2, 1, 2)]
    )
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - start
    # Linux gives ru_maxrss in KiB, macOS in bytes.
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    cpu = usage.ru_utime + usage.ru_stime
    others = (busy() - before - cpu) / wall
    code = os.waitstatus_to_exitcode(status)
    Path(figures).write_text(json.dumps([code, wall, cpu, peak, others]))


if __name__ == "__main__":
    launch(sys.argv[1], sys.argv[2], sys.argv[3:])
