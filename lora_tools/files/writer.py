"""Writing that is all or nothing: into a temporary place beside the target, then renamed."""

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lora_tools.errors import CheckpointError, OutputError, some
from lora_tools.files.header import spec_of
from lora_tools.files.layout import Layout

if TYPE_CHECKING:
    from lora_tools.update import Array


class TensorWriter:
    """A file being filled: ``writer[name] = tensor``, in any order, from any thread.

    The layout fixes every offset beforehand, so memory holds only the tensors in flight. Leaving
    the context with a slot unfilled is an error.
    """

    def __init__(self, path: Path, plan: Layout) -> None:
        self._path = path
        self._plan = plan
        self._missing = set(plan.slots)

    def __enter__(self) -> "TensorWriter":
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        self._descriptor = os.open(self._path, flags, 0o666)
        try:
            os.truncate(self._descriptor, self._plan.size)
            self._write(memoryview(self._plan.header), 0)
        except BaseException:
            os.close(self._descriptor)
            raise
        return self

    def __setitem__(self, name: str, tensor: "Array") -> None:
        slot, spec = self._plan.slots[name], spec_of(tensor)
        if spec != slot.spec:
            raise CheckpointError(f"{self._path}: {name} is {spec} where {slot.spec} was laid out")
        self._write(_bytes(tensor), slot.start)
        self._missing.discard(name)

    def put(self, name: str, data: memoryview) -> None:
        """Write a tensor's elements as the bytes that they are in the file."""
        slot = self._plan.slots[name]
        if data.nbytes != slot.stop - slot.start:
            raise CheckpointError(
                f"{self._path}: {name} has {data.nbytes} bytes where {slot.spec} was laid out"
            )
        self._write(data, slot.start)
        self._missing.discard(name)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        os.close(self._descriptor)
        if kind is None and self._missing:
            raise CheckpointError(f"{self._path}: never written: {some(sorted(self._missing))}")

    def _write(self, data: memoryview, position: int) -> None:
        while data:
            count = os.pwrite(self._descriptor, data, position)
            data, position = data[count:], position + count


def _bytes(tensor: "Array") -> memoryview:
    """Return the elements of an array of numpy or torch, in order."""
    import numpy as np  # a header can be laid out without it

    if not isinstance(tensor, np.ndarray):
        import torch

        tensor = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)


def check_output(out: Path, inputs: Mapping[str, Path], *, force: bool) -> None:
    """Raise `OutputError` if ``out`` exists (without ``force``), or is or lies inside an input.

    ``inputs`` maps what to call an input in the message to its path.
    """
    target = out.resolve()
    for name, path in inputs.items():
        source = path.resolve()
        if target == source:
            raise OutputError(f"{out}: is the {name} itself").hint("Choose another output path.")
        if source in target.parents:
            raise OutputError(f"{out}: lies inside the {name}, {path}").hint(
                "Choose an output path beside it."
            )
        if force and target in source.parents:
            raise OutputError(f"{out}: holds the {name}, {path}, and would be replaced").hint(
                "Choose another output path."
            )
    check_free(out, force=force)


@contextmanager
def staged(out: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside ``out`` that becomes ``out`` when the block succeeds.

    On any failure it is removed; a kill leaves at most a hidden folder under another name. With
    ``force`` an existing ``out`` is replaced, and only once its successor is complete.
    """
    check_free(out, force=force)
    out.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex[:8]
    folder = out.parent / f".{out.name}.partial-{token}"
    folder.mkdir()
    try:
        yield folder
        replace_output(out, folder, force=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def staged_file(file: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a path beside ``file``, of the same ending, that becomes it when the block succeeds.

    Raises `OutputError` if ``file`` exists (without ``force``) or there is no folder for it.
    """
    check_file(file, force=force)
    place = file.with_name(f".{file.stem}.partial-{uuid.uuid4().hex[:8]}{file.suffix}")
    try:
        yield place
        place.replace(file)
    finally:
        place.unlink(missing_ok=True)


def check_file(file: Path, *, force: bool) -> None:
    """Raise `OutputError` if a file cannot be written, before work is done for it."""
    if not file.parent.is_dir():
        raise OutputError(f"{file}: there is no folder {file.parent}")
    if file.is_dir():
        raise OutputError(f"{file}: is a folder").hint("Choose another output path.")
    check_free(file, force=force)


def replace_output(out: Path, new: Path, *, force: bool) -> None:
    """Rename a complete folder to ``out``; with ``force``, in place of what is there."""
    check_free(out, force=force)
    if os.path.lexists(out):
        _replace(out, new, out.parent / f".{out.name}.old-{uuid.uuid4().hex[:8]}")
    else:
        new.rename(out)


def check_free(out: Path, *, force: bool) -> None:
    """Raise `OutputError` if ``out`` exists, unless with ``force``."""
    if os.path.lexists(out) and not force:  # a dangling link is in the way, too
        raise OutputError(f"{out}: exists already").hint("Pass --force to replace it.")


def _replace(out: Path, new: Path, aside: Path) -> None:
    out.rename(aside)
    try:
        new.rename(out)
    except BaseException:
        aside.rename(out)
        raise
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside)
    else:
        aside.unlink()
