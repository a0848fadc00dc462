"""loralib, Microsoft's own: ``<path>.lora_A`` and ``<path>.lora_B``, and no alpha anywhere."""

from collections.abc import Mapping
from typing import Any

from lora_tools.architectures.conventions import (
    CONV1D_LAYERS,
    CONV1D_MODELS,
    QKV,
    is_embedding,
)
from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.files.header import Spec
from lora_tools.formats.base import Contents
from lora_tools.formats.fused import Diagonal
from lora_tools.formats.manifest import MISFIT, Extra, Manifest, Module
from lora_tools.formats.plain import FactorPair, is_litgpt, pairs
from lora_tools.formats.readonly import ReadOnly
from lora_tools.formats.sites import Embedding, Linear, Site
from lora_tools.formats.stated import stated_alpha

PREFIX = "base_model."
"""What PEFT puts before every path."""


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
            and not any(is_litgpt(key) for key in specs)
        )

    def read(self, contents: Contents) -> Manifest:
        """Describe the adapter; its alpha is for a person to state.

        Raises `UnsupportedError` for layers whose factors do not say where they belong.
        """
        alpha = stated_alpha(contents, None, "none in loralib's files")
        found, rest = pairs(contents.specs, ".lora_A", ".lora_B")
        conv1d = (contents.base or {}).get("model_type") in CONV1D_MODELS
        modules = tuple(
            _module(key_prefix, pair, alpha, conv1d) for key_prefix, pair in found.items()
        )
        extras = tuple(_extra(key, contents.specs[key]) for key in rest)
        problems = tuple(
            f"{extra.key} is not understood" for extra in extras if extra.kind == MISFIT
        )
        notes = (f"alpha is {alpha:g} in every module, as it was stated: no file says it.",)
        return Manifest(
            self.name, modules, extras, {}, contents.metadata, notes=notes, problems=problems
        )


def _module(key_prefix: str, pair: FactorPair, alpha: float, conv1d: bool) -> Module:
    leaf = key_prefix.rpartition(".")[2]
    if "conv" in leaf.lower():
        raise _unclear(key_prefix, "a convolution, whose kernel it is reshaped to")
    transposed = conv1d and leaf in CONV1D_LAYERS
    site: Site = Embedding() if is_embedding(key_prefix) else Linear(transposed)
    parts = pair.parts
    if pair.products == 1:
        if leaf in QKV and pair.out == pair.inp:
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
    if pair.products != 3 or leaf not in QKV:
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
