"""Fuzz every reader and command: `make fuzz`, or with options of its own.

A case is made of a seed and its number, and runs in a worker process: one that hangs or crashes
costs that case and no other. The line at the end counts what happened; the exit status is 1 if
anything did that must not.
"""

import argparse
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TypeAlias

if __name__ == "__main__":  # what imports this has settings of its own
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


Failures: TypeAlias = dict[tuple[str, str], list[tuple[int, str]]]
"""Numbers and tracebacks of cases, by what happened and where."""


@dataclass(slots=True)
class Worker:
    """A process, the cases that it has left, and when it last answered."""

    process: multiprocessing.Process
    answers: Connection
    cases: list[int]
    since: float
    ended: bool = False


def main() -> int:
    """Run the cases and return the exit status."""
    options = arguments()
    warm()
    began = time.monotonic()
    failures: Failures = defaultdict(list)
    done = 0
    try:
        for number, failure in answers(options):
            done += 1
            note(failures, number, failure, options)
    except KeyboardInterrupt:
        print("interrupted")
    seconds = time.monotonic() - began
    report(failures)
    count = sum(map(len, failures.values()))
    print(
        f"{done} cases of seed {options.seed} in {seconds:.0f} s ({done / seconds:.0f}/s):"
        f" {count} failures in {len(failures)} places"
    )
    return 1 if failures or done < len(numbers(options)) else 0


def answers(options: argparse.Namespace) -> Iterator[tuple[int, Failure | None]]:
    """Yield the number of each case and what must not have happened, in no order."""
    cases = numbers(options)
    todo = [cases[at : at + BATCH] for at in range(0, len(cases), BATCH)][::-1]
    workers: list[Worker] = []
    try:
        while todo or workers:
            while todo and len(workers) < options.jobs:
                workers.append(start(options.seed, todo.pop()))
            ready = wait([worker.answers for worker in workers], timeout=1)
            for worker in list(workers):
                if worker.answers in ready:
                    worker.since = time.monotonic()
                    yield from heard(worker)
                elif time.monotonic() - worker.since > STUCK:
                    worker.process.kill()  # its pipe ends, and the case is lost
                if worker.ended:
                    workers.remove(worker)
                    worker.process.join()
                    if worker.cases:  # the first of them ended it
                        yield worker.cases.pop(0), lost(worker.process.exitcode)
                        todo += [worker.cases] if worker.cases else []
    finally:
        for worker in workers:
            worker.process.kill()


def numbers(options: argparse.Namespace) -> list[int]:
    """Return the numbers of the cases that are asked for."""
    return [options.case] if options.case is not None else list(range(options.cases))


def heard(worker: Worker) -> Iterator[tuple[int, Failure | None]]:
    """Yield what a process has answered so far."""
    try:
        while worker.answers.poll():
            number, failure = worker.answers.recv()
            worker.cases.remove(number)
            yield number, failure
    except EOFError:
        worker.ended = True


def lost(status: int | None) -> Failure:
    """Return the failure of a case that ended its process."""
    return Failure("crash or hang", f"exit status {status}", "run it alone: --case N")


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
    return Worker(process, ours, list(cases), time.monotonic())


def work(seed: int, cases: list[int], answers: Connection) -> None:
    """Run cases and answer each with what must not have happened."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
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
    failures: Failures,
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
        stated = f"{case._replace(files={})}\n\n{failure.detail}"
        (folder / "failure.txt").write_text(stated, encoding="utf-8", errors="replace")


def report(failures: Failures) -> None:
    """Print each place where something failed, the most frequent first."""
    for (kind, where), of in sorted(failures.items(), key=lambda item: -len(item[1])):
        numbers = ", ".join(str(number) for number, _ in of[:5])
        last = next(iter(of[0][1].strip().splitlines()[::-1]), "")
        print(f"{len(of):6}  {kind}  {where}\n        cases {numbers}\n        {last[:300]}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was found so far is printed
    sys.exit(main())
