"""What a watched process is told: a command line, where it runs, and the fault that befalls it."""

from dataclasses import dataclass

ERRORS = ("ENOSPC", "EIO")
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


@dataclass(frozen=True, slots=True)
class Step:
    """A call that changes what is on a disk, or sends something."""

    call: str
    path: str


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that happens at the step of a number, counted from 0.

    `kind` is ``die`` (after half of a write), an error of `ERRORS`, a signal of `SIGNALS`,
    ``cut`` (see `disk.CUTS`), ``stop`` (SIGSTOP) or ``make`` (somebody else makes OUT).
    """

    kind: str
    step: int
    how: str = ""
    """The way of a cut; what is made; ``after`` for a signal that comes when the step is done."""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.kind, self.how)))


@dataclass(frozen=True, slots=True)
class Order:
    """One run of the command line."""

    arguments: tuple[str, ...]
    place: str
    """The working folder."""
    roots: tuple[str, ...]
    """Folders in which every change is a step."""
    desk: str
    """A folder for what the process prints and for the record of its steps."""
    fault: Fault | None = None
    out: str = ""
    """What a ``make`` makes."""
    network: bool = False
    """Whether what is sent is a step, too."""
    old_kernel: bool = False
    """Whether there is no renameat2(2), as with some file systems."""
    kill_after: float | None = None
    """Seconds until SIGKILL."""
