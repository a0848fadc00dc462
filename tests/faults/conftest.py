"""A fork server for all tests of a process, and a bench for each command."""

from collections.abc import Callable, Iterator

import pytest
from faults.bench import Bench
from faults.commands import Command
from faults.forks import Forks


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """The fork server of this process."""
    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture(scope="session")
def benches(forks, tmp_path_factory) -> Callable[[Command], Bench]:
    """Return the bench of a command; each is set up once."""
    made: dict[str, Bench] = {}

    def bench(command: Command) -> Bench:
        if command.name not in made:
            folder = tmp_path_factory.mktemp(command.name)
            made[command.name] = Bench(forks, command, folder)
        return made[command.name]

    return bench
