"""Megatron-Bridge: ``decoder.layers.<n>.self_attention.linear_qkv.adapter.linear_in.weight``."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from lora_tools.architectures.dialects import KnownBase, is_named, known_base
from lora_tools.architectures.layout import RowLayout
from lora_tools.errors import FormatError, some
from lora_tools.files.header import Spec
from lora_tools.formats.base import Contents
from lora_tools.formats.fused import FusedPart
from lora_tools.formats.manifest import Manifest, Module
from lora_tools.formats.plain import FactorPair, linear, pairs
from lora_tools.formats.readonly import ReadOnly
from lora_tools.formats.stated import stated_alpha

IN, OUT = ".linear_in.weight", ".linear_out.weight"
# Read in megatron-bridge 0.3.1 (`models/conversion/peft_bridge.py`, `param_mapping.py`).
KEY_PREFIX = re.compile(
    r"(?:(?:module|model)\.)*(?P<path>\w[\w.]*?)\.adapter(?:\.adapter_(?P<part>q|k|v|gate|up))?"
)
"""LoRA adapts all parts of a fused layer together, CanonicalLoRA each by itself."""


class Megatron(ReadOnly):
    """The adapter's tensors under Megatron's names, in one file. It is read, not written."""

    name = "megatron"
    about = "NVIDIA Megatron-Bridge, NeMo"
    why = "its checkpoints are distributed"
    files: tuple[str, ...] = ()
    config_file: str | None = None

    def detect(self, specs: Mapping[str, Spec], config: Mapping[str, Any] | None) -> bool:
        """Recognise Megatron by the names of its layers and of their adapters."""
        ours = (KEY_PREFIX.fullmatch(key.removesuffix(IN)) for key in specs if key.endswith(IN))
        return any(match is not None and is_named(match["path"], self.name) for match in ours)

    def read(self, contents: Contents) -> Manifest:
        """Describe the adapter by the names of transformers, which the base model decides.

        Raises `UnsupportedError` where the base is missing or of another family.
        """
        alpha = stated_alpha(
            contents, None, "none in Megatron's tensors, only in its run's settings"
        )
        base = known_base(contents.base, "Megatron", self.name)
        found, rest = pairs(contents.specs, IN, OUT)
        if rest:
            raise FormatError(f"names that are not understood: {some(rest)}")
        layouts = {key_prefix: _layout(key_prefix, base) for key_prefix in found}
        modules = [
            module
            for key_prefix, pair in found.items()
            for module in _modules(key_prefix, layouts[key_prefix], pair, alpha, base)
        ]
        notes = (
            f"alpha is {alpha:g} in every module, as it was stated: no file says it.",
            *dict.fromkeys(filter(None, map(_order, layouts, layouts.values()))),
        )
        return Manifest(self.name, tuple(modules), (), {}, contents.metadata, notes=notes)


def _layout(key_prefix: str, base: KnownBase) -> RowLayout:
    """Return which modules a pair updates; `FormatError` if there are none that are known."""
    match = KEY_PREFIX.fullmatch(key_prefix)
    layout = base.layout(match["path"], ("linear", "head")) if match else None
    if match and layout and match["part"]:
        ending = f".{match['part']}_proj"
        parts = tuple(part for part in layout.parts if part.path.endswith(ending))
        layout = replace(layout, parts=parts) if parts and len(layout.parts) > 1 else None
    if layout is None:
        raise FormatError(f"{key_prefix} is no layer of Megatron's that is known")
    return layout


def _modules(
    key_prefix: str, layout: RowLayout, pair: FactorPair, alpha: float, base: KnownBase
) -> Iterator[Module]:
    if pair.products != 1:
        raise FormatError(
            f"{key_prefix}: linear_in has {pair.products} times the rank of linear_out"
        )
    if len(layout.parts) == 1:
        yield linear(layout.parts[0].path, key_prefix, pair, alpha)
        return
    rows = base.rows(key_prefix, layout, pair.out, pair.inp)
    for part, own in zip(layout.parts, rows, strict=True):
        yield linear(part.path, key_prefix, pair, alpha, FusedPart(range(pair.rank), own))


def _order(key_prefix: str, layout: RowLayout) -> str | None:
    """Return what is assumed of a fused layer whose parts do not take turns."""
    if len(layout.parts) == 1 or layout.groups:
        return None
    layer = key_prefix.partition(".adapter")[0].rpartition(".")[2]
    parts = (part.path.rpartition(".")[2].removesuffix("_proj") for part in layout.parts)
    return (
        f"Rows of {layer} are read as those of {', then '.join(parts)}: their order without tensor"
        " parallelism, or gathered by Megatron-Bridge."
    )
