"""Other tools for the same job, each installed at a fixed version in an environment of its own."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PEERS = Path(__file__).parents[1] / ".peers"


@dataclass(frozen=True, slots=True)
class Peer:
    """A package at a fixed version; ``pins`` are installed first and bind what follows."""

    name: str
    version: str
    pins: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The peer's virtual environment."""
        return PEERS / self.name

    def script(self, name: str) -> Path:
        """Return the path of one of the environment's commands, such as ``python``."""
        return self.folder / "bin" / name


MERGEKIT = Peer("mergekit", "0.1.5", pins=("torch==2.13.0",))
SFT = Peer("sft-cli", "0.2.2", pins=("torch==2.13.0",))
GRADIENCE = Peer("gradience", "0.11.0", pins=("torch==2.13.0",))


def install(peer: Peer) -> Peer:
    """Make the peer's environment unless a finished one with the same versions is there."""
    wanted = "\n".join([*peer.pins, f"{peer.name}=={peer.version}", ""])
    finished = peer.folder / "finished.txt"
    if finished.exists() and finished.read_text() == wanted:
        return peer
    shutil.rmtree(peer.folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", peer.folder], check=True)
    constraints = peer.folder / "constraints.txt"
    constraints.write_text(wanted)
    # Pins go first, alone: pip, left to choose a torch for the peer, may fetch gigabytes of CUDA.
    for packages in filter(None, (peer.pins, (f"{peer.name}=={peer.version}",))):
        subprocess.run(
            [peer.script("pip"), "install", "--quiet", "--constraint", constraints, *packages],
            check=True,
        )
    finished.write_text(wanted)
    return peer


def versions(peer: Peer, *packages: str) -> dict[str, str]:
    """Return the installed versions of packages in the peer's environment."""
    code = "import sys, importlib.metadata as m; print(*map(m.version, sys.argv[1:]), sep='\\n')"
    asked = subprocess.run(
        [peer.script("python"), "-c", code, *packages], check=True, capture_output=True, text=True
    )
    return dict(zip(packages, asked.stdout.split(), strict=True))
