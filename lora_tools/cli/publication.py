"""Publishing as a person sees it: the question, the conversation, what was done."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_tools.adapter import REPORT
from lora_tools.cli.console import ask, say, tell
from lora_tools.files.location import Location
from lora_tools.files.temporary import temporary_folder
from lora_tools.report import remarks, size, table
from lora_tools.text import json_text

if TYPE_CHECKING:
    from lora_tools.hub.publishing import Publisher
    from lora_tools.verbs.push import Destination, Pushed, PushPlan


class Publication:
    """A push that follows another command: asked for beforehand, done afterwards."""

    def __init__(self, repo: str, private: bool | None) -> None:
        self._repo, self._private = repo, private

    def check(self) -> None:
        """Refuse now what would be refused after all the work: no token, nobody said for whom."""
        from lora_tools.hub.publishing import Publisher

        publisher = Publisher()
        publisher.check()
        if publisher.is_private(self._repo) is None:
            self._private = visibility(self._repo, self._private)

    def run(self, folder: Path, inputs: Iterable[Location], *, quiet: bool) -> None:
        """Publish a folder, its inputs named in it; what there is to say goes to stderr."""
        from lora_tools.hub.publishing import Publisher
        from lora_tools.verbs.push import Destination, record

        record(folder / REPORT, inputs)
        plan, pushed = push(
            folder, Destination(self._repo, self._private), Publisher(), quiet=quiet
        )
        if not quiet and pushed:
            tell(outcome(plan, pushed))


def push(
    folder: Path,
    destination: "Destination",
    publisher: "Publisher",
    *,
    dry_run: bool = False,
    quiet: bool,
) -> tuple["PushPlan", "Pushed | None"]:
    """Publish a folder unless it is a dry run, and return what was planned and done."""
    from lora_tools.hub.reading import hide_progress
    from lora_tools.verbs.push import plan, publish

    if quiet or not sys.stderr.isatty():
        hide_progress()
    if not dry_run:
        publisher.check()
    with temporary_folder() as place:
        made = plan(folder, destination, publisher, place)
        if not quiet:
            for note in made.package.notes:
                say(f"note: {note}")
        return made, None if dry_run else publish(made, publisher)


def visibility(repo: str, private: bool | None) -> bool:
    """Return whether a new repository is to be private: as was said, or as the person answers."""
    if private is not None:
        return private
    if not sys.stdin.isatty():
        raise click.UsageError(f"{repo} is new: say --private or --public")
    return ask(f"{repo} is new. Who may see it?", ["private", "public"]) == "private"


def outcome(plan: "PushPlan", pushed: "Pushed | None") -> str:
    """Return what was done, or would be, for people."""
    package = plan.package
    lines = [(state, name, size(package.digests[name].size)) for name, state in plan.states.items()]
    text = [table(lines, ("outcome", "file", "size")), ""]
    text += remarks(package.left_out, ())
    where = f"{plan.destination.repo}" + (
        f"@{plan.destination.revision}" if plan.destination.revision else ""
    )
    if pushed is None:
        new = "" if plan.exists else ", which would be new"
        would = f"would send {len(plan.sends)} files, {size(plan.nbytes)}, to {where}{new}"
        return "\n".join([*text, f"{would}; nothing was sent (--dry-run)"])
    if not pushed.sent:
        return "\n".join([*text, f"{where} has all of it already: nothing was sent"])
    sent = f"sent {len(pushed.sent)} files, {size(plan.nbytes)}, and compared all on the Hub"
    url = pushed.commit.pull_request or pushed.commit.url
    return "\n".join([*text, sent, f"published: {url}"])


def to_json(plan: "PushPlan", pushed: "Pushed | None") -> str:
    """Return plan and outcome for machines."""
    return json_text(plan.to_dict(pushed))
