"""A folder among the system's temporary files."""

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield an empty folder that is open to its owner only, and remove it afterwards.

    Unlike Python's own `tempfile.TemporaryDirectory` it is removed even if a signal comes while it
    is made or removed. Raises `OSError` if the system does not let it.
    """
    place = Path(tempfile.gettempdir(), f"lora-tools-{secrets.token_hex(16)}")
    try:
        place.mkdir(mode=0o700)  # its name is known before: a signal may come right after
        yield place
    finally:
        try:
            _remove(place)
        except BaseException:  # a signal, which comes but once
            _remove(place)
            raise


def _remove(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)
