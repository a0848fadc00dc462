"""A power cut at each step of each command, and right after its end: unsynced data is gone."""

import pytest
from faults.commands import COMMANDS
from faults.disk import CUTS
from faults.order import Fault
from faults.promises import broken, check


def cuts(bench, way: str, numbers: list[int]) -> list[str]:
    end = len(bench.whole.steps)  # what status 0 has promised must be there
    return broken(bench, (Fault("cut", step, way) for step in [*numbers, end]))


@pytest.mark.parametrize("way", CUTS)
@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_power_cut_at_steps_of_each_kind(command, way, benches):
    bench = benches(command)
    check(cuts(bench, way, bench.sample(CUTS.index(way))))


@pytest.mark.slow
@pytest.mark.parametrize("way", CUTS)
@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_power_cut_at_each_step(command, way, benches):
    bench = benches(command)
    check(cuts(bench, way, bench.steps()))
