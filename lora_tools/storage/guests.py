"""Files that are here for the length of a command: each is evicted after it was last read."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Protocol, runtime_checkable


@runtime_checkable
class Guest(Protocol):
    """A path whose file is fetched when it is opened. Local paths are none, and stay."""

    def is_here(self) -> bool:
        """Whether the file needs no fetching."""
        ...

    def evict(self) -> None:
        """Remove the file again."""
        ...


class Guests:
    """How often each file will still be read; those that were here before are no guests."""

    def __init__(self, readings: Iterable[Path]) -> None:
        counts = Counter(readings)
        self._left = {
            path: count
            for path, count in counts.items()
            if isinstance(path, Guest) and not path.is_here()
        }
        self._lock = Lock()

    def done(self, path: Path) -> None:
        """Count one reading, for readers that do it themselves."""
        with self._lock:
            if path not in self._left:
                return
            self._left[path] -= 1
            if self._left[path]:
                return
            del self._left[path]
        if isinstance(path, Guest):
            path.evict()


@contextmanager
def reading(path: Path, guests: Guests | None) -> Iterator[None]:
    """Read once from a file in this context."""
    yield
    if guests is not None:
        guests.done(path)
