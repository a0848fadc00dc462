"""Push: publish an adapter or a model on the Hub, checked before and compared after."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lora_tools.adapter import README
from lora_tools.card import decoded, metadata
from lora_tools.errors import HubError, RefusedError, some
from lora_tools.files.inputs import read_input
from lora_tools.hub.address import page
from lora_tools.hub.publishing import Commit, Publisher, Upload
from lora_tools.hub.reading import Blob
from lora_tools.verbs.push.files import Digest
from lora_tools.verbs.push.inputs import record
from lora_tools.verbs.push.package import Destination, Package, PackageFiles, draft

__all__ = [
    "SCHEMA",
    "Destination",
    "Package",
    "PushPlan",
    "Pushed",
    "card_only",
    "plan",
    "publish",
    "record",
]

SCHEMA = "lora-tools/push/2"

State: TypeAlias = Literal["new", "changed", "unchanged"]


@dataclass(frozen=True, slots=True)
class PushPlan:
    """What a push would do; nothing has been written anywhere."""

    destination: Destination
    package: Package
    states: dict[str, State]
    exists: bool
    branch: bool
    """Whether the revision is a branch that has to be made."""

    @property
    def sends(self) -> tuple[str, ...]:
        """Names of the files to upload."""
        return tuple(name for name, state in self.states.items() if state != "unchanged")

    @property
    def nbytes(self) -> int:
        """Bytes of the files to upload."""
        return sum(self.package.digests[name].size for name in self.sends)

    def to_dict(self, pushed: "Pushed | None" = None) -> dict[str, Any]:
        """Return plan and outcome as `report.schemas` describes it."""
        package = self.package
        return {
            "schema": SCHEMA,
            "source": str(package.folder),
            "repo": self.destination.repo,
            "revision": self.destination.revision,
            "new_repo": not self.exists,
            "base_model": package.base,
            "files": [
                {
                    "file": name,
                    "outcome": state,
                    "bytes": package.digests[name].size,
                    "sha256": package.digests[name].sha256,
                }
                for name, state in self.states.items()
            ],
            "left_out": dict(package.left_out),
            "notes": list(package.notes),
            "card": package.card,
            "commit": pushed.commit.oid if pushed else None,
            "url": pushed.commit.url if pushed else None,
            "pull_request": pushed.commit.pull_request if pushed else None,
            "verified": pushed is not None,
        }


@dataclass(frozen=True, slots=True)
class Pushed:
    """A push that is done: every file on the Hub was compared with the one here."""

    commit: Commit
    sent: tuple[str, ...]


def plan(folder: Path, destination: Destination, publisher: Publisher, place: Path) -> PushPlan:
    """Find out what a push would do. Reads the folder once and asks the Hub; writes to neither.

    ``place`` is an empty folder for cleaned copies. Raises `RefusedError` for what must not be
    published, and `HubError`.
    """
    made = draft(folder, destination, place)
    private = publisher.is_private(destination.repo)
    if private is False and destination.private:
        raise RefusedError(
            f"{destination.repo}: is public on the Hub, and --private was asked for"
        ).hint("Change it there, under Settings, or push under another name.")
    if private is None and destination.create_pr:
        raise HubError(f"{destination.repo}: no such repository to propose changes to").hint(
            "Leave --create-pr out to make it."
        )
    there = publisher.files(destination.repo, destination.revision) if private is not None else None
    branch = destination.revision is not None and there is None
    if branch and destination.revision and destination.revision.startswith("refs/"):
        raise HubError(f"{destination.repo}: has no {destination.revision}").hint(
            "A pull request is opened with --create-pr."
        )
    if there is None:
        there = (publisher.files(destination.repo) if private is not None else None) or {}
    old = _old_card(folder, destination, publisher, there, branch=branch)
    if not made.base:
        made.notes.append("the card names no base model (--base-model)")
    package = made.package(destination.repo, old, _license(made, destination, publisher, old))
    states = {name: _state(there.get(name), package.digests[name]) for name in package.files}
    return PushPlan(destination, package, states, private is not None, branch)


def publish(plan: PushPlan, publisher: Publisher) -> Pushed:
    """Do what was planned, and compare what is there with what was meant.

    Everything goes into one commit: until that, nothing of it is to be seen. Running it again
    after a failure sends only what has not arrived. Raises `HubError`.
    """
    destination, package = plan.destination, plan.package
    repo = destination.repo
    if not plan.exists:
        repo = publisher.create(repo, private=bool(destination.private))
    if plan.branch and destination.revision:
        publisher.branch(repo, destination.revision)
    if plan.sends:
        commission = Upload(
            repo,
            {name: package.files[name] for name in plan.sends},
            {name: package.digests[name].sha256 for name in plan.sends},
            destination.message or f"Publish {package.folder.resolve().name} with lora-tools",
            destination.description,
            destination.revision,
            destination.create_pr,
        )
        commit = publisher.commit(
            commission, lambda: _arrived(package, publisher, repo, destination.revision)
        )
    else:
        oid = publisher.head(repo, destination.revision)
        commit = Commit(oid, page(repo, destination.revision))
    if wrong := _wrong(package, publisher, repo, commit.oid):
        raise HubError(f"{repo}: what has arrived is not what was sent: {some(wrong)}").hint(
            "Run the command again."
        )
    return Pushed(commit, plan.sends)


def card_only(folder: Path, destination: Destination, publisher: Publisher, place: Path) -> str:
    """Return the card of a folder. Asks the Hub for nothing but the license of ``--base-model``."""
    made = draft(folder, destination, place)
    file = folder / README
    old = decoded(read_input(file), file) if file.is_file() else _title(destination)
    return made.package(destination.repo, old, _license(made, destination, publisher, old)).card


def _license(
    made: PackageFiles, destination: Destination, publisher: Publisher, old: str
) -> dict[str, str]:
    """Return the license for the card: the one asked for, else that of the base asked for."""
    if destination.license:
        return {"license": destination.license}
    if "license" in metadata(old):
        return {}
    # A base that a file names is text: the Hub is asked for one that a person has named.
    found = (publisher.license(destination.base_model) if destination.base_model else None) or {}
    if not found:
        made.notes.append(
            "the card names no license: --license ID, or --base-model ORG/NAME for that of the base"
        )
    return found


def _title(destination: Destination) -> str:
    return f"# {destination.repo.partition('/')[2]}\n"


def _old_card(
    folder: Path,
    destination: Destination,
    publisher: Publisher,
    there: dict[str, Blob],
    *,
    branch: bool,
) -> str:
    """Return the README to build on: the folder's, or else what somebody has written on the Hub."""
    if (file := folder / README).is_file():
        return decoded(read_input(file), file)
    if README in there:
        revision = None if branch else destination.revision
        where = f"hf://{destination.repo}/{README}"
        return decoded(publisher.read(destination.repo, README, revision), where)
    return _title(destination)


def _state(blob: Blob | None, found: Digest) -> State:
    if blob is None:
        return "new"
    return "unchanged" if _same(blob, found) else "changed"


def _same(blob: Blob, found: Digest) -> bool:
    return blob.sha256 == found.sha256 if blob.sha256 else blob.oid == found.oid


def _wrong(package: Package, publisher: Publisher, repo: str, revision: str | None) -> list[str]:
    """Return the files that are not on the Hub as they are here."""
    there = publisher.files(repo, revision) or {}
    return [
        name
        for name, found in package.digests.items()
        if name not in there or not _same(there[name], found)
    ]


def _arrived(package: Package, publisher: Publisher, repo: str, revision: str | None) -> str | None:
    """Return the commit that a revision is at, if it has every file."""
    oid = publisher.head(repo, revision)
    return None if _wrong(package, publisher, repo, oid) else oid
