"""Files that are here for the length of a command: each is evicted after its last use."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from typing import Protocol, runtime_checkable


@runtime_checkable
class Transient(Protocol):
    """A path whose file is fetched when it is opened. Local paths are none, and stay."""

    def is_here(self) -> bool:
        """Whether the file needs no fetching."""
        ...

    def evict(self) -> None:
        """Remove the file again."""
        ...


class TransientFiles:
    """How often each file will still be used; those that were here before stay."""

    def __init__(self, uses: Iterable[Path]) -> None:
        counts = Counter(uses)
        self._left = {
            path: count
            for path, count in counts.items()
            if isinstance(path, Transient) and not path.is_here()
        }
        self._lock = Lock()

    def done(self, path: Path) -> None:
        """Count one use; evict the file after the last. A use that failed is not to be counted."""
        with self._lock:
            if path not in self._left:
                return
            self._left[path] -= 1
            if self._left[path]:
                return
            del self._left[path]
        if isinstance(path, Transient):
            path.evict()
