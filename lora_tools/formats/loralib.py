"""loralib, Microsoft's own: ``<path>.lora_A`` and ``<path>.lora_B``, and no alpha anywhere."""

from collections.abc import Mapping
from typing import Any

from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.files.header import Spec
from lora_tools.formats.base import Contents
from lora_tools.formats.fused import Diagonal
from lora_tools.formats.manifest import MISFIT, Extra, Manifest, Module
from lora_tools.formats.plain import LITGPT, FactorPair, pairs
from lora_tools.formats.readonly import ReadOnly
from lora_tools.formats.sites import Embedding, Linear, Site
from lora_tools.formats.stated import stated_alpha
from lora_tools.formats.tables import is_table

PREFIX = "base_model."
"""What PEFT puts before every path."""
FUSED = ("c_attn", "in_proj", "qkv", "qkv_proj", "query_key_value", "Wqkv")
"""What layers are called that compute queries, keys and values in one."""
GPT2 = ("c_attn", "c_proj", "c_fc")
"""Layers of GPT-2, whose weights transformers stores as (in, out)."""


class Loralib(ReadOnly):
    """The format of `loralib.lora_state_dict`. It is read, not written."""

    name = "loralib"
    about = "Microsoft loralib"
    why = "its files have no alpha"
    files: tuple[str, ...] = ()
    config_file: str | None = None

    def detect(self, specs: Mapping[str, Spec], config: Mapping[str, Any] | None) -> bool:
        """Recognise loralib by factors that are parameters of their layer: no ``.weight``."""
        return (
            any(key.endswith(".lora_A") for key in specs)
            and not any(key.startswith(PREFIX) or key.endswith(".lora_E") for key in specs)
            and not any(LITGPT.fullmatch(key) for key in specs)
        )

    def read(self, contents: Contents) -> Manifest:
        """Describe the adapter; its alpha is for a person to state.

        Raises `UnsupportedError` for layers whose factors do not say where they belong.
        """
        alpha = stated_alpha(contents, None, "none in loralib's files")
        found, rest = pairs(contents.specs, ".lora_A", ".lora_B")
        gpt2 = (contents.base or {}).get("model_type") == "gpt2"
        modules = tuple(
            _module(key_prefix, pair, alpha, gpt2) for key_prefix, pair in found.items()
        )
        extras = tuple(_extra(key, contents.specs[key]) for key in rest)
        problems = tuple(
            f"{extra.key} is not understood" for extra in extras if extra.kind == MISFIT
        )
        notes = (f"alpha is {alpha:g} in every module, as it was stated: no file says it.",)
        return Manifest(
            self.name, modules, extras, {}, contents.metadata, notes=notes, problems=problems
        )


def _module(key_prefix: str, pair: FactorPair, alpha: float, gpt2: bool) -> Module:
    leaf = key_prefix.rpartition(".")[2]
    if "conv" in leaf.lower():
        raise _unclear(key_prefix, "a convolution, whose kernel it is reshaped to")
    site: Site = Embedding() if is_table(key_prefix) else Linear(gpt2 and leaf in GPT2)
    parts = pair.parts
    if pair.products == 1:
        if leaf in FUSED and pair.out == pair.inp:
            raise _unclear(key_prefix, "a fused layer of which one part is adapted, and which one")
        return Module(
            key_prefix,
            site,
            pair.out,
            pair.inp,
            pair.rank,
            alpha,
            False,
            parts,
            key_prefix,
            key_prefix,
        )
    if pair.products != 3 or leaf not in FUSED:
        raise _unclear(
            key_prefix, f"a fused layer of which {pair.products} parts are adapted, and which"
        )
    if pair.out % 3:
        raise FormatError(f"{key_prefix}: B of {pair.out} rows is not that of three equal parts")
    # The scale is that of each part, whose rank is a third.
    rank, alpha = 3 * pair.rank, 3 * alpha
    return Module(
        key_prefix,
        site,
        pair.out,
        pair.inp,
        rank,
        alpha,
        False,
        parts,
        key_prefix,
        key_prefix,
        fused=Diagonal(3),
    )


def _unclear(key_prefix: str, what: str) -> UnsupportedError:
    return UnsupportedError(f"{key_prefix} is {what} is not in the file").hint(
        "Let loralib merge it into the model, and make an adapter of that:"
        " lora-tools extract BASE MERGED OUT."
    )


def _extra(key: str, spec: Spec) -> Extra:
    if "lora_" in key.rpartition(".")[2]:
        return Extra(key, spec, MISFIT)
    return Extra(key, spec, "bias" if key.endswith("bias") else "full weight")
