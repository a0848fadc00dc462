"""What runtimes demand of the fields of a configuration."""

from collections.abc import Callable, Mapping
from typing import Any

from lora_tools.errors import some
from lora_tools.files.typed import is_count, is_number, shown
from lora_tools.runtimes.base import Breach, Check, Subject


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
        missing = [name for name in names if name not in subject.fields]
        if subject.config is None or not missing:
            return None
        return Breach(f"adapter_config.json lacks {some(missing)}", missing)

    return check


def typed(*fields: str) -> Check:
    """Demand that fields hold what they are for; absent ones do, and null where it means none."""

    def check(subject: Subject) -> Breach | None:
        for field in fields:
            value, kind = subject.fields.get(field), KINDS[field]
            none = value is None and (kind is not _is_number or field not in subject.fields)
            if not none and not kind(value):
                return Breach(f"{field} is {shown(value)}", [field])
        return None

    return check


def sets(field: str, says: str) -> Check:
    """Forbid a field that is set, with what to say of it."""

    def check(subject: Subject) -> Breach | None:
        value = subject.fields.get(field)
        return Breach(f"{field} is {shown(value)}: {says}", [field]) if value else None

    return check


def number(value: object) -> float | None:
    """Return a value if it is a number, else None."""
    return float(value) if is_number(value) else None


def ranks_of(config: Mapping[str, Any]) -> list[int]:
    """Return the rank of the configuration and those of its patterns, as far as they are whole."""
    pattern = config.get("rank_pattern")
    found = [config.get("r"), *(pattern.values() if isinstance(pattern, Mapping) else ())]
    return [int(rank) for rank in found if is_count(rank)]


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
