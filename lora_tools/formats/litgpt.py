"""LitGPT: ``transformer.h.<n>.attn.qkv.lora_A``, three layers in one, sized by the base's heads."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from lora_tools.architectures.dialects import KnownBase, known_base
from lora_tools.architectures.layout import RowLayout
from lora_tools.errors import FormatError, UnsupportedError, some
from lora_tools.files.header import Spec
from lora_tools.files.typed import Fields
from lora_tools.formats.base import Contents
from lora_tools.formats.fused import FusedPart
from lora_tools.formats.manifest import Manifest, Module
from lora_tools.formats.plain import FactorPair, is_litgpt, linear, pairs
from lora_tools.formats.readonly import ReadOnly
from lora_tools.formats.stated import stated_alpha

CONFIG = "hyperparameters.yaml"
OLD = ".attn.attn"
"""How an older version called the fused layer."""
SWITCHES = ("lora_query", "lora_key", "lora_value")
"""The settings that adapt the parts of the fused layer, in the order of its rows."""


class LitGPT(ReadOnly):
    """The format of ``lit_model.pth.lora``. It is read, not written."""

    name = "litgpt"
    about = "Lightning LitGPT"
    why = "it is a pickle"
    files: tuple[str, ...] = ("lit_model.pth.lora",)
    config_file: str | None = CONFIG

    def detect(self, specs: Mapping[str, Spec], config: Mapping[str, Any] | None) -> bool:
        """Recognise LitGPT by the names of its layers and of their factors."""
        return any(map(is_litgpt, specs))

    def read(self, contents: Contents) -> Manifest:
        """Describe the adapter by the names of transformers, which the base model decides.

        Raises `UnsupportedError` where the base is missing or of another family, or where the
        file does not say which parts of a fused layer it adapts.
        """
        config = contents.config or {}
        fields = Fields(CONFIG, config)
        where = f"no lora_alpha in a {CONFIG}"
        alpha = stated_alpha(contents, fields.number("lora_alpha"), where)
        base = known_base(contents.base, "LitGPT", self.name)
        found, rest = pairs(contents.specs, ".lora_A", ".lora_B")
        if rest:
            raise FormatError(f"names that are not understood: {some(rest)}")
        modules = [
            module
            for key_prefix, pair in found.items()
            for module in _modules(key_prefix, pair, alpha, config, base)
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
    key_prefix: str, pair: FactorPair, alpha: float, config: Mapping[str, Any], base: KnownBase
) -> Iterator[Module]:
    if key_prefix.endswith(OLD):
        raise UnsupportedError(
            f"{key_prefix} is of an older lit-gpt, which interleaved queries, keys and values"
        ).hint(
            "Merge it with the version that made it, and make an adapter of the result:"
            " lora-tools extract BASE MERGED OUT."
        )
    layout = base.layout(key_prefix, ("linear", "head"))
    if layout and len(layout.parts) > 1:
        yield from _parts(key_prefix, layout, pair, alpha, config, base)
        return
    if pair.products != 1:
        raise FormatError(f"{key_prefix}: A has {pair.products} times the rank of B")
    if layout is None:
        raise FormatError(f"{key_prefix} is no layer of LitGPT's that is known")
    yield linear(layout.parts[0].path, key_prefix, pair, alpha)


def _parts(
    key_prefix: str,
    layout: RowLayout,
    pair: FactorPair,
    alpha: float,
    config: Mapping[str, Any],
    base: KnownBase,
) -> Iterator[Module]:
    """Yield the parts of a fused layer that are adapted: rows of them alone are in the file."""
    switched = zip(layout.parts, SWITCHES, strict=True)
    adapted = [part for part, switch in switched if config.get(switch) is True]
    if not any(switch in config for switch in SWITCHES):
        adapted = list(layout.parts) if pair.products == len(layout.parts) else []
    if len(adapted) != pair.products:
        raise UnsupportedError(
            f"{key_prefix} is a fused layer of which {pair.products} parts are adapted, and which"
            " is not in the file"
        ).hint("Put LitGPT's own hyperparameters.yaml into the same folder.")
    rows = base.rows(key_prefix, replace(layout, parts=tuple(adapted)), pair.out, pair.inp)
    for i, (part, own) in enumerate(zip(adapted, rows, strict=True)):
        share = FusedPart(range(i * pair.rank, (i + 1) * pair.rank), own)
        yield linear(part.path, key_prefix, pair, alpha, share)
