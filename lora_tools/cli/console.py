"""What a person sees: results on stdout, progress and messages on stderr. All of it leaves here.

Results and messages hold names that are anybody's; none acts on the terminal (`lora_tools.text`).
"""

import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

import click

from lora_tools.cli.streams import Guarded
from lora_tools.errors import LoraToolsError
from lora_tools.executors import Executor
from lora_tools.executors.base import Job, Result
from lora_tools.text import PATH, ascii_json, json_text, message, result

if TYPE_CHECKING:
    from lora_tools.report.part import PartReport

COLOURS = {"error": "red", "hint": "cyan", "warning": "yellow"}


@dataclass(frozen=True, slots=True)
class Visible:
    """An executor with a bar on stderr for whatever takes it longer than a second."""

    executor: Executor

    def map(self, task: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield what the executor yields."""
        if not sys.stderr.isatty():
            return self.executor.map(task, jobs)
        from tqdm import tqdm  # only a terminal needs it

        known = tuple(jobs)
        results = self.executor.map(task, known)
        name = task.__name__
        return iter(tqdm(results, total=len(known), desc=name, unit="module", delay=1, leave=False))


def show(text: str) -> None:
    """Print a result on stdout; its lines are its own."""
    _write(sys.stdout, result(text))


def show_json(result: Any) -> None:
    """Print plain data, or JSON that was made of it, on stdout."""
    text = result if isinstance(result, str) else json_text(result)
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "")
    _write(sys.stdout, text if encoding == "utf8" else ascii_json(text))


def show_part(report: "PartReport", *, as_json: bool, quiet: bool) -> None:
    """Print what a part of a command did, as JSON or in words."""
    if as_json:
        show_json(report.to_json())
    elif not quiet:
        show(report.to_text())


def say(text: str, kind: str = "") -> None:
    """Tell a person something on stderr, on one line: ``kind`` is error, hint or warning."""
    start = f"{_coloured(f'{kind}:', COLOURS[kind])} " if kind else ""
    _write(sys.stderr, start + message(text, PATH))


def tell(text: str) -> None:
    """Print what is a result elsewhere on stderr, for a command whose own result is another."""
    _write(sys.stderr, result(text))


def complain(error: Exception, so: str = "") -> None:
    """Tell a person on stderr what is wrong, what that means, and what to do about it."""
    title, points = _words(error)
    start = _coloured("error:", COLOURS["error"])
    shown = [f"{start} {so}{_file_first(title)}", *(f"  {message(point)}" for point in points)]
    _write(sys.stderr, "\n".join(shown))
    for note in getattr(error, "__notes__", ()):
        say(note, "hint")


def trace(error: BaseException) -> None:
    """Print the traceback of an error on stderr."""
    text = "".join(traceback.format_exception(error)).rstrip("\n")
    _write(sys.stderr, result(text))


def usage(error: click.ClickException) -> None:
    """Tell a person on stderr what is wrong with the command line."""
    context = getattr(error, "ctx", None)
    if context:
        names = context.command.get_help_option_names(context)
        hint = f"Try '{context.command_path} {max(names, key=len)}' for help."
        _write(sys.stderr, f"{context.get_usage()}\n{hint}\n")
    _write(sys.stderr, f"Error: {message(error.format_message())}")


def ask(question: str, answers: Iterable[str]) -> str:
    """Return which of the answers a person gives on stderr's terminal."""
    return str(click.prompt(message(question), type=click.Choice(list(answers)), err=True))


def _file_first(title: str) -> str:
    """Return *file: what is wrong* as a line, with the file whole: a person may have to copy it."""
    file, colon, wrong = title.partition(": ")
    return f"{message(file, PATH)}{colon}{message(wrong)}" if colon else message(title)


def _words(error: Exception) -> tuple[str, tuple[str, ...]]:
    """Return what is wrong, and what it lists; an error of the system as ours read."""
    if isinstance(error, LoraToolsError):
        return error.title, error.points
    if isinstance(error, OSError) and error.strerror:  # the file first, and no number
        names = (name for name in (error.filename, error.filename2) if name is not None)
        files = " → ".join(os.fsdecode(name) for name in names)
        return f"{files}: {error.strerror}" if files else error.strerror, ()
    return str(error), ()


def _coloured(text: str, colour: str) -> str:
    plain = "NO_COLOR" in os.environ or not sys.stderr.isatty()
    return text if plain else click.style(text, fg=colour)


def _write(stream: TextIO | Guarded | None, text: str) -> None:
    """Write whole lines of visible text, so that a stream that takes no more says so now."""
    if stream is None:
        return
    write = stream.trusted if isinstance(stream, Guarded) else stream.write
    write(f"{text}\n")
    stream.flush()


def command_line() -> str:
    """Return the command line of this process, as a report has it."""
    return shlex.join(["lora-tools", *sys.argv[1:]])
