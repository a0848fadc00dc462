"""Commands whose exit status 1 is an answer, and which therefore say otherwise that they failed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

STATUS = 2
"""What diff(1), cmp(1) and grep(1) exit with when the answer is neither 0 nor 1."""


class UnansweredError(Exception):
    """An error of a command whose status 1 is taken; its cause is the error itself."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Question(click.Command):
    """A command that answers with its status: 0 yes, 1 no, and 2 for every kind of error."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Read the arguments, of which a place on the Hub is looked up."""
        with _unanswered():
            return super().parse_args(context, args)

    def invoke(self, context: click.Context) -> Any:
        """Run the command; errors, even those of our own making, come out as `UnansweredError`."""
        with _unanswered():
            return super().invoke(context)


@contextmanager
def _unanswered() -> Iterator[None]:
    try:
        yield
    except (click.ClickException, click.Abort, click.exceptions.Exit):
        raise
    # Status 1 is an answer here, so that even a bug has to leave with 2.
    except Exception as error:
        raise UnansweredError(error) from error
