"""lora-tools push: publish an adapter or a model on the Hub."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_tools.adapter import README
from lora_tools.cli.console import say, show, show_json
from lora_tools.cli.options import dry_run_option, json_option, pattern_options, quiet_option
from lora_tools.cli.publication import outcome, push, to_json, visibility
from lora_tools.cli.publish import Repo, visibility_option
from lora_tools.files.disk import write_text
from lora_tools.files.temporary import temporary_folder
from lora_tools.files.writer import staged_file

if TYPE_CHECKING:
    from lora_tools.hub.publishing import Publisher
    from lora_tools.verbs.push import Destination


@click.command(short_help="Publish an adapter or a model on the Hub.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repo", type=Repo())
@visibility_option
@click.option(
    "--revision", metavar="BRANCH", help="Push to this branch, made if it is missing, or refs/pr/N."
)
@click.option("--create-pr", is_flag=True, help="Propose it as a pull request.")
@click.option("--commit-message", "message", metavar="TEXT", help="First line of the commit.")
@click.option("--commit-description", "description", metavar="TEXT", default="", help="The rest.")
@click.option(
    "--token",
    metavar="TOKEN",
    help="A token with write access.  [default: HF_TOKEN, or that of `hf auth login`]",
)
@click.option(
    "--base-model",
    metavar="ORG/NAME",
    help="The base model on the Hub, for the card and in place of a path in the configuration.",
)
@click.option(
    "--license",
    metavar="ID",
    help="License for the card.  [default: that of --base-model, if known]",
)
@click.option(
    "--strip-metadata",
    is_flag=True,
    help="Publish a copy of tensor files without metadata that holds secrets or private paths.",
)
@pattern_options(
    "Publish matching files too, besides those of adapters and models.",
    "Leave matching files out.",
)
@click.option(
    "--picture/--no-picture",
    default=True,
    help="Draw the spectra for the card, where lora-tools[report] is installed.  [default: draw]",
)
@click.option(
    "--card-only", is_flag=True, help="Write the card to FOLDER/README.md and send nothing."
)
@dry_run_option("Show what is new, changed or unchanged, and the card.")
@json_option
@quiet_option
def command(
    folder: Path,
    repo: str,
    private: bool | None,
    revision: str | None,
    create_pr: bool,
    message: str | None,
    description: str,
    token: str | None,
    base_model: str | None,
    license: str | None,
    strip_metadata: bool,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    picture: bool,
    card_only: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Publish the adapter or merged model in FOLDER as ORG/NAME on the Hugging Face Hub.

    The files are checked as inspect would, searched for secrets and private paths, and sent in
    one commit, with a card that says what they are; your own README stays, our section in it is
    replaced. Afterwards the Hub's checksums are compared with those here. Run it again to resume.
    """
    from lora_tools.hub.publishing import Publisher
    from lora_tools.verbs.push import Destination

    if create_pr and revision not in (None, "main"):
        raise click.UsageError("--create-pr proposes changes to main: leave --revision out")
    destination = Destination(
        repo,
        private,
        None if revision == "main" else revision,
        create_pr,
        message,
        description,
        base_model,
        license,
        strip_metadata,
        include,
        exclude,
        picture and not card_only,  # which would be the only file beside it
    )
    publisher = Publisher(token)
    if card_only:
        _write_card(folder, destination, publisher, quiet=quiet)
        return
    if not dry_run:
        publisher.check()
        if not create_pr and publisher.is_private(repo) is None:
            destination = destination.seen_by(private=visibility(repo, private))
    plan, pushed = push(folder, destination, publisher, dry_run=dry_run, quiet=quiet)
    if as_json:
        show_json(to_json(plan, pushed))
    elif not quiet:
        show(outcome(plan, pushed))
        if dry_run:
            card = plan.package.card.replace("\r\n", "\n")
            show(f"\n{README}:\n\n{card}")


def _write_card(
    folder: Path, destination: "Destination", publisher: "Publisher", *, quiet: bool
) -> None:
    from lora_tools.verbs.push import card_only

    with temporary_folder() as place:
        text = card_only(folder, destination, publisher, place)
    card = folder / README
    with staged_file(card, force="any", sources=[card]) as part:
        write_text(part, text)
    if not quiet:
        say(f"written to {folder / README}; nothing was sent (--card-only)")
