"""What an adapter holds besides plain linear layers, by feature: what a format has to support."""

import re
from collections.abc import Iterable

from lora_tools.errors import UnsupportedError, some
from lora_tools.formats.manifest import Manifest, Module
from lora_tools.formats.sites import Convolution, Embedding, Experts, Linear

COPY = "copy"
"""The kind of a tensor that the adapter has twice, or that it has from before its training."""

FEATURES = {
    "embedding": "an update of an embedding",
    "convolution": "an update of a convolution",
    "experts": "a stack of updates, one for each expert or group",
    "transposed": "an update of a weight that is stored as (in, out)",
    "DoRA": "the norms of a merged weight's rows",
    "DoRA by column": "the norms of a merged weight's columns",
    "bias": "a bias of B, or of the base model",
    "modules_to_save": "a whole module that replaces the base model's",
    "trainable tokens": "rows that replace those of an embedding",
    "embedding of a token": "a vector for a new word",
    "full weight": "a tensor that replaces the base model's",
    COPY: "a second copy of a module, or what it was before training",
    "bias difference": "what is added to a bias",
    "norm difference": "what is added to a normalisation",
}

PARTS = {"DoRA": "magnitude", "DoRA by column": "columns", "bias": "bias"}
"""The features that are a part of a module, which means something without it."""


def features(manifest: Manifest) -> dict[str, list[str]]:
    """Return the features that an adapter has, and which modules or tensors are of each."""
    found: dict[str, list[str]] = {}
    for module in manifest.modules:
        for feature in features_of(module):
            found.setdefault(feature, []).append(module.name)
    for extra in manifest.extras:
        found.setdefault(extra.kind, []).append(extra.key)
    return found


def features_of(module: Module) -> list[str]:
    """Return the features of one module."""
    found = [feature for feature, role in PARTS.items() if role in module.parts]
    match module.site:
        case Embedding():
            found.append("embedding")
        case Convolution(groups=1):
            found.append("convolution")
        case Convolution() | Experts():
            found.append("experts")
        case Linear(transposed=True):
            found.append("transposed")
    return found


def is_blind(module: Module) -> bool:
    """Whether a module is a convolution, by its name, that has been read as a linear layer.

    LoHa and LoKr without a core have the kernel folded into a factor, and do not say its shape.
    """
    last = module.name.rpartition(".")[2]
    return (
        module.site == Linear() and re.fullmatch(r"conv(\d|_in|_out|_shortcut)?", last) is not None
    )


def check_uniform(modules: Iterable[Module], where: str) -> None:
    """Raise `UnsupportedError` if some modules have DoRA's norms, or a bias, and others do not.

    For formats that have one switch for all.
    """
    modules = tuple(modules)
    for feature in ("DoRA", "bias"):
        bare = [module.name for module in modules if PARTS[feature] not in module.parts]
        if bare and len(bare) < len(modules):
            raise UnsupportedError(
                f"{where} has {feature} in all modules or in none; without are {some(bare)}"
            ).hint(f"Leave it out everywhere: --drop {feature}.")
