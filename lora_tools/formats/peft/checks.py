"""Checks of adapter_config.json: what forbids a reading, and what cannot be read at all."""

from collections.abc import Callable, Mapping
from typing import Any

from lora_tools.errors import UnsupportedError, some
from lora_tools.files.typed import Fields, is_count, is_number, shown
from lora_tools.formats.expressions import Expression
from lora_tools.formats.peft.config import DEFAULT_ALPHA, DEFAULT_RANK, PeftConfig

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


def check_variant(config: Mapping[str, Any]) -> None:
    """Raise `UnsupportedError` if the configuration means something else than added matrices."""
    kind = config.get("peft_type") or "LORA"
    if kind != "LORA":
        named = kind if isinstance(kind, str) else shown(kind)
        raise UnsupportedError(f"adapter_config.json: peft_type is {named}, not LORA").hint(
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
            f" {some(unknown)}"
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


def check_types(config: Mapping[str, Any]) -> PeftConfig:
    """Return the configuration with its meanings; `FormatError` for one that cannot be read.

    That names the field, what it holds and what it should.
    """
    peft = PeftConfig(config)
    fields = peft.fields
    for field in ("base_model_name_or_path", "peft_type"):
        fields.text(field)
    for field in (
        "use_rslora",
        "use_dora",
        "fan_in_fan_out",
        "lora_bias",
        "ensure_weight_tying",
    ):
        fields.flag(field)
    fields.texts("target_parameters")
    for patterns in (peft.ranks, peft.alphas):
        patterns.check()
    peft.saved.check()
    for layer in peft.layers:
        layer.check()
    for names in (peft.targeted, peft.excluded):
        if isinstance(names, Expression):
            names.check()
    layers = config.get("layers_to_transform")
    numbers = layers if isinstance(layers, list) else [0 if layers is None else layers]
    if any(type(number) is not int for number in numbers):
        raise fields.refusal("layers_to_transform", "the number of a layer, or a list of them")
    _check_numbers(fields, "r", "rank_pattern", DEFAULT_RANK, is_count, "a rank")
    _check_numbers(fields, "lora_alpha", "alpha_pattern", DEFAULT_ALPHA, is_number, "a number")
    return peft


def _check_numbers(
    fields: Fields,
    field: str,
    pattern: str,
    default: float,
    fits: Callable[[object], bool],
    expected: str,
) -> None:
    if not fits(fields.values.get(field, default)):
        raise fields.refusal(field, expected)
    inner = fields.mapping(pattern)
    for key, value in inner.values.items():
        if not fits(value):
            raise inner.refusal(key, expected)
