"""The dtypes of safetensors, in the order in which its writer sorts them."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from lora_tools.errors import CheckpointError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Dtype:
    """One dtype: safetensors' code, its width, and what torch and people call it."""

    code: str
    bits: int
    torch: str | None


# Widest alignment last, which is the order of safetensors' own enum: files are sorted by it,
# backwards, so that every tensor is aligned.
DTYPES = {
    dtype.code: dtype
    for dtype in (
        Dtype("BOOL", 8, "bool"),
        Dtype("F4", 4, "float4_e2m1fn_x2"),
        Dtype("F6_E2M3", 6, None),
        Dtype("F6_E3M2", 6, None),
        Dtype("U8", 8, "uint8"),
        Dtype("I8", 8, "int8"),
        Dtype("F8_E5M2", 8, "float8_e5m2"),
        Dtype("F8_E4M3", 8, "float8_e4m3fn"),
        Dtype("F8_E8M0", 8, "float8_e8m0fnu"),
        Dtype("F8_E4M3FNUZ", 8, "float8_e4m3fnuz"),
        Dtype("F8_E5M2FNUZ", 8, "float8_e5m2fnuz"),
        Dtype("I16", 16, "int16"),
        Dtype("U16", 16, "uint16"),
        Dtype("F16", 16, "float16"),
        Dtype("BF16", 16, "bfloat16"),
        Dtype("I32", 32, "int32"),
        Dtype("U32", 32, "uint32"),
        Dtype("F32", 32, "float32"),
        Dtype("C64", 64, "complex64"),
        Dtype("F64", 64, "float64"),
        Dtype("I64", 64, "int64"),
        Dtype("U64", 64, "uint64"),
    )
}
ORDER = {code: position for position, code in enumerate(DTYPES)}

FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
"""The types that factors of an update may have."""


def widest(codes: Collection[str]) -> str:
    """Return the floating dtype that holds the numbers of all.

    >>> widest({"F16"}), widest({"F16", "BF16"}), widest({"F16", "F64"})
    ('F16', 'F32', 'F64')
    """
    return next(iter(codes)) if len(set(codes)) == 1 else "F64" if "F64" in codes else "F32"


@cache
def torch_dtype(code: str) -> "torch.dtype":
    """Return torch's dtype for a safetensors code; `CheckpointError` if this torch has none."""
    import torch  # headers are read without it

    dtype = getattr(torch, DTYPES[code].torch or "", None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"torch {torch.__version__} has no dtype {code}").hint(
            "A newer torch may have it; headers of such files can still be inspected."
        )
    return dtype


def numpy_dtype(code: str) -> str | None:
    """Return numpy's name of a dtype, or None if numpy does not have it."""
    dtype = DTYPES[code]
    plain = dtype.torch and not dtype.torch.startswith(("float8", "float4", "bfloat"))
    return dtype.torch if plain else None


@cache
def code_of(dtype: object) -> str:
    """Return the code of a dtype of torch or numpy; `CheckpointError` if files cannot hold it."""
    name = str(dtype).removeprefix("torch.")
    for known in DTYPES.values():
        if known.torch == name:
            return known.code
    raise CheckpointError(f"safetensors files cannot hold elements of type {dtype}")
