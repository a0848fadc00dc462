"""Files that are here for the length of a command: each is evicted after its last use."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from threading import Lock

from lora_tools.files.location import Location


class TransientFiles:
    """How often each fetched file will still be used; those that were here before stay."""

    def __init__(self, uses: Iterable[Location]) -> None:
        self._left = {
            file: count
            for file, count in Counter(uses).items()
            if not isinstance(file, Path) and not file.is_here()
        }
        self._lock = Lock()

    def done(self, file: Location) -> None:
        """Count one use; evict the file after the last. A use that failed is not to be counted."""
        if isinstance(file, Path):
            return
        with self._lock:
            if file not in self._left:
                return
            self._left[file] -= 1
            if self._left[file]:
                return
            del self._left[file]
        file.evict()
