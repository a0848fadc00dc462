"""An end at each step of a push: the folder stays, and nothing is ever half published."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.bench import few, stamps, tree
from faults.forks import Ended, Forks
from faults.order import ERRORS, Fault, Order
from faults.promises import REMOVES, STATUSES, check
from hub_person import Person, make_adapter
from hub_server import HubServer

from lora_tools.files.work import discard

REPO = "alice/x"
PUSH = (
    *("push", "mine", REPO, "--public", "--base-model", "org/tiny-base"),
    *("--no-picture", "--strip-metadata"),
)
KINDS = ("die", *ERRORS, "SIGINT", "SIGTERM")


class Stage:
    """A folder to publish, a Hub to publish it on, and a process that pushes."""

    def __init__(self, hub: HubServer, folder: Path) -> None:
        self.hub, self.place = hub, folder / "place"
        self.temporary, self._desk = folder / "temporary", folder / "desk"
        for path in (self.place, self.temporary, self._desk):
            path.mkdir()
        metadata = {"format": "pt", "ss_output_dir": "/home/alice/out"}  # stripped from a copy
        make_adapter(self.place / "mine", metadata=metadata)
        person = Person(hub, folder, settings={"HF_HUB_DISABLE_XET": "1"})
        self.forks = Forks(person.env | {"TMPDIR": str(self.temporary)})
        self._before = tree(self.place), stamps(self.place)
        assert self.push().status == 0
        self.clear()
        ended = self.push()
        assert ended.status == 0, ended.err
        self.steps, self.published = ended.steps, self.entries()

    def push(self, fault: Fault | None = None) -> Ended:
        roots = str(self.place), str(self.temporary)
        order = Order(PUSH, str(self.place), roots, str(self._desk), fault, network=True)
        ended = self.forks.run(order)
        assert isinstance(ended, Ended)
        return ended

    def clear(self) -> None:
        """Begin anew: nothing was ever published."""
        if repository := self.hub.repositories.pop(REPO, None):
            shutil.rmtree(repository.folder)
        for path in self.hub.store.iterdir():
            path.unlink()
        for path in self.temporary.iterdir():
            discard(path)

    def entries(self) -> set[tuple[str, str]] | None:
        """Return what the Hub shows: None before anything was published."""
        repository = self.hub.repositories.get(REPO)
        if repository is None or len(repository.log()) < 2:
            return None
        return {(entry.path, entry.oid) for entry in repository.entries(repository.resolve("main"))}

    def kept(self, fault: Fault, ended: Ended) -> Iterator[str]:
        """Say which promises were broken."""
        if (tree(self.place), stamps(self.place)) != self._before:
            yield "has touched the folder"
        if self.entries() not in (None, self.published):
            yield "half of it is published"
        if ended.status == 0 and self.entries() is None:
            yield "status 0, and nothing is published"
        if ended.status not in (0, STATUSES.get(fault.kind, 1)):
            yield f"status {ended.status}: {ended.err.strip()}"
        if "Traceback" in ended.err:
            yield f"a traceback: {ended.err.strip().splitlines()[-1]}"
        # A killed process cannot empty the system's folder for temporary files.
        stays = fault.kind in ERRORS and ended.fired and ended.fired.call in REMOVES
        if (left := tree(self.temporary)) and fault.kind != "die" and not stays:
            yield f"leaves {', '.join(left)}"

    def again(self) -> Iterator[str]:
        """Push once more: then everything is there, by one commit."""
        ended = self.push()
        if ended.status or self.entries() != self.published:
            yield f"again: status {ended.status}: {ended.err.strip()}"
        elif (count := len(self.hub.repositories[REPO].log())) != 2:
            yield f"again: {count - 1} commits"


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("push")
    hub = HubServer(folder / "hub")
    hub.publish("org/tiny-base", {"README.md": b"---\nlicense: apache-2.0\n---\n# Base\n"})
    stage = Stage(hub, folder)
    yield stage
    stage.forks.close()
    hub.close()


def ends(stage: Stage, kind: str, numbers: list[int]) -> list[str]:
    broken = []
    for number in numbers:
        stage.clear()
        fault = Fault(kind, number)
        ended = stage.push(fault)
        step = ended.fired or stage.steps[number]
        sentences = [*stage.kept(fault, ended), *stage.again()]
        stated = f"{fault} at step {number}, {step.call} {Path(step.path).name}"
        broken += [f"{stated}: {sentence}" for sentence in sentences]
    return broken


@pytest.mark.parametrize("kind", KINDS)
def test_an_end_at_some_steps_of_a_push(kind, stage):
    check(ends(stage, kind, few(range(len(stage.steps)), 4)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_end_at_each_step_of_a_push(kind, stage):
    check(ends(stage, kind, list(range(len(stage.steps)))))


def test_staging_and_sending_are_steps(stage):
    assert {"mkdir", "create", "write", "unlink", "rmdir", "send"} <= {s.call for s in stage.steps}
