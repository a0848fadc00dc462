"""SIGKILL at random moments: work is lost at most, and a killed rerun of a killed run, too."""

import random

import pytest
from faults.bench import names, tree
from faults.commands import COMMANDS
from faults.order import Fault
from faults.promises import again, check, kept

FEW, MANY = 6, 50


def kills(bench, count: int, run, seconds: float) -> list[str]:
    """Kill a command so many times; every second time where the one before was killed."""
    dice, done, broken = random.Random(0), 0, []
    for attempt in range(20 * count):
        if attempt % 2 == 0:
            bench.clear()
        before = names(tree(bench.place))
        limit = dice.uniform(0, 1) * seconds
        ended = run(bench.order(kill_after=limit))
        killed = ended.status == 137
        done += killed
        fault = Fault("die" if killed else "nothing", 0)
        sentences = [*kept(bench, fault, ended, before)]
        if attempt % 2 or not killed:
            sentences += again(bench)
            bench.clear()
        broken += [f"killed after {limit:.3f} s: {sentence}" for sentence in sentences]
        if done >= count:
            return broken
    raise AssertionError(f"only {done} of {count} kills came before the end")


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_kills_at_random_moments(command, benches, forks):
    bench = benches(command)
    check(kills(bench, -(-FEW // command.cost), forks.run, bench.whole.ended.seconds))


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_fifty_kills_at_random_moments(command, benches, forks):
    bench = benches(command)
    check(kills(bench, MANY, forks.run, bench.whole.ended.seconds))


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_process_of_its_own_is_killed_at_each_kind_of_step(command, benches, forks):
    """What the fork server has imported beforehand changes nothing."""
    bench, broken = benches(command), []
    for number in bench.sample(0):
        bench.clear()
        fault = Fault("die", number)
        ended = forks.fresh(bench.order(fault))
        broken += [
            f"{fault} at step {number}: {s}" for s in (*kept(bench, fault, ended), *again(bench))
        ]
    check(broken)
