"""The command line: a lazy group of commands and the one place where errors become messages."""

import sys
from importlib import import_module
from typing import NoReturn

import click

from lora_tools.cli.console import complain, say, trace, usage
from lora_tools.cli.process import Terminated, leave, prepare
from lora_tools.cli.question import STATUS, UnansweredError
from lora_tools.errors import BoundError, LoraToolsError, PolicyError, suggestion
from lora_tools.version import __version__

COMMANDS = (
    "combine",
    "convert",
    "diff",
    "extract",
    "formats",
    "inspect",
    "merge",
    "push",
    "shrink",
    "verify",
)


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is named."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(COMMANDS)

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is named, or fail with one that may be meant."""
        try:
            return super().resolve_command(context, args)
        except click.UsageError as error:
            meant = f"{error.message} {suggestion(args[0], COMMANDS)}".rstrip()
            raise click.UsageError(meant, context) from None

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Import and return a command."""
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"lora_tools.cli.commands.{name}").command
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """See, shrink, extract, merge, combine, convert and publish LoRA adapters, file to file.

    A source may be a path or an address on the Hugging Face Hub: hf://org/name[@revision][/file],
    or org/name[@revision] where there is no such path.

    Results go to stdout, everything else to stderr. Exit status: 0 done, 1 an error, 2 a wrong
    command line, 3 a bound on rank, size or error that cannot be kept, 4 a runtime that would not
    load an adapter as it is meant. Of diff: 0 same, 1 different, 2 an error.
    """
    context.obj = debug


def main() -> NoReturn:
    """Run the command line and leave the process."""
    prepare()
    leave(_run())


def _run() -> int:
    """Run the command line and return the exit status; the boundary of every error."""
    try:
        result = cli.main(standalone_mode=False)
    except UnansweredError as trouble:
        if not isinstance(trouble.cause, LoraToolsError | OSError):
            trace(trouble.cause)
            return STATUS
        return _complain(trouble.cause, STATUS)
    except BoundError as error:
        return _complain(error, 3)
    except PolicyError as error:
        return _complain(error, 2)
    except (LoraToolsError, OSError) as error:
        return _complain(error, 1)
    except click.ClickException as error:
        usage(error)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        say("Interrupted.")
        return 130
    except Terminated as end:
        say(f"{end}.")
        return end.status
    return result if isinstance(result, int) else 0


def _complain(error: Exception, status: int) -> int:
    show = trace if "--debug" in sys.argv else complain
    show(error)
    return status
