"""LitGPT: ``transformer.h.<n>.attn.qkv.lora_A``, three layers in one, sized by the base's heads."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from lora_tools.errors import FormatError, UnsupportedError, some
from lora_tools.files.header import Spec
from lora_tools.files.typed import Fields
from lora_tools.formats.base import Contents
from lora_tools.formats.family import heads_by
from lora_tools.formats.fused import FusedPart, blocks
from lora_tools.formats.manifest import Manifest, Module
from lora_tools.formats.plain import LITGPT, FactorPair, linear, pairs
from lora_tools.formats.readonly import ReadOnly
from lora_tools.formats.rotary import Heads
from lora_tools.formats.stated import stated_alpha

CONFIG = "hyperparameters.yaml"
LAYER = re.compile(r"transformer\.h\.(?P<number>\d+)\.(?P<name>.+)")

# Read in litgpt 0.5.13 (`lora.py`, `scripts/convert_lit_checkpoint.py`).
LAYERS = {
    "attn.proj": "self_attn.o_proj",
    "mlp.fc_1": "mlp.gate_proj",
    "mlp.fc_2": "mlp.up_proj",
    "mlp.proj": "mlp.down_proj",
}
FUSED = "attn.qkv"
SWITCHES = {"q_proj": "lora_query", "k_proj": "lora_key", "v_proj": "lora_value"}
"""The parts of the fused layer, in their order, and the settings that adapt them."""


class LitGPT(ReadOnly):
    """The format of ``lit_model.pth.lora``. It is read, not written."""

    name = "litgpt"
    about = "Lightning LitGPT"
    why = "it is a pickle"
    files: tuple[str, ...] = ("lit_model.pth.lora",)
    config_file: str | None = CONFIG

    def detect(self, specs: Mapping[str, Spec], config: Mapping[str, Any] | None) -> bool:
        """Recognise LitGPT by the names of its layers and of their factors."""
        return any(LITGPT.fullmatch(key) for key in specs)

    def read(self, contents: Contents) -> Manifest:
        """Describe the adapter by the names of transformers, which the base model decides.

        Raises `UnsupportedError` where the base is missing or of another family, or where the
        file does not say which parts of a fused layer it adapts.
        """
        config = contents.config or {}
        fields = Fields(CONFIG, config)
        where = f"no lora_alpha in a {CONFIG}"
        alpha = stated_alpha(contents, fields.number("lora_alpha"), where)
        heads = heads_by(contents.base, "LitGPT", self.name)
        found, rest = pairs(contents.specs, ".lora_A", ".lora_B")
        if rest:
            raise FormatError(f"names that are not understood: {some(rest)}")
        modules = [
            module
            for key_prefix, pair in found.items()
            for module in _modules(key_prefix, pair, alpha, config, heads)
        ]
        rank = fields.count("lora_r")
        odd = [
            key_prefix
            for key_prefix, pair in found.items()
            if rank is not None and pair.rank != rank
        ]
        problems = [f"{CONFIG} says lora_r is {rank}, unlike {some(odd)}"]
        return Manifest(
            self.name,
            tuple(modules),
            (),
            config,
            contents.metadata,
            problems=tuple(problems if odd else ()),
        )


def _modules(
    key_prefix: str, pair: FactorPair, alpha: float, config: Mapping[str, Any], heads: Heads
) -> Iterator[Module]:
    layer = LAYER.fullmatch(key_prefix)
    if layer and layer["name"] == FUSED:
        yield from _parts(key_prefix, layer["number"], pair, alpha, config, heads)
        return
    if layer and layer["name"] == "attn.attn":
        raise UnsupportedError(
            f"{key_prefix} is of an older lit-gpt, which interleaved queries, keys and values"
        ).hint(
            "Merge it with the version that made it, and make an adapter of the result:"
            " lora-tools extract BASE MERGED OUT."
        )
    if pair.products != 1:
        raise FormatError(f"{key_prefix}: A has {pair.products} times the rank of B")
    name = "lm_head" if key_prefix == "lm_head" else LAYERS.get(layer["name"]) if layer else None
    if name is None:
        raise FormatError(f"{key_prefix} is no layer of LitGPT's that is known")
    path = f"model.layers.{layer['number']}.{name}" if layer else name
    yield linear(path, key_prefix, pair, alpha)


def _parts(
    key_prefix: str,
    number: str,
    pair: FactorPair,
    alpha: float,
    config: Mapping[str, Any],
    heads: Heads,
) -> Iterator[Module]:
    """Yield the parts of a fused layer that are adapted."""
    adapted = [part for part, switch in SWITCHES.items() if config.get(switch) is True]
    if not any(switch in config for switch in SWITCHES.values()):
        adapted = list(SWITCHES) if pair.products == len(SWITCHES) else []
    if len(adapted) != pair.products:
        raise UnsupportedError(
            f"{key_prefix} is a fused layer of which {pair.products} parts are adapted, and which"
            " is not in the file"
        ).hint("Put LitGPT's own hyperparameters.yaml into the same folder.")
    counts = [heads.queries if part == "q_proj" else heads.keys for part in adapted]
    if pair.out % sum(counts):
        raise FormatError(
            f"{key_prefix}: {pair.out} rows are not those of {sum(counts)} heads"
        ).hint("Check that the base model is the one of this adapter.")
    size = pair.out // sum(counts)
    rows = blocks([count * size for count in counts])
    for i, (part, own) in enumerate(zip(adapted, rows, strict=True)):
        path = f"model.layers.{number}.self_attn.{part}"
        share = FusedPart((i * pair.rank, (i + 1) * pair.rank), (own,))
        yield linear(path, key_prefix, pair, alpha, share)
