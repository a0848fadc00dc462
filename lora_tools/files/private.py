"""What nobody else may read stays so: a result is as private as the most private of its sources."""

from collections.abc import Iterable
from pathlib import Path
from stat import S_IMODE

from lora_tools.files.location import Location

GROUP, OTHERS = 0o070, 0o007


def restrict(place: Path, sources: Iterable[Location]) -> None:
    """Take from group and others what one of the sources does not give them.

    ``place`` is a file or a folder of files. Their modes are those of the umask before.
    """
    mask = allowed(sources)
    if mask == 0o777:
        return
    for file in [place] if place.is_file() else place.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(S_IMODE(file.stat().st_mode) & mask)


def allowed(sources: Iterable[Location]) -> int:
    """Return the mode that every source allows: what may be read there may be done here."""
    mask = 0o777
    for source in sources:
        if not isinstance(source, Path):
            continue  # it has no mode
        try:
            mode = source.stat().st_mode
        except FileNotFoundError:
            continue
        mask &= ~(0 if mode & 0o040 else GROUP) & ~(0 if mode & 0o004 else OTHERS)
    return mask
