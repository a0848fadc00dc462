"""Encodings that are known and not read, and whatever has a scale that no codec explains."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple, TypeAlias

from lora_tools.codecs.codec import Codec
from lora_tools.files.header import Spec

Leaves: TypeAlias = Mapping[str, Spec]
"""The tensors of one module by the last part of their names."""

FLOAT8 = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
BYTES = frozenset({"U8"})
INTEGERS = frozenset({"U8", "I8", "I16", "U16", "I32", "U32", "F4", "F6_E2M3", "F6_E3M2"})
"""Types that weights have only where something else says what they mean."""


class Unread(NamedTuple):
    """An encoding, and the tensors that it was recognised by."""

    encoding: str
    tensors: list[str]


class Sign(NamedTuple):
    """A tensor that tells an encoding, by its name, its types and those of others beside it."""

    encoding: str
    leaf: str
    types: frozenset[str] | None = None
    """Its types; None: any."""
    beside: tuple[str, ...] = ()
    """What has to be there, too."""
    scale: frozenset[str] | None = None
    """The types of the first of those."""


SIGNS = (
    *(
        Sign("bitsandbytes", leaf)
        for leaf in (
            "absmax",
            "nested_absmax",
            "quant_map",
            "SCB",
            "bitsandbytes__nf4",
            "bitsandbytes__fp4",
        )
    ),
    Sign("GPTQ", "g_idx"),
    Sign("compressed-tensors NVFP4", "weight_packed", BYTES, ("weight_global_scale",)),
    Sign("compressed-tensors MXFP4", "weight_packed", BYTES, ("weight_scale",)),
    Sign("compressed-tensors, as packed integers", "weight_packed"),
    Sign("HQQ", "W_q"),
    Sign("torchao", "_weight_qdata"),
    Sign("quanto", "_data", None, ("_scale",)),
    Sign("AQLM", "codebooks"),
    Sign("MLX's kernels", "weight", frozenset({"U32"}), ("scales", "qbiases")),
    Sign("MLX", "weight", frozenset({"U32"}), ("scales", "biases")),
    Sign("MLX, in mxfp4, nvfp4 or mxfp8", "weight", frozenset({"U32"}), ("scales",), BYTES),
    Sign("ComfyUI's NVFP4", "weight", BYTES, ("weight_scale", "comfy_quant"), FLOAT8),
    Sign("NVFP4, by ModelOpt or ComfyUI", "weight", BYTES, ("weight_scale",), FLOAT8),
    Sign("MXFP4, by Quark or axolotl", "weight", BYTES, ("weight_scale",), BYTES),
    Sign("MXFP8", "weight", FLOAT8, ("weight_scale_inv",), BYTES),
    Sign("MXFP8", "weight", FLOAT8, ("weight_scale",), BYTES),
    Sign(
        "ComfyUI's MXFP8",
        "weight",
        FLOAT8,
        ("weight_scale", "comfy_quant"),
        frozenset({"F8_E8M0"}),
    ),
    Sign("float8 whose scale is DeepSeek-V4's", "weight", FLOAT8, ("scale",)),
    Sign("float8 with a qscale_weight", "weight", FLOAT8, ("qscale_weight",)),
    Sign("DeepSeek-V4's MXFP4", "weight", frozenset({"I8"}), ("scale",)),
    Sign(
        "int8 with a scale, by compressed-tensors or ComfyUI",
        "weight",
        frozenset({"I8"}),
        ("weight_scale",),
    ),
    Sign("EETQ", "weight", frozenset({"I8"}), ("weight_scales",)),
)
"""The first that fits names the encoding."""

EXPLAINED = frozenset(
    {
        "bias",
        "comfy_quant",
        "input_scale",
        "k_scale",
        "layer_scale",
        "logit_scale",
        "output_scale",
        "per_expert_scale",
        "q_scale",
        "scale_input",
        "v_scale",
    }
)
"""What may lie beside a weight and says nothing of its values: much of it is of activations."""

SCALE_LIKE = re.compile(
    r"scale|zero|zp$|a(bs)?max|quant|qdata|codebook|g_idx|packed|biases|blocks|_shape$|exponent"
)


def recognised(specs: Mapping[str, Spec], codecs: Iterable[Codec] = ()) -> Unread | None:
    """Return the encoding of weights that none of the ``codecs`` of the others reads, if any is.

    The first one found speaks for the file. Whatever lies beside a weight of bytes or of float8,
    looks like a scale and is neither read nor known to be none makes it an unknown encoding.
    """
    parts = {codec.parts[0].key: codec for codec in codecs}
    # Who found nothing beside a weight does not know what lies there.
    several = [codec for codec in parts.values() if len(codec.parts) > 1 and not codec.misfit]
    sound = {part.key for codec in several for part in codec.parts}
    modules = _modules(specs)
    named: dict[str, list[str]] = {}
    for module, leaves in modules.items():
        for encoding, leaf in _signs(leaves):
            key = f"{module}.{leaf}" if module else leaf
            if key not in sound:
                named.setdefault(encoding, []).append(key)
    for encoding in named:
        return Unread(encoding, named[encoding])
    for key, spec in specs.items():
        read = {part.key for part in parts[key].parts} if key in parts else ()
        others = _unexplained(key, spec, modules, read)
        if others:
            return Unread(
                f"an encoding that is not known, {key} being {spec.dtype} beside", sorted(others)
            )
    return None


def _modules(specs: Mapping[str, Spec]) -> dict[str, dict[str, Spec]]:
    modules: dict[str, dict[str, Spec]] = {}
    for key, spec in specs.items():
        module, _, leaf = key.rpartition(".")
        modules.setdefault(module, {})[leaf] = spec
    return modules


def _signs(leaves: Leaves) -> list[tuple[str, str]]:
    """Return the encodings of one module, and the tensors that tell them."""
    found = []
    if "qweight" in leaves or "qzeros" in leaves:
        found.append((_gptq_or_awq(leaves), "qweight" if "qweight" in leaves else "qzeros"))
    for leaf in leaves:
        if leaf.endswith("_blocks") and f"{leaf.removesuffix('_blocks')}_scales" in leaves:
            found.append(("MXFP4", leaf))
    first = next((sign for sign in SIGNS if _fits(sign, leaves)), None)
    return [*found, *([(first.encoding, first.leaf)] if first else [])]


def _fits(sign: Sign, leaves: Leaves) -> bool:
    own = leaves.get(sign.leaf)
    if own is None or any(leaf not in leaves for leaf in sign.beside):
        return False
    if sign.types and own.dtype not in sign.types:
        return False
    return not sign.scale or leaves[sign.beside[0]].dtype in sign.scale


def _gptq_or_awq(leaves: Leaves) -> str:
    """Tell GPTQ, packed along the input, from AWQ, packed along the output, by shapes alone."""
    weight, scales = leaves.get("qweight"), leaves.get("scales")
    if "g_idx" in leaves:
        return "GPTQ"
    if weight and scales and len(weight.shape) == len(scales.shape) == 2:
        if weight.shape[1] == scales.shape[1]:
            return "GPTQ"
        if weight.shape[1] * 8 == scales.shape[1]:
            return "AWQ"
    return "GPTQ or AWQ"


def _unexplained(
    key: str, spec: Spec, modules: Mapping[str, Leaves], read: Collection[str]
) -> list[str]:
    """Return what lies beside a weight, looks like a scale, and is not known to be one."""
    module, _, leaf = key.rpartition(".")
    if spec.dtype not in INTEGERS | FLOAT8 or (leaf != "weight" and len(spec.shape) < 2):
        return []
    known = set(EXPLAINED)
    if leaf != "weight":  # a parameter, whose scales begin with its own name
        known = {f"{leaf}_{each}" for each in EXPLAINED}
    beside = [
        other
        for other in modules[module]
        if other != leaf and (leaf == "weight" or other.startswith(f"{leaf}_"))
    ]
    names = [f"{module}.{o}" if module else o for o in beside if _is_odd(o, known)]
    names += [f"{key}.{inner}" for inner in modules.get(key, {}) if _is_odd(inner, known)]
    return [name for name in names if name not in read]


def _is_odd(leaf: str, known: set[str]) -> bool:
    return leaf not in known and SCALE_LIKE.search(leaf) is not None
