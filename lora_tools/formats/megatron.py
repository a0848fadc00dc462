"""Megatron-Bridge: ``decoder.layers.<n>.self_attention.linear_qkv.adapter.linear_in.weight``."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lora_tools.errors import FormatError, some
from lora_tools.files.header import Spec
from lora_tools.formats.base import Contents
from lora_tools.formats.family import heads_by
from lora_tools.formats.fused import FusedPart, Range, blocks
from lora_tools.formats.manifest import Manifest, Module
from lora_tools.formats.plain import FactorPair, linear, pairs
from lora_tools.formats.readonly import ReadOnly
from lora_tools.formats.rotary import Heads
from lora_tools.formats.stated import stated_alpha

IN, OUT = ".linear_in.weight", ".linear_out.weight"
KEY_PREFIX = re.compile(
    r"(?:(?:module|model)\.)*(?:decoder\.layers\.(?P<number>\d+)\.(?P<layer>[a-z_]+\.linear_\w+)"
    r"|output_layer)\.adapter(?:\.adapter_(?P<part>q|k|v|gate|up))?"
)

# Read in megatron-bridge 0.3.1 (`models/conversion/peft_bridge.py`, `param_mapping.py`).
QKV, GATED = "self_attention.linear_qkv", "mlp.linear_fc1"
PARTS = {
    QKV: {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj"},
    GATED: {"gate": "mlp.gate_proj", "up": "mlp.up_proj"},
}
"""Layers that are several in transformers: CanonicalLoRA adapts each by itself, LoRA them all."""
LAYERS = {"self_attention.linear_proj": "self_attn.o_proj", "mlp.linear_fc2": "mlp.down_proj"}


class Megatron(ReadOnly):
    """The adapter's tensors under Megatron's names, in one file. It is read, not written."""

    name = "megatron"
    about = "NVIDIA Megatron-Bridge, NeMo"
    why = "its checkpoints are distributed"
    files: tuple[str, ...] = ()
    config_file: str | None = None

    def detect(self, specs: Mapping[str, Spec], config: Mapping[str, Any] | None) -> bool:
        """Recognise Megatron by the names of its layers and of their adapters."""
        return any(
            key.endswith(IN) and KEY_PREFIX.fullmatch(key.removesuffix(IN)) is not None
            for key in specs
        )

    def read(self, contents: Contents) -> Manifest:
        """Describe the adapter by the names of transformers, which the base model decides.

        Raises `UnsupportedError` where the base is missing or of another family.
        """
        alpha = stated_alpha(
            contents, None, "none in Megatron's tensors, only in its run's settings"
        )
        heads = heads_by(contents.base, "Megatron", self.name)
        found, rest = pairs(contents.specs, IN, OUT)
        if rest:
            raise FormatError(f"names that are not understood: {some(rest)}")
        modules = [
            module
            for key_prefix, pair in found.items()
            for module in _modules(key_prefix, pair, alpha, heads)
        ]
        notes = [f"alpha is {alpha:g} in every module, as it was stated: no file says it."]
        if any(module.fused and module.name.endswith("gate_proj") for module in modules):
            notes.append(
                "Rows of linear_fc1 are read as those of gate, then up: their order without tensor"
                " parallelism, or gathered by Megatron-Bridge."
            )
        return Manifest(self.name, tuple(modules), (), {}, contents.metadata, notes=tuple(notes))


def _modules(key_prefix: str, pair: FactorPair, alpha: float, heads: Heads) -> Iterator[Module]:
    match = KEY_PREFIX.fullmatch(key_prefix)
    if match is None:
        raise FormatError(f"{key_prefix} is no layer of Megatron's that is known")
    if pair.products != 1:
        raise FormatError(
            f"{key_prefix}: linear_in has {pair.products} times the rank of linear_out"
        )
    layer, part, block = match["layer"], match["part"], f"model.layers.{match['number']}."
    parts = PARTS.get(layer, {})
    if layer is None and part is None:
        yield linear("lm_head", key_prefix, pair, alpha)
    elif part is None and layer in LAYERS:
        yield linear(block + LAYERS[layer], key_prefix, pair, alpha)
    elif part in parts:
        yield linear(block + parts[part], key_prefix, pair, alpha)
    elif part is None and parts:
        rows = _interleaved(key_prefix, pair, heads) if layer == QKV else _halves(key_prefix, pair)
        for name, ranges in zip(parts.values(), rows, strict=True):
            yield linear(block + name, key_prefix, pair, alpha, FusedPart((0, pair.rank), ranges))
    else:
        raise FormatError(f"{key_prefix} is no layer of Megatron's that is known")


def _interleaved(key_prefix: str, pair: FactorPair, heads: Heads) -> list[tuple[Range, ...]]:
    """Return the rows of queries, keys and values: each group has its queries, a key, a value."""
    queries, odd = divmod(heads.queries, heads.keys)
    size, rest = divmod(pair.out, heads.queries + 2 * heads.keys)
    if odd or rest:
        raise FormatError(
            f"{key_prefix}: {pair.out} rows are not those of {heads.queries} heads in"
            f" {heads.keys} groups"
        ).hint("Check that the base model is the one of this adapter.")
    rows = blocks([queries * size, size, size] * heads.keys)
    return [tuple(rows[i::3]) for i in range(3)]


def _halves(key_prefix: str, pair: FactorPair) -> list[tuple[Range, ...]]:
    if pair.out % 2:
        raise FormatError(f"{key_prefix}: {pair.out} rows are not two halves")
    return [(half,) for half in blocks([pair.out // 2] * 2)]
