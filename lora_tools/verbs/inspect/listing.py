"""Listings: the tensors of a checkpoint that is no adapter, or of one that is not understood."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_tools.adapter import Adapter, read
from lora_tools.errors import CheckpointError, FormatError, LoraToolsError, UnsupportedError
from lora_tools.files.header import Spec
from lora_tools.files.location import Location
from lora_tools.formats.registry import UNREADABLE, format_named
from lora_tools.model import Model, open_model
from lora_tools.names import collapse, template

if TYPE_CHECKING:
    from lora_tools.runtimes import Judgement, Runtime

SCHEMA = "lora-tools/tensors/2"

# What tools call the factors of low-rank updates, and of their relatives.
ADAPTER = re.compile(r"lora|hada_w|lokr_|oft_|ia3_|\.alpha$|dora_scale")


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """Tensors of one type and shape whose names differ in numbers only."""

    names: tuple[str, ...]
    spec: Spec

    def to_dict(self) -> dict[str, Any]:
        """Return the tensors as plain data."""
        return {
            "pattern": collapse(self.names),
            "count": len(self.names),
            "dtype": self.spec.dtype,
            "shape": list(self.spec.shape),
            "params": self.spec.numel * len(self.names),
            "bytes": self.spec.nbytes * len(self.names),
        }


@dataclass(frozen=True, slots=True)
class Listing:
    """The tensors of a checkpoint, as its headers describe them."""

    model: Model
    reason: LoraToolsError
    """Why it was not read as an adapter."""
    judgements: "tuple[Judgement, ...]" = ()

    @property
    def is_adapter(self) -> bool:
        """Whether the names say that it is an adapter all the same."""
        tensors = self.model.tensors
        refused = isinstance(self.reason, UnsupportedError) or self.unreadable is not None
        return refused or any(ADAPTER.search(name) for name in tensors)

    @property
    def unreadable(self) -> str | None:
        """What its names leave out, if it is one of the key namings that leave out too much."""
        for pattern, statement in UNREADABLE:
            if any(pattern.search(name) for name in self.model.tensors):
                return statement
        return None

    @property
    def group(self) -> list[TensorGroup]:
        """The tensors in groups, in the order of the first of each."""
        found: dict[tuple[str, Spec], list[str]] = {}
        for name, spec in self.model.tensors.specs.items():
            found.setdefault((template(name), spec), []).append(name)
        return [TensorGroup(tuple(names), spec) for (_, spec), names in found.items()]

    def to_dict(self) -> dict[str, Any]:
        """Return the listing as `report.schemas` describes it."""
        specs = self.model.tensors.specs.values()
        dtypes = Counter(spec.dtype for spec in specs)
        return {
            "schema": SCHEMA,
            "source": str(self.model.path),
            "architecture": self.model.architecture,
            "is_adapter": self.is_adapter,
            "reason": self.unreadable or str(self.reason),
            "totals": {
                "tensors": len(specs),
                "params": sum(spec.numel for spec in specs),
                "bytes": self.model.tensors.nbytes,
                "dtypes": dict(dtypes),
            },
            "groups": [group.to_dict() for group in self.group],
            "verdicts": [judgement.to_dict() for judgement in self.judgements],
            "metadata": dict(self.model.tensors.metadata),
        }


def read_or_list(
    path: str | Location,
    runtimes: "Sequence[Runtime]" = (),
    format: str | None = None,
    base: Mapping[str, Any] | None = None,
    alpha: float | None = None,
) -> Adapter | Listing:
    """Read an adapter, contradictions and all; list the tensors of anything else.

    ``runtimes`` are the runtimes whose verdicts on what is listed are wanted; ``format`` is the
    name of the format, which overrides detection; ``base`` is the base model's
    configuration, and ``alpha`` the adapter's alpha, for files that do not say enough.

    Raises `CheckpointError` for what is missing or damaged.
    """
    path = Path(path) if isinstance(path, str) else path
    if format:
        format_named(format)  # a name that is none is no property of the file
    try:
        return read(path, format, strict=False, base=base, alpha=alpha)
    except (FormatError, UnsupportedError) as error:
        judgements = verdicts(path, runtimes)
        try:
            return Listing(open_model(path), error, judgements)
        except CheckpointError:
            raise error from None  # no checkpoint by itself: why it is no adapter, says more


def verdicts(source: Adapter | Location, runtimes: "Sequence[Runtime]") -> "tuple[Judgement, ...]":
    """Return what each runtime makes of an adapter that was read, or of what lies at a path."""
    if not runtimes:
        return ()
    from lora_tools.runtimes import judge, subject  # with the rules of all, which few ask for

    about = subject(source)
    return tuple(judge(about, runtime) for runtime in runtimes)
