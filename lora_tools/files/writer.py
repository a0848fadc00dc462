"""Writing that is all or nothing: beside the target, to the disk, and only then renamed to it."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lora_tools.errors import CheckpointError, OutputError, some
from lora_tools.files.disk import naming, sync, sync_all
from lora_tools.files.header import spec_of
from lora_tools.files.inputs import resolved
from lora_tools.files.layout import Layout
from lora_tools.files.location import Location
from lora_tools.files.ours import Force, foreign
from lora_tools.files.private import restrict
from lora_tools.files.renames import exchange, rename_exclusive
from lora_tools.files.work import Work, located, working

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
            with naming(self._path):
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
        with naming(self._path):
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


def check_output(out: Path, inputs: Mapping[str, Location], *, force: Force) -> None:
    """Raise `OutputError` if ``out`` may not be written, or is or lies inside an input.

    ``inputs`` maps what to call an input in the message to its path.
    """
    located(out)
    target = _resolved(out)
    for name, path in inputs.items():
        if not isinstance(path, Path):
            continue  # no output is written there
        source = resolved(path)
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


def check_file(file: Path, *, force: Force) -> None:
    """Raise `OutputError` if a file cannot be written, before work is done for it."""
    if not file.parent.is_dir():
        raise OutputError(f"{file}: there is no folder {file.parent}")
    if file.is_dir():
        raise OutputError(f"{file}: is a folder").hint("Choose another output path.")
    check_free(file, force=force)


def check_free(out: Path, *, force: Force, at: Path | None = None) -> None:
    """Raise `OutputError` if ``out`` exists, unless ``force`` allows to replace what it is.

    ``at`` is where that lies, if it has been moved.
    """
    place = at or out
    try:
        place.lstat()  # a dangling link is in the way, too
    except FileNotFoundError:
        return
    if not force:
        raise OutputError(f"{out}: exists already").hint("Pass --force to replace it.")
    if force != "any" and (why := foreign(place)):
        raise OutputError(f"{out}: does not look like an output of lora-tools: {why}").hint(
            "Choose another output path, or pass --force-any to replace whatever is there."
        )


@contextmanager
def staged(out: Path, *, force: Force = False, sources: Iterable[Location] = ()) -> Iterator[Path]:
    """Yield an empty folder that becomes ``out`` when the block succeeds, at once and on the disk.

    After any failure ``out`` is as it was; a kill leaves at most a hidden folder beside it, which
    the next call removes. With ``force`` an output of lora-tools is replaced, with ``"any"``
    whatever is there, and either only once its successor is on the disk. Where one of the
    ``sources`` may not be read by group or others, neither may the result. Raises `OutputError` if
    ``out`` is taken, or is being written by another process.
    """
    check_free(out, force=force)
    with working(out) as work:
        work.clear()
        work.place.mkdir()
        yield work.place
        publish(work, force=force, sources=sources)


@contextmanager
def staged_file(
    file: Path, *, force: Force = False, sources: Iterable[Location] = ()
) -> Iterator[Path]:
    """Yield a path of the same ending for a file that becomes ``file`` when the block succeeds.

    As `staged` is for folders. Raises `OutputError` if there is no folder for it.
    """
    check_file(file, force=force)
    with working(file) as work:
        work.clear()
        yield work.place
        publish(work, force=force, sources=sources)


def publish(work: Work, *, force: Force, sources: Iterable[Location] = ()) -> None:
    """Give a finished output its name. After an error whatever had the name has it still.

    All of it is on the disk before, and the name itself afterwards. What was replaced lies in the
    folder of the work then, to be removed.
    """
    restrict(work.place, sources)
    sync_all(work.place)
    ours = work.place.lstat()
    try:
        _take(work, force)
        sync(work.out.parent)
    except BaseException:
        _give_back(work, ours)
        raise


def _take(work: Work, force: Force) -> None:
    try:
        rename_exclusive(work.place, work.out)
    except FileExistsError:
        check_free(work.asked, force=force, at=work.out)
        exchange(work.place, work.out)
        check_free(work.asked, force=force, at=work.place)  # another may have come there since


def _give_back(work: Work, ours: os.stat_result) -> None:
    """Undo what has been done so far: whoever interrupts may do so within a rename."""
    if not _is(work.out, ours):
        return
    if _is(work.place, ours):  # linked to both names
        work.out.unlink()
    elif os.path.lexists(work.place):
        exchange(work.place, work.out)
    else:
        work.out.rename(work.place)


def _is(path: Path, state: os.stat_result) -> bool:
    return os.path.lexists(path) and os.path.samestat(path.lstat(), state)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # Python before 3.13 raises the latter
        raise OutputError(f"{path}: is a symbolic link that leads in a circle") from error
