"""A process that has imported everything, and forks for each order: ten starts in the time of one.

It speaks lines of JSON: an order comes in, how the command ended goes out. A command that stops
itself is answered with its process, and resumes when that is sent.
"""

import gc
import json
import os
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from faults.child import order_of, run

LONGEST = 60.0
"""Seconds until a command counts as hung."""

HEAVY = ("torch",)  # starts threads, which do not survive a fork; no command needs it here


def serve() -> None:
    """Answer orders until there are no more."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(2, 1)
    started: dict[int, dict[str, Any]] = {}
    for line in requests:
        request = json.loads(line)
        if pid := request.get("resume"):
            order = started.pop(pid)
            os.kill(pid, signal.SIGCONT)
        else:
            order = request
            pid = _fork(order)
        answer = _wait(pid, order)
        if answer.get("stopped"):
            started[pid] = order
        print(json.dumps(answer), file=answers, flush=True)
    for pid in started:
        os.kill(pid, signal.SIGKILL)


def _fork(order: dict[str, Any]) -> int:
    assert threading.active_count() == 1
    pid = os.fork()
    if not pid:
        run(order_of(dict(order)))
    return pid


def _wait(pid: int, order: dict[str, Any]) -> dict[str, Any]:
    """Return how a process has ended, and what it left on its desk."""
    begun, limit = time.perf_counter(), order["kill_after"]
    handle = os.pidfd_open(pid)
    ready = select.poll()
    ready.register(handle, select.POLLIN)
    try:
        while True:
            ready.poll(2)
            found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
            if found and os.WIFSTOPPED(status):
                return {"stopped": pid}
            if found:
                break
            passed = time.perf_counter() - begun
            if passed > (LONGEST if limit is None else limit):
                os.kill(pid, signal.SIGKILL)
                limit = LONGEST
    finally:
        os.close(handle)
    desk = Path(order["desk"])
    code = os.waitstatus_to_exitcode(status)
    answer = {"status": 128 - code if code < 0 else code}
    answer["seconds"] = time.perf_counter() - begun
    for name in ("out", "err"):
        answer[name] = (desk / name).read_text(errors="replace")
    if (desk / "record").exists():
        for line in (desk / "record").read_text().splitlines(keepends=True):
            if line.endswith("\n"):  # whoever was killed while it wrote has left half a line
                answer |= json.loads(line)
        (desk / "record").unlink()
    _learn(answer.pop("modules", ()))
    return answer


def _learn(modules: list[str]) -> None:
    """Import what a command imported as it went, so that the next one need not."""
    for name in modules:
        if name.partition(".")[0] not in HEAVY:
            with suppress(Exception):
                import_module(name)
    gc.freeze()


if __name__ == "__main__":
    sys.argv = ["lora-tools"]
    import lora_tools.cli

    for name in lora_tools.cli.COMMANDS:
        import_module(f"lora_tools.cli.commands.{name}")
    serve()
