"""The tests' end of the fork server: orders go in, how each command ended comes out."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from faults.order import Order, Step

TESTS = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command has ended. A status is that of a shell: 128 and the signal's number."""

    status: int
    out: str
    err: str
    seconds: float
    fired: Step | None = None
    """The step at which the fault happened; None if the command never came to it."""
    steps: tuple[Step, ...] = ()
    written: tuple[str, ...] = ()
    unaccounted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stopped:
    """A command that waits within a step."""

    pid: int


class Forks:
    """A server of our own, and what is asked of it."""

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        """Start one; ``env`` is what it has in place of this process's environment."""
        paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
        settings = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._env = dict(os.environ if env is None else env) | settings
        self._server = subprocess.Popen(
            [sys.executable, "-m", "faults.server"],
            env=self._env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, order: Order) -> Ended | Stopped:
        """Run a command to its end, or until it stops itself."""
        return self._ask(asdict(order))

    def resume(self, stopped: Stopped) -> Ended:
        """Let a stopped command go on to its end."""
        ended = self._ask({"resume": stopped.pid})
        assert isinstance(ended, Ended)
        return ended

    def fresh(self, order: Order) -> Ended:
        """Run a command in a process that begins with nothing imported."""
        command = [sys.executable, "-m", "faults.child", json.dumps(asdict(order))]
        done = subprocess.run(command, env=self._env, timeout=120)
        desk = Path(order.desk)
        status = 128 - done.returncode if done.returncode < 0 else done.returncode
        texts = [(desk / name).read_text() for name in ("out", "err")]
        lines = (desk / "record").read_text().splitlines() if (desk / "record").exists() else []
        (desk / "record").unlink(missing_ok=True)
        found = {key: value for line in lines for key, value in json.loads(line).items()}
        found.pop("modules", None)
        return _ended({"status": status, "out": texts[0], "err": texts[1], "seconds": 0.0} | found)

    def close(self) -> None:
        """End the server."""
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def _ask(self, request: dict[str, Any]) -> Ended | Stopped:
        print(json.dumps(request), file=self._server.stdin, flush=True)
        answer = json.loads(self._server.stdout.readline())
        return Stopped(answer["stopped"]) if "stopped" in answer else _ended(answer)


def _ended(answer: dict[str, Any]) -> Ended:
    answer["steps"] = tuple(Step(*each) for each in answer.get("steps", ()))
    answer["fired"] = Step(*answer["fired"]) if "fired" in answer else None
    for name in ("written", "unaccounted"):
        answer[name] = tuple(answer.get(name, ()))
    return Ended(**answer)
