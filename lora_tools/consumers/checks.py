"""Checks that several engines make, from configuration, names and shapes."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lora_tools.consumers.base import Breach, Check, Subject
from lora_tools.consumers.keys import Pair
from lora_tools.errors import some
from lora_tools.formats.peft.config import PeftConfig

CLOSE = 1e-6
"""Scales that differ by less, relatively, are the same."""


def has_file(*names: str) -> Check:
    """Demand one of these files in the adapter's folder."""

    def check(subject: Subject) -> Breach | None:
        if set(names) & set(subject.files):
            return None
        return Breach(f"the folder has no {' or '.join(names)}, only {some(subject.files, 3)}")

    return check


def has_config(subject: Subject) -> Breach | None:
    """Demand a configuration that is a JSON object."""
    if subject.config is not None:
        return None
    there = "adapter_config.json" in subject.files
    return Breach(
        "adapter_config.json is not a JSON object" if there else "there is no adapter_config.json"
    )


def has_fields(*names: str) -> Check:
    """Demand fields of the configuration."""

    def check(subject: Subject) -> Breach | None:
        missing = [name for name in names if name not in (subject.config or {})]
        if subject.config is None or not missing:
            return None
        return Breach(f"adapter_config.json lacks {some(missing)}", missing)

    return check


def typed(*fields: str) -> Check:
    """Demand that fields hold what they are for; absent ones do, and null where it means none."""

    def check(subject: Subject) -> Breach | None:
        config = subject.config or {}
        for field in fields:
            value, kind = config.get(field), KINDS[field]
            none = value is None and (kind is not _is_number or field not in config)
            if not none and not kind(value):
                return Breach(f"{field} is {value!r}", [field])
        return None

    return check


def _is_number(value: object) -> bool:
    return number(value) is not None


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_text(value: object) -> bool:
    return isinstance(value, str) or _is_names(value)


def _is_pattern(value: object) -> bool:
    return isinstance(value, Mapping) and all(_is_number(number) for number in value.values())


def _is_layers(value: object) -> bool:
    return all(
        isinstance(number, int) for number in (value if isinstance(value, list) else [value])
    )


KINDS: Mapping[str, Callable[[object], bool]] = {
    "r": _is_number,
    "lora_alpha": _is_number,
    "rank_pattern": _is_pattern,
    "alpha_pattern": _is_pattern,
    "target_modules": _is_text,
    "exclude_modules": _is_text,
    "layers_pattern": _is_text,
    "modules_to_save": _is_names,
    "target_parameters": _is_names,
    "layers_to_transform": _is_layers,
}


def sets(field: str, says: str) -> Check:
    """Forbid a field that is set, with what to say of it."""

    def check(subject: Subject) -> Breach | None:
        value = (subject.config or {}).get(field)
        return Breach(f"{field} is {value!r}: {says}", [field]) if value else None

    return check


def has_pairs(subject: Subject) -> Breach | None:
    """Demand at least one tensor that is named like a factor of PEFT."""
    if any(pair.spelling.startswith("peft") for pair in subject.pairs):
        return None
    return Breach(f"no tensor is named like a factor of PEFT: they are {some(subject.specs, 3)}")


def ranks_of(config: Mapping[str, Any]) -> list[int]:
    """Return the rank of the configuration and those of its patterns, as far as they are whole."""
    found = [config.get("r"), *dict(config.get("rank_pattern") or {}).values()]
    return [rank for rank in found if isinstance(rank, int) and not isinstance(rank, bool)]


def number(value: object) -> float | None:
    """Return a value if it is a number, else None."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def read_at(engine: str, factor: Callable[[Subject, Pair], float | None], reads: str) -> Check:
    """Compare the scale that an engine gives each pair with that of the adapter's own format."""

    def check(subject: Subject) -> Breach | None:
        wrong: dict[str, tuple[float, float]] = {}
        for pair in subject.pairs:
            its, truth = factor(subject, pair), subject.truths.get(pair.stem)
            if its is not None and truth is not None and abs(its - truth) > CLOSE * abs(truth):
                wrong[pair.path] = (its, truth)
        if not wrong:
            return None
        times = sorted({round(its / truth, 4) for its, truth in wrong.values() if truth})
        name, (its, truth) = next(iter(wrong.items()))
        span = (
            f"{times[0]:g}"
            if len(times) == 1
            else f"{times[0]:g} to {times[-1]:g}"
            if times
            else "wrong"
        )
        return Breach(
            f"{engine} {reads}: {len(wrong)} of {len(subject.pairs)} modules get {span} times their"
            f" strength ({name}: {its:.4g} in place of {truth:.4g})",
            list(wrong),
        )

    return check


def config_scale(subject: Subject) -> float | None:
    """Return ``lora_alpha / r`` of the configuration."""
    config = subject.config or {}
    alpha, rank = number(config.get("lora_alpha")), number(config.get("r"))
    return alpha / rank if alpha is not None and rank else None


def peft_of(subject: Subject) -> PeftConfig:
    """Return the configuration with PEFT's meanings and defaults."""
    return PeftConfig(subject.config or {})


def failing(check: Callable[[str], object], paths: Iterable[str]) -> str | None:
    """Return what is wrong with the first regular expression that the check fails on."""
    for path in paths:
        try:
            check(path)
        except re.error as error:
            return str(error)
        except (TypeError, ValueError, OverflowError):
            continue  # no number where there should be one: another rule's to say
    return None
