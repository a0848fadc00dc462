"""Two processes on one OUT, and an OUT that somebody else makes meanwhile: nobody loses a byte."""

import pytest
from faults.bench import few, part, tree
from faults.commands import COMMANDS, NAMED, Command
from faults.forks import Stopped
from faults.order import Fault
from faults.promises import check, inputs, leftovers, partial, where

PAIRS = [
    *((command, command) for command in COMMANDS),
    (NAMED["shrink"], NAMED["convert"]),
    (NAMED["convert"], NAMED["extract"]),
    (NAMED["extract"], NAMED["merge"]),
    (NAMED["merge"], NAMED["shrink"]),
]
THEIRS = {"empty": {"": None}, "folder": {"": None, "/theirs": b"theirs"}}
THEIRS |= {"file": {"": b"theirs"}, "link": {"": "nowhere"}}
ALONE = [command for command in COMMANDS if not command.replaces]


def rival(first: Command, second: Command, benches, *, most: int) -> list[str]:
    """Let the second command run as a whole while the first waits within a step."""
    bench, other, broken, met = benches(first), benches(second), [], 0
    for number in few(range(len(bench.whole.steps)), most):
        bench.clear()
        waits = bench.start(number)
        if not isinstance(waits, Stopped):
            continue  # threads make a step more or less
        met += 1
        theirs = bench.forks.run(bench.order() if first is second else _there(bench, other))
        mine = bench.forks.resume(waits)
        step = bench.whole.steps[number]
        stated = f"the first waits at step {number}, {step.call}"
        broken += [f"{stated}: {s}" for s in _outcome(bench, other, mine, theirs)]
    assert met > 1
    return broken


def _there(bench, other):
    """Return the order for the other command, in the first one's place."""
    return bench.order(arguments=other.command.arguments)


def _outcome(bench, other, mine, theirs):
    left, outs = tree(bench.place), {*bench.command.outs, *other.command.outs}
    statuses = sorted((mine.status, theirs.status))
    if statuses != [0, 1] and not (bench.command.replaces and statuses == [0, 0]):
        yield f"statuses {mine.status} and {theirs.status}: {mine.err.strip()} {theirs.err.strip()}"
    winner = other if theirs.status == 0 and mine.status else bench
    for out in winner.command.outs:
        if part(left, out) != part(winner.whole.left, out):
            yield f"{out} is not what the one that ended with status 0 has made"
    stay = [partial(out) for out in outs if bench.command.resumes or other.command.resumes]
    stay += [bench.command.beside, other.command.beside]
    yield from leftovers(bench, left, [*other.command.outs, *stay])
    yield from inputs(bench)


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=str)
def test_one_of_two_processes_is_refused(first, second, benches):
    check(rival(first, second, benches, most=5 - min(first.cost, 3)))


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), PAIRS, ids=str)
def test_one_of_two_processes_is_refused_at_each_step(first, second, benches):
    check(rival(first, second, benches, most=1000))


def made_meanwhile(bench, what: str, numbers) -> list[str]:
    """Let somebody else make OUT at each of these steps."""
    out, broken = bench.command.outs[0], []
    theirs = {f"{out}{name}": content for name, content in THEIRS[what].items()}
    for number in numbers:
        bench.clear()
        fault = Fault("make", number, what)
        ended = bench.run(fault)
        left, stated = tree(bench.place), []
        if ended.fired is None:
            continue  # OUT was there already, or is not to come
        if part(left, out) != theirs:
            stated.append("theirs is gone")
        if ended.status != 1 or out not in ended.err:
            stated.append(f"status {ended.status}: {ended.err.strip()}")
        stay = [partial(out)] if bench.command.resumes else []
        stated += [*leftovers(bench, left, stay), *inputs(bench)]
        broken += [f"{where(bench, fault, ended)}: {sentence}" for sentence in stated]
    return broken


@pytest.mark.parametrize("what", THEIRS)
@pytest.mark.parametrize("command", ALONE, ids=str)
def test_what_somebody_else_makes_meanwhile_stays(command, what, benches):
    bench = benches(command)
    check(made_meanwhile(bench, what, few(range(len(bench.whole.steps)), 5)))


@pytest.mark.slow
@pytest.mark.parametrize("what", THEIRS)
@pytest.mark.parametrize("command", ALONE, ids=str)
def test_what_somebody_else_makes_at_any_step_stays(command, what, benches):
    bench = benches(command)
    check(made_meanwhile(bench, what, range(len(bench.whole.steps))))
