"""What every command promises, whatever happens to it; each broken promise is a sentence."""

import os
import shutil
from collections.abc import Collection, Iterable, Iterator

from faults.bench import Bench, Tree, names, part, stamps, tree
from faults.forks import Ended
from faults.order import ERRORS, Fault

STATUSES = {"die": 137, "cut": 137, "SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}

REMOVES = ("unlink", "remove", "rmdir")


def check(broken: list[str]) -> None:
    """Fail with the first of the broken promises, and how many there are."""
    assert not broken, "\n".join([f"{len(broken)} broken promises", *broken[:12]])


def broken(bench: Bench, faults: Iterable[Fault]) -> list[str]:
    """Let each fault befall a run of its own, and the same command follow; say what went wrong."""
    found = []
    for fault in faults:
        bench.clear()
        ended = bench.run(fault)
        sentences = [*kept(bench, fault, ended), *again(bench)]
        found += [f"{where(bench, fault, ended)}: {sentence}" for sentence in sentences]
    return found


def where(bench: Bench, fault: Fault, ended: Ended) -> str:
    """Return what happened, and at which call."""
    if ended.fired is None:
        return f"{fault}, which step {fault.step} did not come to"
    path = os.path.relpath(ended.fired.path, bench.place)
    return f"{fault} at step {fault.step}, {ended.fired.call} {path}"


def partial(out: str) -> str:
    """Return the one name, besides OUT, under which a killed command may leave something."""
    return f".{out}.partial"


def leftovers(bench: Bench, left: Tree, allowed: Collection[str] = ()) -> Iterator[str]:
    """Say what is there besides OUT, what may be, and what has been there before."""
    before = names(bench.old) - {*bench.command.outs, bench.command.beside}
    if strays := names(left) - before - {*bench.command.outs, *allowed}:
        yield f"leaves {', '.join(sorted(strays))}"
    for name in sorted(before):
        if part(left, name) != part(bench.old, name):
            yield f"has changed {name}"


def inputs(bench: Bench) -> Iterator[str]:
    """Say whether an input was touched."""
    contents, marks = bench.before
    if tree(bench.inputs) != contents:
        yield "has changed an input"
    elif stamps(bench.inputs) != marks:
        yield "has touched an input"


def whole(bench: Bench, left: Tree, *, killed: bool) -> Iterator[str]:
    """Say of each OUT that is there whether it is anything but the old or the new one."""
    # Two renames in place of one exchange: a kill between them leaves it to the next run.
    between = bench.command.old_kernel and killed
    for out in bench.command.outs:
        found = part(left, out)
        if not found and bench.command.replaces and not between:
            yield f"{out} is gone, which was there before"
        elif found and found not in (part(bench.whole.left, out), part(bench.old, out)):
            yield f"{out} looks whole and is not: {_differing(found, part(bench.whole.left, out))}"


def done(bench: Bench, left: Tree) -> bool:
    """Whether every OUT is there as it should be."""
    return all(part(left, out) == part(bench.whole.left, out) for out in bench.command.outs)


def kept(bench: Bench, fault: Fault, ended: Ended, before: Collection[str] = ()) -> Iterator[str]:
    """Say which promises a command has broken that a fault befell.

    ``before`` is what an earlier kill had left: a run that is refused, since OUT is whole already,
    touches none of it.
    """
    left, outs = tree(bench.place), bench.command.outs
    yield from inputs(bench)
    yield from whole(bench, left, killed=ended.status == 137)
    lain = [
        partial(out) for out in outs if partial(out) in before and "exists already" in ended.err
    ]
    yield from leftovers(bench, left, [*_allowed(bench, fault, ended), *lain])
    yield from _status(fault, ended, done=done(bench, left), paths=(*outs, os.fspath(bench.place)))


def again(bench: Bench) -> Iterator[str]:
    """Give the same command again, and say what is not as if nothing had happened."""
    if not bench.command.replaces:
        _remove_outs(bench)
    ended = bench.run()
    left = tree(bench.place)
    if ended.status:
        yield f"again: status {ended.status}: {ended.err.strip()}"
        return
    if not done(bench, left):
        for out in bench.command.outs:
            found, meant = part(left, out), part(bench.whole.left, out)
            if found != meant:
                yield f"again: {out} is another: {_differing(found, meant)}"
    for sentence in (*leftovers(bench, left), *inputs(bench)):
        yield f"again: {sentence}"


def _allowed(bench: Bench, fault: Fault, ended: Ended) -> list[str]:
    partials = [*(partial(out) for out in bench.command.outs), bench.command.beside]
    if fault.kind in ERRORS and ended.fired and ended.fired.call in REMOVES:
        return partials  # what cannot be removed stays, and the next run takes it over
    if ended.status == 0:
        return []
    return partials if bench.command.resumes or fault.kind in ("die", "cut") else []


def _status(fault: Fault, ended: Ended, *, done: bool, paths: Collection[str]) -> Iterator[str]:
    status = ended.status
    if status == 0:
        if not done:
            yield "status 0, and OUT is not there as it should be"
        if fault.kind in ERRORS and ended.fired and ended.fired.call in ("fsync", "fdatasync"):
            yield f"status 0, and {ended.fired.call} has failed"
        return  # it may have come too late, or have been overcome
    if fault.kind == "cut" and ended.fired and ended.fired.call == "exit":
        yield f"status {status}: {ended.err.strip()}"
        return
    if status != STATUSES.get(fault.kind, 1):
        yield f"status {status} in place of {STATUSES.get(fault.kind, 1)}: {ended.err.strip()}"
    if "Traceback" in ended.err:
        yield f"a traceback: {ended.err.strip().splitlines()[-1]}"
    if fault.kind in ERRORS and not any(path in ended.err for path in paths):
        yield f"names no path: {ended.err.strip()}"
    if fault.kind == "SIGINT" and "Interrupted." not in ended.err:
        yield f"says {ended.err.strip() or 'nothing'} in place of: Interrupted."


def _remove_outs(bench: Bench) -> None:
    for out in bench.command.outs:
        path = bench.place / out
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _differing(found: Tree, meant: Tree) -> str:
    every = sorted({*found, *meant})
    return ", ".join([name for name in every if found.get(name, 0) != meant.get(name, 0)][:5])
