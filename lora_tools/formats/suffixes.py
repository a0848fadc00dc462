"""What stands behind a module's path in tensor names, in every tool that names modules by path."""

from collections.abc import Mapping
from typing import NamedTuple

from lora_tools.errors import FormatError, UnsupportedError, some
from lora_tools.files.header import Spec
from lora_tools.formats.manifest import Extra, Part, Role

LYCORIS: tuple[Role, ...] = (
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "hada_t1",
    "hada_t2",
    "lokr_w1",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_w2_b",
    "lokr_t2",
    "diff",
)

# ComfyUI's `weight_adapter`, sd-scripts, LyCORIS, diffusers, peft: what they write or accept.
SUFFIXES: dict[str, Role] = {
    ".lora_down.weight": "a",
    ".lora_up.weight": "b",
    ".lora_mid.weight": "mid",
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_A.default.weight": "a",
    ".lora_B.default.weight": "b",
    ".lora_B.bias": "bias",
    ".lora.down.weight": "a",
    ".lora.up.weight": "b",
    ".lora_linear_layer.down.weight": "a",
    ".lora_linear_layer.up.weight": "b",
    "_lora.down.weight": "a",
    "_lora.up.weight": "b",
    ".alpha": "alpha",
    ".dora_scale": "magnitude",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    **{f".{role}": role for role in LYCORIS},
}

BESIDE = {
    ".diff_b": "bias difference",
    ".w_norm": "norm difference",
    ".b_norm": "norm difference",
    ".set_weight": "full weight",
    ".weight": "full weight",
    ".scale": "full weight",
    ".bias": "bias",
}
"""Endings of tensors that are no part of an update, and what they are."""

REFUSED = {
    "oft_blocks": "OFT multiplies weights",
    "oft_R.weight": "OFT multiplies weights",
    "oft_diag": "OFT multiplies weights",
    "boft_R": "BOFT multiplies weights",
    "on_input": "IA3 multiplies weights",
    "ia3_l": "IA3 multiplies weights",
    "a1.weight": "GLoRA multiplies weights",
    "b1.weight": "GLoRA multiplies weights",
    "bias_indices": "a sparse residual is not supported",
    "reshape_weight": "the base weight is reshaped",
    "vera_lambda_b": "VeRA has shared random factors",
}


class KeyGroups(NamedTuple):
    """The tensors of a file: those of each module by key prefix, and the others."""

    modules: dict[str, dict[Role, Part]]
    extras: tuple[Extra, ...]


def collect(specs: Mapping[str, Spec]) -> KeyGroups:
    """Gather tensors by what stands before their suffix.

    Raises `UnsupportedError` for modules that are no sums of matrices, and `FormatError` for
    names that mean nothing here.
    """
    refused: dict[str, list[str]] = {}
    for ending, reason in REFUSED.items():
        refused.setdefault(reason, []).extend(key for key in specs if key.endswith(f".{ending}"))
    if reasons := [f"{why}: {some(keys, most=2)}" for why, keys in refused.items() if keys]:
        raise UnsupportedError("not sums of matrices:").listing(reasons)
    modules: dict[str, dict[Role, Part]] = {}
    extras: list[Extra] = []
    unknown: list[str] = []
    for key, spec in specs.items():
        suffix = suffix_of(key)
        if suffix == ".diff" and len(spec.shape) == 1:
            extras.append(Extra(key, spec, BESIDE[".w_norm"]))
        elif suffix is not None:
            parts = modules.setdefault(key.removesuffix(suffix), {})
            role = SUFFIXES[suffix]
            if role in parts:
                raise FormatError(f"{parts[role].key} and {key} are the same factor")
            parts[role] = Part(key, spec)
        elif key.startswith("bundle_emb."):
            extras.append(Extra(key, spec, "embedding of a token"))
        elif "lora" not in key.rpartition(".")[2] and (kind := _kind(key)):
            extras.append(Extra(key, spec, kind))
        else:
            unknown.append(key)
    if unknown:
        raise FormatError(f"names that are not understood: {some(unknown)}")
    return KeyGroups(modules, tuple(extras))


def suffix_of(key: str) -> str | None:
    """Return the suffix that makes a tensor part of a module, the longest that fits, or None.

    >>> suffix_of("unet.conv_in.lora.down.weight"), suffix_of("unet.conv_in.weight")
    ('.lora.down.weight', None)
    """
    return max((suffix for suffix in SUFFIXES if key.endswith(suffix)), key=len, default=None)


def _kind(key: str) -> str | None:
    return next((kind for ending, kind in BESIDE.items() if key.endswith(ending)), None)
