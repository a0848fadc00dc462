"""The updates of LoRA's relatives, as exact low-rank updates, from names and shapes and back.

LoCon, with or without a Tucker core; LoHa and LoKr, which are LoRAs of a higher rank (LyCORIS,
`lycoris/modules`); and full-rank diffs. What numbers are made of others is made in float64.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_tools.errors import FormatError
from lora_tools.files.dtypes import FLOATS
from lora_tools.formats.folding import fold, unfold
from lora_tools.formats.manifest import BESIDE, Module, Part, Role
from lora_tools.formats.numbers import widened
from lora_tools.formats.sites import Convolution, Linear, Site, columns
from lora_tools.scaling import alpha_for, scale

if TYPE_CHECKING:
    from lora_tools.update import Array, Update

HADAMARD: frozenset[Role] = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})
FIRST: tuple[frozenset[Role], ...] = (
    frozenset({"lokr_w1"}),
    frozenset({"lokr_w1_a", "lokr_w1_b"}),
)
SECOND: tuple[frozenset[Role], ...] = (
    frozenset({"lokr_w2"}),
    frozenset({"lokr_w2_a", "lokr_w2_b"}),
    frozenset({"lokr_w2_a", "lokr_w2_b", "lokr_t2"}),
)
WHOLE: frozenset[frozenset[Role]] = frozenset(
    {
        frozenset({"a", "b"}),
        frozenset({"a", "b", "mid"}),
        frozenset({"diff"}),
        HADAMARD,
        HADAMARD | {"hada_t1", "hada_t2"},
        *(first | second for first in FIRST for second in SECOND),
    }
)
"""Tensors that make one update together. With one more, two updates would claim the module."""


def describe(name: str, key_prefix: str, parts: Mapping[Role, Part], alpha: float | None) -> Module:
    """Describe the module whose tensors share a key prefix; raise `FormatError` if they do not fit.

    ``alpha`` is that of the file; none, or 0, is a scale of 1.
    """
    for part in parts.values():
        if part.spec.dtype not in FLOATS and part is not parts.get("alpha"):
            raise FormatError(f"{part.key} has elements of type {part.spec.dtype}")
    shapes = {role: part.spec.shape for role, part in parts.items()}
    try:
        if parts.keys() - BESIDE not in WHOLE:
            raise ValueError("not the tensors of one update")
        site, out, inp, rank, divisor = _form(shapes)
    except (KeyError, ValueError, IndexError) as error:
        listed = ", ".join(f"{role} {list(shape)}" for role, shape in shapes.items())
        raise FormatError(f"{name}: {listed} make no update") from error
    if divisor is None or not alpha:  # full matrices have no rank that alpha could belong to
        alpha = None
    elif not math.isfinite(alpha):
        raise FormatError(f"{name}: alpha is {alpha}")
    elif divisor != rank:
        alpha = alpha_for(scale(alpha, divisor, rslora=False), rank, rslora=False)
    ordered = dict(sorted(parts.items()))  # whatever order the file has
    return _checked(Module(name, site, out, inp, rank, alpha, False, ordered, key_prefix, name))


def _checked(module: Module) -> Module:
    parts = dict(module.parts)
    if min(module.out, module.inp, module.rank) < 1:
        raise FormatError(f"{module.name}: empty factors")
    if "magnitude" in parts:
        key, shape = parts["magnitude"].key, parts["magnitude"].spec.shape
        numel = math.prod(shape)
        channels = module.inp if isinstance(module.site, Linear) else module.shape[1]
        either = key.endswith(".dora_scale")  # peft and diffusers know rows only
        rows = shape[:1] == (numel,) == (module.out,)
        if either and not rows and shape[:2] == (1, channels) and numel == channels:
            parts["columns"] = parts.pop("magnitude")
        elif numel != module.out:
            raise FormatError(f"{module.name}: magnitude {list(shape)} fits neither axis")
    if "bias" in parts and parts["bias"].spec.shape != (module.out,):
        raise FormatError(f"{module.name}: bias {list(parts['bias'].spec.shape)} does not fit")
    return replace(module, parts=parts)


def _form(
    shapes: Mapping[Role, tuple[int, ...]],
) -> tuple[Site, int, int, int, int | None]:
    """Return site, rows, columns, rank, and the rank that alpha is divided by, if any."""
    if "hada_w1_a" in shapes:
        return _hadamard(shapes)
    if "lokr_w1" in shapes or "lokr_w1_a" in shapes:
        return _kronecker(shapes)
    if "diff" in shapes:
        site, out, inp = _site(shapes["diff"])
        return site, out, inp, min(out, inp), None
    a, b = shapes["a"], shapes["b"]
    rank = a[0]
    _same(b[1], rank)
    if "mid" in shapes:
        mid = shapes["mid"]
        _same(mid[:2], (rank, rank))
        _same(math.prod(a[2:]) * math.prod(b[2:]), 1)
        return Convolution(a[1], mid[2:]), b[0], columns(a[1], mid[2:]), rank, rank
    _same(len(a), len(b))
    _same(math.prod(b[2:]), 1)
    site, _, inp = _site((b[0], *a[1:]))
    return site, b[0], inp, rank, rank


def _hadamard(shapes: Mapping[Role, tuple[int, ...]]) -> tuple[Site, int, int, int, int]:
    for role, shape in shapes.items():
        if role.startswith("hada_w"):
            _same(len(shape), 2)
    ranks = shapes["hada_w1_b"][0], shapes["hada_w2_b"][0]
    if "hada_t1" in shapes:
        kernel = shapes["hada_t1"][2:]
        _same(shapes["hada_t2"][2:], kernel)
        _same(shapes["hada_t1"][:2] + shapes["hada_t2"][:2], (ranks[0],) * 2 + (ranks[1],) * 2)
        out, channels = shapes["hada_w1_a"][1], shapes["hada_w1_b"][1]
        _same(shapes["hada_w2_a"][1], out)
        _same(shapes["hada_w2_b"][1], channels)
        _same((shapes["hada_w1_a"][0], shapes["hada_w2_a"][0]), ranks)
        site: Site = Convolution(channels, kernel)
        return site, out, columns(channels, kernel), ranks[0] * ranks[1], ranks[0]
    out, inp = shapes["hada_w1_a"][0], shapes["hada_w1_b"][1]
    _same((shapes["hada_w1_a"][1], shapes["hada_w2_a"][1]), ranks)
    _same((shapes["hada_w2_a"][0], shapes["hada_w2_b"][1]), (out, inp))
    return Linear(), out, inp, ranks[0] * ranks[1], ranks[0]


def _kronecker(
    shapes: Mapping[Role, tuple[int, ...]],
) -> tuple[Site, int, int, int, int | None]:
    divisor: int | None = None
    if "lokr_w1" in shapes:
        a, b = shapes["lokr_w1"]
        first = min(a, b)
    else:
        (a, first), (also, b) = shapes["lokr_w1_a"], shapes["lokr_w1_b"]
        _same(first, also)
        divisor = first
    kernel: tuple[int, ...] = ()
    if "lokr_w2" in shapes:
        c, d, *rest = shapes["lokr_w2"]
        kernel = tuple(rest)
        second = min(c, columns(d, kernel))
    elif "lokr_t2" in shapes:
        (second, c), (also, d) = shapes["lokr_w2_a"], shapes["lokr_w2_b"]
        kernel = shapes["lokr_t2"][2:]
        _same(shapes["lokr_t2"][:2], (second, also))
        divisor = also
    else:
        (c, second), (also, d) = shapes["lokr_w2_a"], shapes["lokr_w2_b"]
        _same(second, also)
        divisor = second
    site: Site = Convolution(b * d, kernel) if kernel else Linear()
    return site, a * c, columns(b * d, kernel), first * second, divisor


def _site(shape: tuple[int, ...]) -> tuple[Site, int, int]:
    out, channels, *kernel = shape
    if not kernel:
        return Linear(), out, channels
    return Convolution(channels, tuple(kernel)), out, columns(channels, tuple(kernel))


def _same(found: object, wanted: object) -> None:
    if found != wanted:
        raise ValueError(f"{found} is not {wanted}")


def update(module: Module, tensors: Mapping[str, "Array"]) -> "Update":
    """Make a module's update: its factors as they are, or made in float64 of what the file has."""
    from lora_tools.update import Biased, DoRA, LowRank  # numpy is not needed for headers

    values = {role: tensors[part.key] for role, part in module.parts.items() if role != "alpha"}
    if module.is_pair:
        b, a = unfold(module, values["b"], values["a"])
    else:
        b, a = _made(module, {role: widened(value) for role, value in values.items()})
    weight = LowRank(a, b, module.alpha, module.rslora, module.groups)
    if "magnitude" in values:
        return DoRA(weight, values["magnitude"])
    if "columns" in values:
        return DoRA(weight, values["columns"], "in")
    return Biased(weight, values["bias"]) if "bias" in values else weight


def values_of(module: Module, update: "Update") -> dict[Role, "Array"]:
    """Return the tensors of a module's pair of factors and of what it has besides, by role."""
    from lora_tools.update import Biased, DoRA, factors

    low = factors(update)
    b, a = fold(module, low.b, low.a)
    values: dict[Role, Array] = {"a": a, "b": b}
    match update:
        case DoRA(magnitude=magnitude, axis=axis):
            role: Role = "columns" if axis == "in" else "magnitude"
            values[role] = magnitude.reshape(module.parts[role].spec.shape)
        case Biased(bias=bias):
            values["bias"] = bias
    if "alpha" in module.parts:
        values["alpha"] = number(module.alpha or 0.0, module.parts["alpha"].spec.dtype)
    return values


def number(value: float, code: str) -> "Array":
    """Return a number as an array without dimensions."""
    import numpy as np

    from lora_tools.files.dtypes import numpy_dtype, torch_dtype

    kind = numpy_dtype(code)
    if kind is not None:
        return np.array(value, kind)
    import torch  # numpy lacks the type

    return torch.tensor(value, dtype=torch_dtype(code))


def _made(module: Module, values: Mapping[Role, Any]) -> tuple[Any, Any]:
    """Return B and A, (out, rank) and (rank, in)."""
    rank = module.rank
    if "diff" in values:
        whole = values["diff"].reshape(module.out, module.inp)
        return _halves(whole)
    if "mid" in values:
        a = values["a"].reshape(rank, -1)
        folded = _einsum("mn...,nj->mj...", values["mid"], a)
        return values["b"].reshape(module.out, rank), folded.reshape(rank, module.inp)
    if "hada_w1_a" in values:
        (b1, a1), (b2, a2) = (_hada(values, 1), _hada(values, 2))
        b = _einsum("or,os->ors", b1, b2).reshape(module.out, rank)
        return b, _einsum("ri,si->rsi", a1, a2).reshape(rank, module.inp)
    b1, a1 = _lokr(values, 1)
    b2, a2 = _lokr(values, 2)
    return _kron(b1, b2), _kron(a1, a2)


def _hada(values: Mapping[Any, Any], which: int) -> tuple[Any, Any]:
    b, a = values[f"hada_w{which}_a"], values[f"hada_w{which}_b"]
    if f"hada_t{which}" not in values:
        return b, a
    core = _einsum("ij...,jn->in...", values[f"hada_t{which}"], a)
    return b.T, core.reshape(core.shape[0], -1)


def _lokr(values: Mapping[Any, Any], which: int) -> tuple[Any, Any]:
    if f"lokr_w{which}" in values:
        whole = values[f"lokr_w{which}"]
        return _halves(whole.reshape(whole.shape[0], -1))
    b, a = values[f"lokr_w{which}_a"], values[f"lokr_w{which}_b"]
    if f"lokr_t{which}" not in values:
        return b, a
    core = _einsum("ij...,jn->in...", values[f"lokr_t{which}"], a)
    return b.T, core.reshape(core.shape[0], -1)


def _halves(whole: Any) -> tuple[Any, Any]:
    """Return a matrix as a product with an identity on its shorter side."""
    rows, cols = whole.shape
    if rows <= cols:
        return _eye(rows, whole), whole
    return whole, _eye(cols, whole)


def _library(array: Any) -> Any:
    if hasattr(array, "astype"):
        import numpy

        return numpy
    import torch  # the array is torch's own

    return torch


def _einsum(equation: str, x: Any, y: Any) -> Any:
    return _library(x).einsum(equation, x, y)


def _kron(x: Any, y: Any) -> Any:
    return _library(x).kron(x, y)


def _eye(size: int, like: Any) -> Any:
    library = _library(like)
    more = {} if library.__name__ == "numpy" else {"device": like.device}
    return library.eye(size, dtype=library.float64, **more)
