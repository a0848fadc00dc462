"""PEFT's adapter_config.json: what its fields mean for the tensors, and how they are written."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_tools.formats.manifest import Module
from lora_tools.formats.patterns import number, pattern_value, write_pattern
from lora_tools.formats.sites import Experts, Linear

# Read in peft 0.21.2 (`tuners/lora/config.py`, `utils/other.py`, `tuners/tuners_utils.py`).
DEFAULT_RANK = 8
DEFAULT_ALPHA = 8
ADALORA = "ADALORA"
SCHEDULE = frozenset(
    {
        "beta1",
        "beta2",
        "deltaT",
        "init_r",
        "orth_reg_weight",
        "target_r",
        "tfinal",
        "tinit",
        "total_step",
    }
)
"""Fields of AdaLoRA that a configuration of LoRA does not have."""


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The fields that give tensors their meaning, with PEFT's defaults for absent ones."""

    raw: Mapping[str, Any]

    @property
    def rslora(self) -> bool:
        """Whether alpha is divided by the square root of the rank."""
        return bool(self.raw.get("use_rslora"))

    @property
    def dora(self) -> bool:
        """Whether modules have a magnitude vector."""
        return bool(self.raw.get("use_dora"))

    @property
    def transposed(self) -> bool:
        """Whether targeted linear weights are stored as (in, out)."""
        return bool(self.raw.get("fan_in_fan_out"))

    @property
    def lora_bias(self) -> bool:
        """Whether B has a bias."""
        return bool(self.raw.get("lora_bias"))

    @property
    def target_parameters(self) -> list[str]:
        """Parameters that are adapted directly, as suffixes of their paths."""
        return list(self.raw.get("target_parameters") or ())

    def rank(self, path: str) -> int:
        """Return the rank of the module at ``path``."""
        return int(_lookup(self.raw, "rank_pattern", path, self.raw.get("r", DEFAULT_RANK)))

    def alpha(self, path: str) -> float:
        """Return the alpha of the module at ``path``."""
        default = self.raw.get("lora_alpha", DEFAULT_ALPHA)
        return float(_lookup(self.raw, "alpha_pattern", path, default))

    def tokens(self, path: str) -> tuple[int, ...]:
        """Return the rows of the embedding at ``path`` that were trained; none if it is silent."""
        wanted = self.raw.get("trainable_token_indices") or ()
        if isinstance(wanted, Mapping):
            wanted = next((wanted[name] for name in wanted if f".{path}".endswith(f".{name}")), ())
        return tuple(int(row) for row in wanted)

    def saves(self, path: str) -> bool:
        """Whether ``path`` is or lies in one of ``modules_to_save``."""
        names = self.raw.get("modules_to_save") or ()
        return any(re.match(rf"(^|.*\.){name}($|\..*)", path) for name in names)

    def targets(self, path: str) -> bool:
        """Whether PEFT would give the module at ``path`` an adapter."""
        if _names(self.raw.get("exclude_modules"), path) or self.saves(path):
            return False
        wanted = self.raw.get("target_modules")
        if wanted is None and not self.target_parameters:
            return True  # PEFT knows targets for each architecture
        if wanted == "all-linear":
            return True
        if isinstance(wanted, str) or path in (wanted or ()):
            return _names(wanted, path)  # a full name is meant, in whatever layer
        return _names(wanted, path) and self._in_layers(path)

    def _in_layers(self, path: str) -> bool:
        layers = self.raw.get("layers_to_transform")
        if layers is None or layers == []:
            return True
        patterns = self.raw.get("layers_pattern") or ()
        if isinstance(patterns, str):
            patterns = (patterns,)
        expressions = [rf"(?:^|.*?\.){p}\.(\d+)\." for p in patterns] or [r".*?\.[^.]*\.(\d+)\."]
        found = next((m for e in expressions if (m := re.match(e, path))), None)
        wanted = [layers] if isinstance(layers, int) else layers
        return found is not None and int(found[1]) in wanted


def write_config(
    config: Mapping[str, Any],
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
    *,
    rslora: bool,
) -> dict[str, Any]:
    """Return ``config`` for modules with these ranks and alphas, everything else kept.

    The general rank is the largest (servers size their buffers by it), the general alpha the one
    of that rank; patterns name the modules that differ, and only those.
    """
    rank = max(ranks.values())
    alpha = next(alphas[name] for name in ranks if ranks[name] == rank)
    pruned = config.get("peft_type") == ADALORA
    written = {key: value for key, value in config.items() if not (pruned and key in SCHEDULE)}
    written |= {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": number(alpha),
        "rank_pattern": write_pattern(ranks, rank),
        "alpha_pattern": write_pattern(alphas, alpha),
        "use_rslora": rslora,
    }
    if isinstance(config.get("init_lora_weights"), str):
        # Initialisers run again when an adapter is loaded, and some refuse ranks or need a base.
        written |= {"init_lora_weights": True, "eva_config": None}
    return dict(sorted(written.items()))


def config_of(modules: Sequence[Module], base: str | None) -> dict[str, Any]:
    """Return a configuration for modules that came without one.

    Every target is named in full: an ending such as ``q_proj`` would target layers, too, that
    the adapter does not have.
    """
    owners = dict.fromkeys(m.owner for m in modules if not isinstance(m.site, Experts))
    return {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": any(m.site == Linear(transposed=True) for m in modules),
        "inference_mode": True,
        "lora_bias": any("bias" in m.parts for m in modules),
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "target_modules": list(owners),
        "target_parameters": [m.name for m in modules if isinstance(m.site, Experts)] or None,
        "task_type": None,
        "use_dora": any("magnitude" in m.parts for m in modules),
    }


def base_model(config: Mapping[str, Any]) -> str | None:
    """Return the name or path of the base model, if the configuration has one."""
    name = config.get("base_model_name_or_path")
    return str(name) if name else None


def _lookup(config: Mapping[str, Any], field: str, path: str, default: Any) -> Any:
    value = pattern_value(config.get(field), path)
    return default if value is None else value


def _names(wanted: str | Iterable[str] | None, path: str) -> bool:
    if isinstance(wanted, str):
        return re.fullmatch(wanted, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in wanted or ())
