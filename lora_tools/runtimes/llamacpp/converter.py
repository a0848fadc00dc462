"""What convert_lora_to_gguf.py makes of PEFT's folders: one alpha, over the rank of each tensor."""

from lora_tools.architectures.conventions import CONV1D, HEAD
from lora_tools.runtimes.base import Breach, Rule, Subject, Verdict
from lora_tools.runtimes.checks import breach, has_only, has_pairs
from lora_tools.runtimes.fields import number
from lora_tools.runtimes.fixes import even
from lora_tools.runtimes.keys import Pair
from lora_tools.runtimes.rules import CONFIG, fields, keys, tensor_file, types
from lora_tools.runtimes.scales import read_at

FACTORS = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")
PASSED = (".base_layer.weight", "_layernorm", ".norm")


def _is_known(_: Subject, key: str) -> bool:
    return any(mark in key for mark in (*FACTORS, *PASSED))  # anywhere: so the converter looks


def _incomplete(subject: Subject) -> Breach | None:
    lone = [p.path for p in subject.pairs if (p.down is None) != (p.up is None)]
    return breach(lone, f"{len(lone)} modules lack a factor")


def _shapes(subject: Subject) -> Breach | None:
    """Find factors that are not matrices, or whose ranks, last but one and last, differ."""
    wrong = []
    for pair in subject.pairs:
        if pair.down and pair.up:
            a, b = pair.down.spec.shape, pair.up.spec.shape
            if len(a) != len(b) or len(a) < 2 or a[-2] != b[-1]:
                wrong.append(pair.path)
    return breach(wrong, f"the factors of {len(wrong)} modules are not matrices of one rank")


def _experts(subject: Subject) -> Breach | None:
    if not subject.fields.get("target_parameters"):
        return None
    stacked = [pair.path for pair in subject.pairs if pair.path.endswith("experts")]
    return breach(stacked, "stacked experts have names that the converter does not map")


def _transposed(subject: Subject) -> Breach | None:
    if not subject.fields.get("fan_in_fan_out"):
        return None
    names = tuple(f".{layer}" for layer in CONV1D)
    turned = [pair.path for pair in subject.pairs if pair.path.endswith(names)]
    return breach(
        turned, "the converter transposes Conv1D layers, whose factors PEFT has not transposed"
    )


def _head(subject: Subject) -> Breach | None:
    heads = [pair.path for pair in subject.pairs if pair.path.rpartition(".")[2] == HEAD]
    return breach(
        heads, "lm_head is adapted: the converter stops if the base ties it to its embedding"
    )


def _scale(subject: Subject, pair: Pair) -> float | None:
    alpha = number(subject.fields.get("lora_alpha"))
    if alpha is None or not pair.rank or subject.fields.get("target_parameters"):
        return None
    return alpha / pair.rank if alpha else 1.0


RULES = (
    CONFIG,
    fields("lora_alpha"),
    tensor_file(
        "The converter reads adapter_model.safetensors or adapter_model.bin.",
        "adapter_model.safetensors",
        "adapter_model.bin",
    ),
    types("lora_alpha", text="lora_alpha must be a number."),
    Rule(
        "no-factors",
        Verdict.REFUSED,
        "Factors must be named as PEFT names them.",
        has_pairs,
        final=True,
    ),
    keys(
        "The converter stops at any tensor that is not lora_A or lora_B, norms aside.",
        has_only(_is_known, "are neither lora_A nor lora_B"),
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
        "Conv1D layers are transposed with their factors, which then do not fit.",
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
)
