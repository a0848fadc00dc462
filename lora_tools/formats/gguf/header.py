"""What the header of a GGUF adapter says beside its tensors, and what it has to say."""

import math
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.files.fields import Field, field_of, text_of
from lora_tools.files.typed import is_number, shown
from lora_tools.formats.manifest import Module
from lora_tools.formats.numbers import rounded
from lora_tools.scaling import scale

ARCHITECTURE = "general.architecture"
TYPE = "general.type"
FILE_TYPE = "general.file_type"
QUANTISATION = "general.quantization_version"
ADAPTER = "adapter.type"
ALPHA = "adapter.lora.alpha"
TOKENS = "adapter.alora.invocation_tokens"
BASES = "general.base_model."
BASE_NAME = f"{BASES}0.name"
BASE_URL = f"{BASES}0.repo_url"
HUB = "https://huggingface.co/"
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
NEAR = 1e-6
"""Relative; neighbours among float32 are 6e-8 to 1.2e-7 apart."""
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}
"""llama.cpp's numbers for a file whose tensors are of one type."""


def check_kind(metadata: Mapping[str, str]) -> None:
    """Raise unless the header is that of a LoRA which always acts."""
    kinds = [metadata.get(key) for key in (TYPE, ADAPTER)]
    if kinds != ["adapter", "lora"]:
        raise FormatError(
            f"{TYPE} is {kinds[0]!r} and {ADAPTER} {kinds[1]!r}, not 'adapter' and 'lora'"
        )
    if TOKENS in metadata:
        raise UnsupportedError("aLoRA is switched on by tokens, so it is not an update of weights")


def alpha_of(metadata: Mapping[str, str]) -> float | None:
    """Return the adapter's alpha, or None where it has none, or 0: the scale is 1."""
    value = field_of(metadata[ALPHA]).value if ALPHA in metadata else 0.0
    if not is_number(value):
        raise FormatError(f"{ALPHA} is {shown(value)}, which is no alpha")
    return float(value) or None


def base_of(metadata: Mapping[str, str]) -> str | None:
    """Return the base model that the header names, as the Hub does where it can."""
    url, name = (metadata.get(key) for key in (BASE_URL, BASE_NAME))
    if url and url.startswith(HUB):
        return url.removeprefix(HUB)
    return str(field_of(name).value) if name else None


def common_alpha(modules: Iterable[Module]) -> float | None:
    """Return the one alpha under which the most modules keep their scale; None: a scale of 1.

    The file has it in float32.
    """
    modules = tuple(modules)
    stated = (m.scale * m.r if m.rslora else m.alpha for m in modules if m.alpha is not None)
    # Ranks that differ under a scale of 1, as `shrink` makes them, have no alpha in common but 0.
    found = dict.fromkeys(alpha for alpha in map(rounded, stated) if alpha and math.isfinite(alpha))
    ordered = sorted(found)
    counts: Counter[float | None] = Counter()
    for (rank, own), count in Counter((module.r, module.scale) for module in modules).items():
        for alpha in (*_near(own * rank, ordered), None):
            if scale(alpha, rank, rslora=False) == own:
                counts[alpha] += count
    candidates: list[float | None] = [*found, None]
    return max(candidates, key=counts.__getitem__)


def _near(alpha: float, ordered: Sequence[float]) -> Sequence[float]:
    """Return those of some alphas that are no further from one than roundings to float32."""
    low, high = sorted((alpha * (1 - NEAR), alpha * (1 + NEAR)))
    return ordered[bisect_left(ordered, low) : bisect_right(ordered, high)]


def header(
    metadata: Mapping[str, str],
    architecture: str,
    alpha: float | None,
    dtypes: Iterable[str],
    base_model: str | None,
) -> dict[str, str]:
    """Return the header of an adapter, with all that ``metadata`` says besides.

    ``dtypes`` are the dtypes of its factors.
    """
    kept = {key: value for key, value in metadata.items() if key != QUANTISATION}
    first = {ARCHITECTURE: architecture, TYPE: "adapter"}
    if base_model and base_of(metadata) != base_model:
        kept = {key: value for key, value in kept.items() if not key.startswith(BASES)}
        first |= _base(base_model)
    if kept.pop(FILE_TYPE, None) and len(types := {*dtypes}) == 1:
        first[FILE_TYPE] = text_of(Field("UINT32", FILE_TYPES[types.pop()]))
    last = {ADAPTER: "lora", ALPHA: text_of(Field("FLOAT32", alpha or 0.0))}
    return first | kept | first | last  # what is there keeps its place


def _base(name: str) -> dict[str, str]:
    """Return the fields that name a base model: one of the Hub by its address."""
    fields = {f"{BASES}count": text_of(Field("UINT32", 1))}
    if not HUB_NAME.fullmatch(name):
        return fields | {BASE_NAME: text_of(Field("STRING", name))}
    organisation, _, model = name.partition("/")
    return fields | {
        BASE_NAME: text_of(Field("STRING", model)),
        f"{BASES}0.organization": text_of(Field("STRING", organisation)),
        BASE_URL: HUB + name,
    }
