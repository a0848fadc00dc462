"""Checks of adapter_config.json: what forbids a reading, and what cannot be read at all."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.formats.peft.config import DEFAULT_ALPHA, DEFAULT_RANK

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
        ).hint(_remedy(start))
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


def _remedy(start: str) -> str:
    residual = (
        " Beside the altered base, saved as a model of its own, it is a plain adapter: set"
        " init_lora_weights to true and base_model_name_or_path to that model."
    )
    if start.lower().startswith("loftq"):
        return (
            "PEFT's `path_initial_model_for_weight_conversion` does not undo LoftQ, whose base is"
            " quantised." + residual
        )
    return (
        "In PEFT, save it with `path_initial_model_for_weight_conversion`, which turns it into"
        " an adapter of the original base." + residual
    )


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
    layers = config.get("layers_to_transform")
    if not all(isinstance(n, int) for n in (layers if isinstance(layers, list) else [layers or 0])):
        raise FormatError(f"adapter_config.json: layers_to_transform is {layers!r}")
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
