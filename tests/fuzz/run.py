"""Fuzz every reader and command: `make fuzz`, or with options of its own.

A case is made of a seed and its number, and runs in a worker process: one that hangs or crashes
costs that case and no other. The line at the end counts what happened; the exit status is 1 if
anything did that must not.
"""

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections import defaultdict
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
sys.dont_write_bytecode = True
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fuzz.cases import COMMANDS, Failure, clean, make, run, watch  # noqa: E402
from fuzz.seeds import seeds  # noqa: E402

GROWTH = 300 << 20
"""Bytes that a process may grow by, over all cases that it runs."""

ADDRESSES = 4 << 30
"""Bytes of address space that it may ask for beyond what it has: less is left of a machine."""

BATCH = 500
"""Cases of one process."""

STUCK = 60.0
"""Seconds after which a process that does not answer is ended; the machine may be busy."""


class Worker(NamedTuple):
    """A process, the cases that it has, and since when it is at the one it is at."""

    process: multiprocessing.Process
    answers: Connection
    cases: list[int]


def main() -> int:
    """Run the cases and return the exit status."""
    options = arguments()
    warm()
    began = time.monotonic()
    failures: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    numbers = [options.case] if options.case is not None else list(range(options.cases))
    todo = [numbers[at : at + BATCH] for at in range(0, len(numbers), BATCH)][::-1]
    done, workers, since = 0, list[Worker](), dict[int, float]()
    while todo or workers:
        while todo and len(workers) < options.jobs:
            workers.append(start(options.seed, todo.pop()))
            since[workers[-1].process.pid or 0] = time.monotonic()
        ready = wait([worker.answers for worker in workers], timeout=1)
        for worker in list(workers):
            pid = worker.process.pid or 0
            try:
                while worker.answers in ready and worker.answers.poll():
                    number, failure = worker.answers.recv()
                    worker.cases.remove(number)
                    since[pid] = time.monotonic()
                    done += 1
                    note(failures, number, failure, options)
            except EOFError:
                workers.remove(worker)
                worker.process.join()
                if worker.cases:  # the first of them ended it
                    lost, *rest = worker.cases
                    done += 1
                    status = worker.process.exitcode
                    failure = Failure("crash", make(options.seed, lost).command, f"exit {status}")
                    note(failures, lost, failure, options)
                    todo += [rest] if rest else []
                continue
            if time.monotonic() - since[pid] > STUCK:
                worker.process.kill()
    seconds = time.monotonic() - began
    report(failures)
    count = sum(map(len, failures.values()))
    print(
        f"{done} cases of seed {options.seed} in {seconds:.0f} s ({done / seconds:.0f}/s):"
        f" {count} failures in {len(failures)} places"
    )
    return 1 if failures else 0


def arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=50_000)
    parser.add_argument("--case", type=int, help="Run only this one.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path, help="Folder for the inputs of what fails.")
    return parser.parse_args()


def warm() -> None:
    """Import what the commands import, once for all processes."""
    with tempfile.TemporaryDirectory() as place:
        for number, command in enumerate(COMMANDS):
            folder = Path(place) / str(number)
            folder.mkdir()
            run(
                make(0, 0)._replace(files=seeds()["peft"].files, main=None, command=command), folder
            )


def start(seed: int, cases: list[int]) -> Worker:
    """Start a process that runs cases one after another."""
    context = multiprocessing.get_context("fork")  # which has everything imported
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(seed, list(cases), theirs))
    process.start()
    theirs.close()
    return Worker(process, ours, list(cases))


def work(seed: int, cases: list[int], answers: Connection) -> None:
    """Run cases and answer each with what must not have happened."""
    watch.listen()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    grown = peak()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        place = Path(folder).resolve() / "case"
        for number in cases:
            clean(place)
            case = make(seed, number)
            failure = run(case, place)
            if failure is None and peak() - grown > GROWTH:
                failure = Failure("memory", case.command, f"grew by {peak() - grown:,} bytes")
            answers.send((number, failure))
            if failure and failure.kind == "memory":
                grown = peak()


def peak() -> int:
    """Return the most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def note(
    failures: dict[tuple[str, str], list[tuple[int, str]]],
    number: int,
    failure: Failure | None,
    options: argparse.Namespace,
) -> None:
    """Keep a failure, and its input if there is a folder for it."""
    if failure is None:
        return
    of = failures[failure.kind, failure.where]
    of.append((number, failure.detail))
    if options.keep and len(of) <= 3:
        case = make(options.seed, number)
        folder = options.keep / f"{options.seed}-{number}"
        clean(folder)
        for name, data in case.files.items():
            (folder / name).write_bytes(data)
        said = f"{case._replace(files={})}\n\n{failure.detail}"
        (folder / "failure.txt").write_text(said, encoding="utf-8", errors="replace")


def report(failures: dict[tuple[str, str], list[tuple[int, str]]]) -> None:
    """Print each place where something failed, the most frequent first."""
    for (kind, where), of in sorted(failures.items(), key=lambda item: -len(item[1])):
        numbers = ", ".join(str(number) for number, _ in of[:5])
        last = next(iter(of[0][1].strip().splitlines()[::-1]), "")
        print(f"{len(of):6}  {kind}  {where}\n        cases {numbers}\n        {last[:300]}")


if __name__ == "__main__":
    sys.exit(main())
