"""An end at each step of each command: killed, out of space, an input/output error, a signal."""

import pytest
from faults.bench import part
from faults.commands import COMMANDS
from faults.order import ERRORS, SIGNALS, Fault
from faults.promises import broken, check

SOME = ("die", *ERRORS, "SIGINT", "SIGTERM after")
ALL = ("die", *ERRORS, *SIGNALS, *(f"{name} after" for name in SIGNALS))


def kinds(names: tuple[str, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", names, ids=lambda kind: kind.replace(" ", "-"))


def ends(bench, kind: str, numbers: list[int]) -> list[str]:
    name, _, how = kind.partition(" ")
    return broken(bench, (Fault(name, number, how) for number in numbers))


@kinds(SOME)
@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_an_end_at_steps_of_each_kind(command, kind, benches):
    bench = benches(command)
    check(ends(bench, kind, bench.sample(SOME.index(kind))))


@pytest.mark.slow
@kinds(ALL)
@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_an_end_at_each_step(command, kind, benches):
    bench = benches(command)
    check(ends(bench, kind, bench.steps()))


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_byte_of_an_output_is_written_in_steps(command, benches):
    """Else a fault could not befall it: whatever is written past the interposer is not tested."""
    bench = benches(command)
    left = bench.whole.left
    files = [name for out in command.outs for name, content in part(left, out).items() if content]
    assert files
    made = {content for name, content in bench.old.items() if name.startswith(".")}
    files = [name for name in files if left[name] not in made]  # else a part's, and moved
    assert {str(bench.place / name) for name in files} <= set(bench.whole.ended.written)
    assert not bench.whole.ended.unaccounted
