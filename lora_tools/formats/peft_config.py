"""PEFT's adapter_config.json: what its fields mean for the tensors, and which forbid a reading."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lora_tools.errors import FormatError, UnsupportedError

# Read in peft 0.21.2 (`tuners/lora/config.py`, `utils/other.py`, `tuners/tuners_utils.py`).
DEFAULT_RANK = 8
DEFAULT_ALPHA = 8

ALTERED_BASE = ("pissa", "corda", "olora", "lora_ga", "loftq")
"""Initialisations that change the base weights: the adapter is a difference from those."""

NOT_ADDITIVE = {
    "alora_invocation_tokens": "aLoRA is switched on by tokens, so it is not an update of weights",
    "use_qalora": "QA-LoRA pools its inputs by groups before A",
    "use_bdlora": "BD-LoRA stores block-diagonal factors",
    "kasa_config": "KaSA truncates the base weight and has a diagonal between the factors",
    "monteclora_config": "MonteCLoRA samples around its factors",
    "velora_config": "VeLoRA changes what its layers compute",
    "arrow_config": "Arrow routes tokens between several adapters",
}

KNOWN = frozenset(
    {
        "alora_invocation_tokens",
        "alpha_pattern",
        "arrow_config",
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "kasa_config",
        "layer_replication",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_bias",
        "lora_dropout",
        "lora_ga_config",
        "megatron_config",
        "megatron_core",
        "modules_to_save",
        "monteclora_config",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "target_modules",
        "target_parameters",
        "task_type",
        "trainable_token_indices",
        "use_bdlora",
        "use_dora",
        "use_qalora",
        "use_rslora",
        "velora_config",
    }
)

KINDS: Mapping[str, tuple[Any, ...]] = {
    "rank_pattern": (Mapping,),
    "alpha_pattern": (Mapping,),
    "target_modules": (str, list),
    "exclude_modules": (str, list),
    "layers_pattern": (str, list),
    "modules_to_save": (list,),
    "target_parameters": (list,),
}
"""The fields that hold names or expressions for them, and what they may be."""

NAMES = frozenset({"target_modules", "exclude_modules", "target_parameters"})
"""Those whose lists hold plain names; all else is matched as a regular expression."""


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


def pattern_value(pattern: Mapping[str, Any] | None, path: str) -> Any:
    """Return the first entry of a rank or alpha pattern that matches ``path``, or None.

    The keys are regular expressions for a suffix of the path that begins at a dot; the first in
    the order of the file wins (`peft.utils.other.get_pattern_key`).
    """
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return (pattern or {}).get(path)  # the name itself, though it is no expression for itself


def check_variant(config: Mapping[str, Any]) -> None:
    """Raise `UnsupportedError` if the configuration means something else than added matrices."""
    kind = config.get("peft_type") or "LORA"
    if kind != "LORA":
        raise UnsupportedError(f"adapter_config.json: peft_type is {kind}, not LORA").hint(
            "Only LoRA adapters are low-rank updates that can be re-factored."
        )
    for field, reason in NOT_ADDITIVE.items():
        if config.get(field):
            raise UnsupportedError(f"adapter_config.json: {field} is set: {reason}")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(ALTERED_BASE):
        raise UnsupportedError(
            f"adapter_config.json: init_lora_weights is {start!r}: the adapter belongs to a base"
            " whose weights that initialisation changed"
        ).hint(
            "In PEFT, save it with `path_initial_model_for_weight_conversion`, which turns it into"
            " an adapter of the original base."
        )
    unknown = [
        key
        for key, value in config.items()
        if value and key not in KNOWN and (key.startswith("use_") or key.endswith("_config"))
    ]
    if unknown:
        raise UnsupportedError(
            f"adapter_config.json: unknown fields that may change what the tensors mean:"
            f" {', '.join(unknown)}"
        ).hint("If they do not, remove them from the configuration.")


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
    written = dict(config)
    written |= {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": _number(alpha),
        "rank_pattern": write_pattern(ranks, rank),
        "alpha_pattern": write_pattern(alphas, alpha),
        "use_rslora": rslora,
    }
    if isinstance(config.get("init_lora_weights"), str):
        # Initialisers run again when an adapter is loaded, and some refuse ranks or need a base.
        written |= {"init_lora_weights": True, "eva_config": None}
    return dict(sorted(written.items()))


def write_pattern(values: Mapping[str, float], default: float) -> dict[str, float]:
    """Return a pattern that gives each path its value, in plain names where PEFT reads them right.

    In alphabetical order, into which PEFT sorts patterns when it saves, so that the first match
    stays the same one.

    >>> write_pattern({"l.0.q": 4, "l.1.q": 8}, default=8)
    {'l.0.q': 4}
    """
    plain = {path: _number(values[path]) for path in sorted(values) if values[path] != default}
    exact = {f"^{re.escape(path)}": value for path, value in plain.items()}
    for path, value in values.items():
        try:
            found = pattern_value(plain, path)
        except re.error:  # a name need not be an expression
            return exact
        if (default if found is None else found) != value:
            return exact
    return plain


def base_model(config: Mapping[str, Any]) -> str | None:
    """Return the name or path of the base model, if the configuration has one."""
    name = config.get("base_model_name_or_path")
    return str(name) if name else None


def check_types(config: Mapping[str, Any]) -> None:
    """Raise `FormatError` for fields whose values make them unreadable."""
    for field, kinds in KINDS.items():
        value = config.get(field)
        if value is None:
            continue
        if not isinstance(value, kinds):
            raise FormatError(f"adapter_config.json: {field} is {value!r}")
        if isinstance(value, str):
            _check_expression(field, value)
        else:
            _check_entries(field, value)
    for rank in [config.get("r", DEFAULT_RANK), *(config.get("rank_pattern") or {}).values()]:
        if not _is_number(rank) or rank != int(rank):
            raise FormatError(f"adapter_config.json: {rank!r} is not a rank")
    for alpha in [
        config.get("lora_alpha", DEFAULT_ALPHA),
        *(config.get("alpha_pattern") or {}).values(),
    ]:
        if not _is_number(alpha):
            raise FormatError(f"adapter_config.json: {alpha!r} is not a number for alpha")


def _check_entries(field: str, entries: Iterable[Any]) -> None:
    for entry in entries:
        if not isinstance(entry, str):
            raise FormatError(f"adapter_config.json: {field} holds {entry!r}, not a name")
        if field not in NAMES:
            _check_expression(field, entry)


def _check_expression(field: str, expression: str) -> None:
    try:
        re.compile(expression)
    except re.error as error:
        raise FormatError(
            f"adapter_config.json: {field}: {expression!r} is not a regular expression ({error})"
        ) from error


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _lookup(config: Mapping[str, Any], field: str, path: str, default: Any) -> Any:
    value = pattern_value(config.get(field), path)
    return default if value is None else value


def _names(wanted: str | Iterable[str] | None, path: str) -> bool:
    if isinstance(wanted, str):
        return re.fullmatch(wanted, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in wanted or ())


def _number(value: float) -> float:
    return int(value) if float(value).is_integer() else value
