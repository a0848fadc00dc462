"""Where a command is run over and over: its inputs, its working folder, what it should leave."""

import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from faults.commands import Command, make_inputs
from faults.forks import Ended, Forks, Stopped
from faults.order import Fault, Order, Step

Tree: TypeAlias = dict[str, bytes | str | None]
"""What is below a folder: the bytes of files, the targets of links, None for folders."""

TIMES = re.compile(rb'("resumed_shards":) \d+')
"""What a report says of the run, not of the result. Clocks stand still here."""


def tree(folder: Path) -> Tree:
    """Return everything that is below a folder, hidden things too."""
    found: Tree = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = str(path.readlink())
        else:
            found[name] = None if path.is_dir() else TIMES.sub(rb"\1 0", path.read_bytes())
    return found


def names(whole: Tree) -> set[str]:
    """Return the names at the top of a tree."""
    return {name.split("/")[0] for name in whole}


def part(whole: Tree, name: str) -> Tree:
    """Return what there is of one name at the top of a tree, empty if it is not there."""
    return {key: value for key, value in whole.items() if key.split("/")[0] == name}


def stamps(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return what tells whether anything below a folder was touched."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return {
        str(path): (about.st_ino, about.st_size, about.st_mtime_ns)
        for path in paths
        if (about := path.lstat())
    }


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """What a command does when nothing happens to it."""

    left: Tree
    """All that is in the working folder afterwards."""
    steps: tuple[Step, ...]
    ended: Ended


class Bench:
    """One command's place: inputs that must not change, and a folder that is new for each run."""

    def __init__(self, forks: Forks, command: Command, folder: Path) -> None:
        self.forks, self.command = forks, command
        self.inputs, self.place, self._desk, self._old = (
            folder / name for name in ("inputs", "place", "desk", "old")
        )
        for path in (self.inputs, self._desk):
            path.mkdir(parents=True)
        make_inputs(self.inputs)
        self.before = tree(self.inputs), stamps(self.inputs)
        if command.earlier:
            self.place.mkdir()
            done = self.run(arguments=tuple(command.earlier.split()))
            assert done.status == 0, done.err
            self.place.rename(self._old)
        self.clear()
        self.old = tree(self.place)
        first = self.run()
        assert first.status == 0, first.err
        self.clear()
        ended = self.run()  # when everything is imported, as in every further run
        self.whole = Undisturbed(tree(self.place), ended.steps, ended)

    def clear(self) -> None:
        """Begin anew, with what is there before the command is given."""
        shutil.rmtree(self.place, ignore_errors=True)
        if self._old.is_dir():
            shutil.copytree(self._old, self.place)
        else:
            self.place.mkdir()

    def order(self, fault: Fault | None = None, **more: object) -> Order:
        """Return the order to run the command with a fault."""
        place, inputs = os.fspath(self.place), os.fspath(self.inputs)
        out = self.command.outs[0]
        order = Order(
            self.command.arguments,
            place,
            (place, inputs),
            os.fspath(self._desk),
            fault,
            out,
            old_kernel=self.command.old_kernel,
        )
        return order if not more else Order(**{**_fields(order), **more})

    def run(self, fault: Fault | None = None, **more: object) -> Ended:
        """Run the command in the working folder as it is, to its end."""
        ended = self.forks.run(self.order(fault, **more))
        assert isinstance(ended, Ended)
        return ended

    def start(self, step: int) -> Ended | Stopped:
        """Run the command until it is about to do a step, and let it wait there."""
        return self.forks.run(self.order(Fault("stop", step)))

    def steps(self) -> list[int]:
        """Return the numbers of all steps."""
        return list(range(len(self.whole.steps)))

    def sample(self, turn: int) -> list[int]:
        """Return the first and the last step of each kind: a third of them, by turns."""
        kinds: dict[tuple[str, str], list[int]] = {}
        for number, step in enumerate(self.whole.steps):
            kinds.setdefault((step.call, Path(step.path).suffix), []).append(number)
        ends = sorted({number for them in kinds.values() for number in (them[0], them[-1])})
        share = 3 * self.command.cost
        return ends[turn % share :: share]


def _fields(order: Order) -> dict[str, object]:
    return {name: getattr(order, name) for name in order.__slots__}


def few(numbers: Iterable[int], most: int) -> list[int]:
    """Return numbers spread over all of them, the first and the last among them."""
    numbers = list(numbers)
    if len(numbers) <= most:
        return numbers
    return [numbers[round(i * (len(numbers) - 1) / (most - 1))] for i in range(most)]
