"""llama.cpp, by way of convert_lora_to_gguf.py: one alpha, divided by the rank of each tensor."""

from lora_tools.consumers.base import Breach, Consumer, Rule, Subject, Verdict
from lora_tools.consumers.checks import (
    has_config,
    has_fields,
    has_file,
    has_pairs,
    number,
    read_at,
    typed,
)
from lora_tools.consumers.keys import Pair
from lora_tools.consumers.mends import even, uniform

FACTORS = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")
PASSED = (".base_layer.weight", "_layernorm", ".norm")


def _strange(subject: Subject) -> Breach | None:
    # The converter looks for these anywhere in a name.
    strange = [key for key in subject.specs if not any(mark in key for mark in (*FACTORS, *PASSED))]
    return (
        Breach(f"{len(strange)} tensors are neither lora_A nor lora_B", strange)
        if strange
        else None
    )


def _strange_mend(subject: Subject) -> str | None:
    named = {key for pair in subject.pairs if pair.spelling == "peft, named" for key in pair.keys}
    breach = _strange(subject)
    return uniform(subject) if breach and set(breach.where) <= named else None


def _incomplete(subject: Subject) -> Breach | None:
    lone = [p.path for p in subject.pairs if (p.down is None) != (p.up is None)]
    return Breach(f"{len(lone)} modules lack a factor", lone) if lone else None


def _shapes(subject: Subject) -> Breach | None:
    """Find factors that are not matrices, or whose ranks, last but one and last, differ."""
    wrong = []
    for pair in subject.pairs:
        if pair.down and pair.up:
            a, b = pair.down.spec.shape, pair.up.spec.shape
            if len(a) != len(b) or len(a) < 2 or a[-2] != b[-1]:
                wrong.append(pair.path)
    return (
        Breach(f"the factors of {len(wrong)} modules are not matrices of one rank", wrong)
        if wrong
        else None
    )


def _experts(subject: Subject) -> Breach | None:
    if not (subject.config or {}).get("target_parameters"):
        return None
    stacked = [pair.path for pair in subject.pairs if pair.path.endswith("experts")]
    return (
        Breach("stacked experts have names that the converter does not map", stacked)
        if stacked
        else None
    )


def _transposed(subject: Subject) -> Breach | None:
    if not (subject.config or {}).get("fan_in_fan_out"):
        return None
    names = (".c_attn", ".c_proj", ".c_fc")
    turned = [pair.path for pair in subject.pairs if pair.path.endswith(names)]
    if not turned:
        return None
    return Breach(
        "the converter transposes Conv1D layers, whose factors PEFT has not transposed", turned
    )


def _head(subject: Subject) -> Breach | None:
    heads = [pair.path for pair in subject.pairs if pair.path.rpartition(".")[2] == "lm_head"]
    if not heads:
        return None
    return Breach(
        "lm_head is adapted: the converter stops if the base ties it to its embedding", heads
    )


def _scale(subject: Subject, pair: Pair) -> float | None:
    alpha = number((subject.config or {}).get("lora_alpha"))
    if alpha is None or not pair.rank or (subject.config or {}).get("target_parameters"):
        return None
    return alpha / pair.rank if alpha else 1.0


LLAMACPP = Consumer(
    "llama.cpp",
    "2026.08",
    "convert_lora_to_gguf.py at 0b03ada, src/llama-adapter.cpp, src/llama-adapter.h",
    (
        Rule(
            "config",
            Verdict.REFUSED,
            "adapter_config.json must lie beside the tensors.",
            has_config,
            final=True,
        ),
        Rule(
            "fields",
            Verdict.REFUSED,
            "The configuration must have lora_alpha.",
            has_fields("lora_alpha"),
        ),
        Rule(
            "tensor-file",
            Verdict.REFUSED,
            "The converter reads adapter_model.safetensors or adapter_model.bin.",
            has_file("adapter_model.safetensors", "adapter_model.bin"),
            final=True,
        ),
        Rule(
            "types",
            Verdict.REFUSED,
            "lora_alpha must be a number.",
            typed("lora_alpha"),
            final=True,
        ),
        Rule(
            "no-factors",
            Verdict.REFUSED,
            "Factors must be named as PEFT names them.",
            has_pairs,
            final=True,
        ),
        Rule(
            "keys",
            Verdict.REFUSED,
            "The converter stops at any tensor that is not lora_A or lora_B, norms aside.",
            _strange,
            _strange_mend,
        ),
        Rule("incomplete", Verdict.REFUSED, "Every factor needs its other one.", _incomplete),
        Rule("matrices", Verdict.REFUSED, "Factors must be matrices of one rank.", _shapes),
        Rule(
            "stacked-experts",
            Verdict.REFUSED,
            "Experts must not be stacked in one tensor.",
            _experts,
        ),
        Rule(
            "transposed",
            Verdict.REFUSED,
            "GPT-2's Conv1D layers are transposed with their factors, which then do not fit.",
            _transposed,
        ),
        Rule(
            "tied-head",
            Verdict.LOADS,
            "An adapted lm_head is refused if the base ties it to its embedding.",
            _head,
        ),
        Rule(
            "one-alpha",
            Verdict.WRONG,
            "One alpha for the whole adapter, divided by the rank of each tensor, or scale 1 if it"
            " is 0: alpha_pattern and use_rslora are lost.",
            read_at("llama.cpp", _scale, "divides one alpha by each tensor's rank"),
            even,
        ),
    ),
)
