"""Cases: a mutated input, a command that is given it, and whether what it does is allowed."""

import contextlib
import errno
import io
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import FrameType
from typing import NamedTuple

from fuzz.mutations import mutate
from fuzz.seeds import seeds

from lora_tools.cli import cli
from lora_tools.cli.question import UnansweredError
from lora_tools.errors import LoraToolsError

SECONDS = 2.0
"""Of processor time, that one case may take."""

SYSTEM = {
    errno.ENOENT,
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
}
"""What the system may say of a path; any other of its errors is a mistake of ours."""

PEERS = ("peft", "kohya", "mlx", "gguf", "dora")
TO = ("peft", "kohya", "diffusers", "mlx", "gguf", "comfyui", "torchtune")
COMMANDS = (
    "inspect {x}",
    "inspect {x} --json --full",
    "inspect {x} --for all",
    "inspect {x} --for all --json",
    "inspect {x} --spectrum --jobs 1",
    "inspect {x} --base {base} --jobs 1",
    "inspect {peer} --base {x} --jobs 1",
    "shrink {x} {out} --rank 2 --dry-run --jobs 1",
    "shrink {x} {out} --energy 0.9 --jobs 1 --quiet",
    "shrink {x} {out} --dry-run --jobs 1",
    "convert {x} {out} --to {to} --dry-run",
    "convert {x} {out} --to {to} --quiet",
    "convert {x} {out} --to {to} --base {base} --quiet",
    "diff {x} {peer} --jobs 1",
    "diff {peer} {x} --jobs 1 --json",
    "merge {base} {x} {out} --dry-run --jobs 1",
    "merge {base} {x} {out} --allow-missing --jobs 1 --quiet",
    "verify {base} {base} {x} --jobs 1",
    "combine {x} {peer} {out} --weight 0.5 --weight -1 --jobs 1 --quiet",
    "combine {peer} {x} {out} --rank 2 --jobs 1 --quiet",
)
BASES = (
    "inspect {x}",
    "merge {x} {peer} {out} --dry-run --jobs 1",
    "merge {x} {peer} {out} --dtype float32 --jobs 1 --quiet",
    "verify {base} {x} {peer} --jobs 1",
    "verify {x} {base} {peer} --jobs 1",
    "extract {x} {base} {out} --rank 2 --jobs 1 --quiet",
    "extract {base} {x} {out} --rank 2 --jobs 1 --quiet",
    "inspect {peer} --base {x} --jobs 1",
    "diff {peer} {peer} --base {x} --jobs 1",
)


class Case(NamedTuple):
    """What is run: the files of the input, and the words of the command."""

    files: dict[str, bytes]
    command: str
    main: str | None
    """The file that the command is given; None: its folder."""
    peer: str
    to: str


class Failure(NamedTuple):
    """What must not happen, and where."""

    kind: str
    where: str
    """The innermost frame of ours, which groups failures."""
    detail: str


class HangError(BaseException):
    """A case has used up its time. No handler of errors may swallow it."""


def make(seed: int, number: int) -> Case:
    """Return a case by its number, the same in every run."""
    random = Random(f"{seed}:{number}")
    kind = random.choice(sorted(seeds()))
    sound = seeds()[kind]
    files = mutate(sound.files, random)
    is_base = kind.startswith(("base", "sharded"))
    main = sound.main if random.random() < 0.3 and sound.main in files else None
    command = random.choice(BASES if is_base else COMMANDS)
    return Case(files, command, main, random.choice(PEERS), random.choice(TO))


def run(case: Case, place: Path, seconds: float = SECONDS) -> Failure | None:
    """Run a case in an empty folder and return what must not happen, if it does."""
    here = Path.cwd()
    where = {name: place / name for name in ("in", "peer", "base", "out", "here")}
    for name, files in (
        ("in", case.files),
        ("peer", seeds()[case.peer].files),
        ("base", seeds()["base"].files),
    ):
        fill(where[name], files)
    where["here"].mkdir()
    x = where["in"] / case.main if case.main else where["in"]
    words = case.command.format(
        x=x, peer=where["peer"], base=where["base"], out=where["out"], to=case.to
    ).split(" ")
    watch.place, watch.outside = place, []
    before = dict(snapshot(place))
    os.chdir(where["here"])
    try:
        with limited(seconds):
            failure = outcome(words)
    finally:
        os.chdir(here)
        place, watch.place = watch.place, None
    return failure or astray(place, before, case)


def outcome(words: list[str]) -> Failure | None:
    """Run a command in this process and return the error that is not one of those it may raise."""
    screen = io.StringIO()
    try:
        with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
            cli.main(words, standalone_mode=False)
    except LoraToolsError:
        return None
    except UnansweredError as error:
        return None if allowed(error.cause) else failed(error.cause)
    except HangError as error:
        return failed(error)
    except BaseException as error:  # noqa: BLE001 - this is what is looked for
        return None if allowed(error) else failed(error)
    return None


def allowed(error: BaseException | None) -> bool:
    """Whether a command may end with an error; a wrong command line is a mistake made here."""
    if isinstance(error, LoraToolsError):
        return True
    return isinstance(error, OSError) and error.errno in SYSTEM


def failed(error: BaseException | None) -> Failure:
    """Return the failure that an error is."""
    frames = traceback.extract_tb(error.__traceback__) if error else []
    ours = [frame for frame in frames if "/lora_tools/" in frame.filename]
    inner = ours[-1] if ours else None
    file = inner.filename.rpartition("/lora_tools/")[2] if inner else "?"
    where = f"{file}:{inner.lineno} {inner.name}" if inner else "?"
    detail = "".join(traceback.format_exception(error)) if error else ""
    return Failure(type(error).__name__, where, detail)


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Interrupt what takes more than its share of processor time."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise HangError(f"more than {seconds} s of processor time")

    before = signal.signal(signal.SIGPROF, interrupt)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def astray(place: Path, before: dict[str, bytes], case: Case) -> Failure | None:
    """Return what was written elsewhere than to OUT, or done to an input."""
    after = dict(snapshot(place))
    changed = [name for name in before if after.get(name) != before[name]]
    # What a merge or an extraction that stopped has finished is kept beside OUT, as is documented.
    ours = ("out", "out.partial", ".out.partial")
    made = [n for n in after if n not in before and n.split("/")[0] not in ours]
    if changed or made or watch.outside:
        return Failure("written elsewhere", case.command, f"{changed} {made} {watch.outside}")
    return None


def fill(folder: Path, files: dict[str, bytes]) -> None:
    """Make a folder of these files."""
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def snapshot(place: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every file below a folder with its bytes."""
    for folder, _, names in os.walk(place):
        for name in names:
            file = Path(folder) / name
            if "out" not in file.relative_to(place).parts[:1]:
                yield str(file.relative_to(place)), file.read_bytes()


class Watch:
    """Listens to what this process opens for writing while a case runs."""

    def __init__(self) -> None:
        self.place: Path | None = None
        self.outside: list[str] = []
        self.listening = False

    def listen(self) -> None:
        """Begin; a process does not stop listening."""
        if not self.listening:
            self.listening = True
            sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if self.place is None or event not in ("open", "os.mkdir", "os.rename", "os.remove"):
            return
        path = arguments[0]
        writes = event != "open" or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not writes or not isinstance(path, str | bytes | os.PathLike):
            return
        full = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - a Path would be heard of, too
        if not f"{full}/".startswith((f"{self.place}/", "/dev/")):
            self.outside.append(f"{event} {full}")


watch = Watch()


def clean(place: Path) -> None:
    """Empty a folder."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
