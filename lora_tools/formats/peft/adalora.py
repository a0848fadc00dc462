"""AdaLoRA, as PEFT saves it: a vector of values between the factors, and masks for ranks.

Read as the low-rank update that it makes, ``lora_B @ (lora_E * lora_A)``, and written as LoRA.
"""

import re
from collections.abc import Mapping
from typing import Any

from lora_tools.errors import FormatError, some
from lora_tools.files.dtypes import FLOATS
from lora_tools.files.header import Spec
from lora_tools.files.typed import is_count, shown
from lora_tools.formats.base import Contents
from lora_tools.formats.manifest import MISFIT, Extra, Manifest, Module, Part, Role
from lora_tools.formats.peft.checks import check_types, check_variant
from lora_tools.formats.peft.config import ADALORA, CONFIG, base_model
from lora_tools.formats.peft.extras import extras_of
from lora_tools.formats.peft.keys import path_of
from lora_tools.formats.sites import Linear
from lora_tools.scaling import alpha_for

# The adapter's name ends the keys of a plain dump of the state dict.
KEY = re.compile(r"(?P<key_prefix>.+)\.lora_(?P<part>[ABE])(?:\.(?!weight$|bias$)[^.]+)?")
ROLES: dict[str, Role] = {"A": "a", "B": "b", "E": "lora_E"}

# Read in peft 0.21.2 (`tuners/adalora/layer.py`, `tuners/adalora/config.py`).
DEFAULT_RANK = 12
OFFSET = 1e-5
"""What PEFT adds to the rank before it divides by it."""


def is_adalora(contents: Contents) -> bool:
    """Whether the configuration and the tensors both say AdaLoRA."""
    kind = (contents.config or {}).get("peft_type")
    return kind == ADALORA and any(
        match["part"] == "E" for key in contents.specs if (match := KEY.fullmatch(key))
    )


def read_adalora(name: str, contents: Contents) -> Manifest:
    """Describe an AdaLoRA adapter, its ranks as its masks left them.

    Its alpha is divided by the rank that all modules began with, whatever their ranks are now.
    Raises as the reader of LoRA does.
    """
    config = dict(contents.config or {})
    masks = _masks(config.get("rank_pattern"))
    plain = config | {"peft_type": "LORA", "rank_pattern": None}
    check_variant(plain)
    peft, begun = check_types(plain), _initial_rank(config)
    alpha = peft.alpha("")
    found, rest = _collect(contents.specs)
    modules, problems, empty = [], [], []
    unknown = [key for key in rest if ".lora_" in key]
    problems += [f"{key} is not understood" for key in unknown]
    if config.get("use_dora"):
        problems.append("use_dora is true, and PEFT's AdaLoRA has no DoRA")
    for key_prefix, parts in found.items():
        path = path_of(key_prefix)
        try:
            rank = _rank(path, parts, masks.get(path), begun)
            if not peft.targets(path):
                raise FormatError(f"{path} is not among the configuration's targets")
        except FormatError as error:
            problems.append(str(error))
            unknown += [part.key for part in parts.values()]
            continue
        if not rank:
            empty.append(path)
            continue
        out, inp = parts["b"].spec.shape[0], parts["a"].spec.shape[1]
        # PEFT takes an alpha that is not positive for the rank.
        scale = (alpha if alpha > 0 else rank) / (begun + OFFSET)
        own = alpha_for(scale, rank, rslora=False)
        site = Linear(peft.transposed)
        modules.append(Module(path, site, out, inp, rank, own, False, parts, key_prefix, path))
    extras = [Extra(key, contents.specs[key], MISFIT) for key in unknown]
    extras += extras_of([key for key in rest if key not in unknown], contents.specs, peft)
    return Manifest(
        name,
        tuple(modules),
        tuple(extras),
        config,
        contents.metadata,
        base_model(config),
        tuple(_notes(empty)),
        tuple(problems),
    )


def _collect(specs: Mapping[str, Spec]) -> tuple[dict[str, dict[Role, Part]], list[str]]:
    found: dict[str, dict[Role, Part]] = {}
    rest = []
    for key, spec in specs.items():
        match = KEY.fullmatch(key)
        if match is None:
            rest.append(key)
            continue
        parts, role = found.setdefault(match["key_prefix"], {}), ROLES[match["part"]]
        if role in parts:
            raise FormatError(f"{parts[role].key} and {key} are the same factor").hint(
                "The file holds more than one adapter; save the one that is meant on its own."
            )
        parts[role] = Part(key, spec)
    return found, rest


def _rank(path: str, parts: Mapping[Role, Part], mask: int | None, begun: int) -> int:
    """Return the rank of a module, which its tensors and its mask have to agree on."""
    if missing := [part for part, role in ROLES.items() if role not in parts]:
        raise FormatError(f"{path} has no lora_{missing[0]}")
    for part in parts.values():
        if part.spec.dtype not in FLOATS:
            raise FormatError(f"{part.key} has elements of type {part.spec.dtype}")
    rank = begun if mask is None else mask
    b, a, e = (parts[role].spec.shape for role in ("b", "a", "lora_E"))
    if len(b) != 2 or len(a) != 2 or (b[1], a[0], e) != (rank, rank, (rank, 1)):
        shapes = f"B {list(b)}, E {list(e)} and A {list(a)}"
        raise FormatError(f"{path}: {shapes} do not make rank {rank}")
    return rank


def _masks(pattern: Any) -> dict[str, int]:
    """Return the ranks that masks leave, by module."""
    if pattern is None:
        return {}
    if not isinstance(pattern, Mapping):
        raise FormatError(f"{CONFIG}: rank_pattern is {shown(pattern)}, not an object of masks")
    found = {}
    for key, mask in pattern.items():
        match = KEY.fullmatch(key)
        if match is None or not isinstance(mask, list) or any(type(x) is not bool for x in mask):
            raise FormatError(f"{CONFIG}: rank_pattern of {key} is no mask of AdaLoRA")
        found[path_of(match["key_prefix"])] = sum(mask)
    return found


def _initial_rank(config: Mapping[str, Any]) -> int:
    rank = config.get("init_r", DEFAULT_RANK)
    if not is_count(rank) or rank < 1:
        raise FormatError(f"{CONFIG}: init_r is {shown(rank)}, which is no rank")
    return int(rank)


def _notes(empty: list[str]) -> list[str]:
    notes = ["AdaLoRA: read as the LoRA that it computes, and written as one."]
    if empty:
        notes.append(
            "AdaLoRA left no rank to modules that therefore add nothing, and are not written:"
            f" {some(empty)}."
        )
    return notes
