"""Groups of modules that differ in nothing but the numbers in their names."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_tools.names import collapse, template

SHARED = ("kind", "shape", "rank", "alpha", "scale", "dtype", "parts")
"""What the modules of a group have in common, beside the pattern of their names."""


@dataclass(frozen=True, slots=True)
class Group:
    """Described modules of one shape, rank, scale and type: one line for people."""

    modules: tuple[Mapping[str, Any], ...]

    @property
    def pattern(self) -> str:
        """Their names as one, with ranges of numbers."""
        return collapse([module["module"] for module in self.modules])

    def to_dict(self) -> dict[str, Any]:
        """Return the group as plain data."""
        shared = {field: self.modules[0][field] for field in SHARED}
        params = sum(module["params"] for module in self.modules)
        return {"pattern": self.pattern, "count": len(self.modules), **shared, "params": params}


def groups(modules: Iterable[Mapping[str, Any]]) -> list[Group]:
    """Gather described modules into groups, those of one pattern next to each other."""
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for module in modules:
        alike = found.setdefault(template(module["module"]), {})
        alike.setdefault(repr([module[field] for field in SHARED]), []).append(module)
    return [Group(tuple(members)) for alike in found.values() for members in alike.values()]
