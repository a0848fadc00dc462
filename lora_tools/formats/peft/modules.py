"""Make modules of a PEFT adapter's tensors, or say why they do not fit their configuration."""

from collections.abc import Mapping
from dataclasses import replace

from lora_tools.architectures.conventions import EXPERT_PARAMETERS
from lora_tools.errors import FormatError, some
from lora_tools.files.dtypes import FLOATS
from lora_tools.formats.expressions import suffixes
from lora_tools.formats.folding import factor_shapes
from lora_tools.formats.fused import ByExpert
from lora_tools.formats.manifest import Module, Part, Role
from lora_tools.formats.peft.config import PeftConfig
from lora_tools.formats.peft.keys import PREFIX, WRAPPED, KeyGroup, path_of
from lora_tools.formats.sites import Convolution, Embedding, Experts, Linear, Site, columns


def parameters(found: Mapping[str, KeyGroup], peft: PeftConfig) -> dict[str, str]:
    """Return the parameter that each key prefix adapts directly, for those that do.

    PEFT nests the wrappers of several parameters of one module: the more ``.base_layer`` a key
    prefix ends with, the earlier its parameter is in the module.
    """
    nested: dict[str, list[str]] = {}
    for key_prefix in found:
        path = path_of(key_prefix)
        if not peft.target_parameters or peft.targets(path):
            continue
        nested.setdefault(path, []).append(key_prefix)
    named: dict[str, list[tuple[int, str]]] = {}
    for order, target in enumerate(peft.target_parameters):
        module, _, name = target.rpartition(".")
        named.setdefault(module, []).append((order, name))
    longest = max(map(len, named), default=-1)
    names: dict[str, str] = {}
    for path, key_prefixes in nested.items():
        # A name without a module means all that have such a parameter: experts, not their router.
        own = [each for end in suffixes(path, longest) for each in named.get(end, ())]
        every = sorted({*own, *named.get("", ())})
        ways = (list(dict.fromkeys(name for _, name in way)) for way in (sorted(own), every))
        wanted = next((way for way in ways if len(way) == len(key_prefixes)), None)
        if wanted is None:
            continue  # reported as not targeted
        if len(wanted) > 1 and not set(wanted) <= set(EXPERT_PARAMETERS):
            raise FormatError(
                f"{path}: cannot tell which tensors belong to which of {some(wanted)}"
            )
        wanted.sort(key=lambda name: (*EXPERT_PARAMETERS, name).index(name))
        names |= dict(zip(sorted(key_prefixes, key=len, reverse=True), wanted, strict=True))
    return names


def module_of(
    key_prefix: str,
    parts: dict[Role, Part],
    embedding: bool,
    parameter: str | None,
    peft: PeftConfig,
) -> Module:
    """Describe the module of a key prefix; raise `FormatError` if its tensors do not fit."""
    path = path_of(key_prefix)
    name = f"{path}.{parameter}" if parameter else path
    missing = [role.upper() for role in ("a", "b") if role not in parts]
    if missing:
        raise FormatError(f"{path} has no lora_{missing[0]}")
    for part in parts.values():
        if part.spec.dtype not in FLOATS:
            raise FormatError(f"{part.key} has elements of type {part.spec.dtype}")
    # A multi-head attention's output projection is adapted with it, at the same rank and alpha.
    owner = key_prefix.removeprefix(PREFIX).rpartition(f"{WRAPPED}.")[0] or name
    if not parameter and not peft.targets(owner):
        raise FormatError(f"{path} is not among the configuration's targets")
    if peft.dora != ("magnitude" in parts):
        has = "has a magnitude vector" if "magnitude" in parts else "has no magnitude vector"
        raise FormatError(f"{path} {has}, but use_dora is {str(peft.dora).lower()}")
    if "bias" in parts and embedding:
        raise FormatError(f"{path} is an embedding with a lora_B.bias, which PEFT does not have")
    if "bias" in parts and not peft.lora_bias:
        raise FormatError(f"{path} has a lora_B.bias, but lora_bias is false: PEFT would drop it")
    if peft.lora_bias and "bias" not in parts and not embedding:
        raise FormatError(f"{path} has no lora_B.bias, but lora_bias is true")
    rank, alpha = peft.rank(owner), peft.alpha(owner)
    b, a = parts["b"].spec.shape, parts["a"].spec.shape
    site, out, inp, per_update = _site(path, b, a, rank, embedding, parameter, peft)
    module = Module(name, site, out, inp, per_update, alpha, peft.rslora, parts, key_prefix, owner)
    if isinstance(site, Experts) and min(site.count, rank) > 1 and peft.grouped(name):
        module = replace(module, fused=ByExpert(site.count))
    if factor_shapes(module) != (b, a) or rank != module.r:
        raise FormatError(f"{path}: B {list(b)} and A {list(a)} do not make rank {rank}")
    for role in ("magnitude", "bias"):
        if role in parts and parts[role].spec.numel != b[0]:
            shape = list(parts[role].spec.shape)
            raise FormatError(f"{path}: {role} {shape} does not fit B {list(b)}")
    return module


def _site(
    path: str,
    b: tuple[int, ...],
    a: tuple[int, ...],
    rank: int,
    embedding: bool,
    parameter: str | None,
    peft: PeftConfig,
) -> tuple[Site, int, int, int]:
    if min((*a, *b, rank), default=0) < 1 or len(a) != len(b) or not 2 <= len(a) <= 5:
        raise FormatError(f"{path}: B {list(b)} and A {list(a)} are not a pair of factors")
    if parameter:
        return Experts(parameter, a[0] // rank), b[0], a[1], rank
    if embedding:
        return Embedding(), b[0], a[1], rank
    if len(a) == 2:
        return Linear(peft.transposed), b[0], a[1], rank
    groups = max(rank // b[1], 1)
    site = Convolution(a[1], a[2:], groups)
    return site, b[0] // groups, columns(a[1], a[2:]), rank // groups
