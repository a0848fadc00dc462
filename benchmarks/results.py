"""What all benchmarks begin and end with: options, where the figures are from, and the file."""

import argparse
import datetime
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import provenance
from processes import Command

RESULTS = Path(__file__).parent / "results"


def parser(description: str | None, runs: int, counted: str) -> argparse.ArgumentParser:
    """Return a command line with the options that all have: how many runs, and where to write."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--runs", type=int, default=runs, help=counted)
    result.add_argument("--out", type=Path, default=RESULTS, help="where the report goes")
    return result


def heading(title: str) -> Iterator[str]:
    """Yield the head of a report: when, of which commit and where it was measured."""
    yield f"# {title}"
    yield ""
    yield f"- date: {datetime.datetime.now().astimezone().isoformat(timespec='minutes')}"
    yield f"- commit: {provenance.commit()}"
    yield f"- hardware: {provenance.hardware()}"
    yield f"- threads: {provenance.threads()}"


def installed(name: str, versions: Mapping[str, str]) -> str:
    """Return the line of the head that says what was measured in which versions."""
    return f"- {name}: {', '.join(f'{package} {version}' for package, version in versions.items())}"


def listed(commands: Mapping[str, Command], folder: Path) -> Iterator[str]:
    """Yield the lines of the head that say what was run, without the paths of this machine."""
    for name, command in commands.items():
        shown = str(command).replace(str(folder), "$TMP").replace(f"{provenance.ROOT}/", "")
        yield f"- {name}: `{shown}`"


def publish(lines: Iterable[str], what: str, out: Path) -> None:
    """Print a report line by line as it is made, then write it to a file of ``out``."""
    kept = []
    for line in lines:
        # Shown at once, so that a failure further down does not lose the minutes spent so far.
        print(line, flush=True)
        kept.append(line)
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"{what}_cpu{provenance.cores()}_{datetime.date.today()}.md"
    target.write_text("\n".join(kept) + "\n")
    print(target, file=sys.stderr)
