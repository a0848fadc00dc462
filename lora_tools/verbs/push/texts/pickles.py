"""The strings of PyTorch's pickles and of zips of arrays. Nothing is unpickled."""

import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from lora_tools.errors import RefusedError
from lora_tools.verbs.push.texts.runs import runs_of
from lora_tools.verbs.push.texts.text import LIMIT, Text, pieces

PICKLES = 5
"""A file of PyTorch before 1.6 begins with so many pickles; its tensors' bytes follow."""


def zipped(file: BinaryIO, name: str) -> Iterator[Text]:
    """Yield names of members, the strings of pickles, and what other members hold but tensors.

    Raises `RefusedError` for a damaged file, and one that unpacks to more than can be searched.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            yield from runs_of(archive.comment, "its comment")
            left = LIMIT
            for member in archive.infolist():
                yield from pieces([member.filename], f"the name of member {member.filename}")
                path = PurePosixPath(member.filename)
                if path.suffix == ".npy" or path.parent.name == "data":
                    continue
                left -= member.file_size
                if left < 0:
                    raise _too_much(name, member.filename)
                with archive.open(member) as inner:
                    if path.suffix == ".pkl":
                        yield from pickled(cast(BinaryIO, inner), name)
                    else:
                        yield from runs_of(inner.read(member.file_size), f"member {path}")
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise RefusedError(f"{name}: damaged ({error}), and cannot be searched").hint(
            "Download or copy it again, or leave it out with --exclude."
        ) from error


def pickled(file: BinaryIO, name: str) -> Iterator[Text]:
    """Yield the strings of a file's pickles; one longer than the limit is `RefusedError`."""
    bounded = _Bounded(file, name)
    for _ in range(PICKLES):
        try:
            for _, value, _ in pickletools.genops(cast(BinaryIO, bounded)):
                if isinstance(value, str):
                    yield from pieces([value], "its pickle")
        except (ValueError, KeyError, IndexError):  # tensors' bytes, or the end
            return


class _Bounded:
    """A file that refuses to be read in great lumps."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name

    def read(self, count: int) -> bytes:
        if count > LIMIT:
            raise _too_much(self._name, "a string")
        return self._file.read(count)

    def readline(self) -> bytes:
        return self._file.readline(LIMIT)


def _too_much(name: str, what: str) -> RefusedError:
    return RefusedError(
        f"{name}: {what} in its pickle has more than {LIMIT >> 20} MiB, too much to be searched"
    ).hint("Save it as safetensors, or leave it out with --exclude.")
