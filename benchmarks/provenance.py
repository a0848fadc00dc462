"""Where figures came from: the commit, the machine and the versions."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def commit() -> str:
    """Return the hash of HEAD, and ``dirty`` if the work tree differs, earlier results aside."""
    head = git("rev-parse", "--verify", "--quiet", "HEAD") or "none"
    changes = git(
        "--no-optional-locks", "status", "--porcelain", "--", ".", ":(exclude)benchmarks/results"
    )
    return f"{head} dirty" if changes else head


def git(*arguments: str) -> str:
    """Return what git prints in the repository, empty if it fails."""
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware() -> str:
    """Return the processor's model, the usable cores and the memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = f"{platform.system()} {platform.machine()}"
    return f"{processor()}, {cores()} cores, {memory:.0f} GiB of memory, {system}"


def processor() -> str:
    """Return the model of the processor as the kernel names it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def threads() -> str:
    """Return the environment variables that limit threads, which the measured commands inherit."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return (
        " ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ)
        or "every program's default"
    )


def versions(*packages: str) -> dict[str, str]:
    """Return the installed versions of Python and of packages."""
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in packages
    }
