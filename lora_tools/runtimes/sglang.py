"""SGLang: one rank and one scale, read from PEFT's configuration."""

import re
from collections.abc import Iterable

from lora_tools.architectures.conventions import EMBEDDING, HEAD, PACKED, QUERY, VALUE
from lora_tools.errors import some
from lora_tools.files.typed import shown
from lora_tools.runtimes.base import Breach, Rule, Runtime, Subject, Verdict
from lora_tools.runtimes.checks import breach, has_pairs
from lora_tools.runtimes.fixes import even, refolded, uniform
from lora_tools.runtimes.keys import Pair
from lora_tools.runtimes.rules import CONFIG, DORA, fields, types
from lora_tools.runtimes.scales import config_scale, read_at

LAYER = re.compile(r"layers\.\d+\.")
EMBEDDINGS = (EMBEDDING, HEAD, "unembed_tokens")
ALL = ("all", "all-linear")
TENSORS = (".safetensors", ".bin", ".pt")


def _tensors(subject: Subject) -> Breach | None:
    if any(name.endswith(TENSORS) for name in subject.files):
        return None
    return Breach(f"the folder has no tensors, only {some(subject.files, 3)}")


def _kind(subject: Subject) -> Breach | None:
    kind = subject.fields.get("peft_type", "LORA")
    if isinstance(kind, str) and kind.lower() == "lora":
        return None
    return Breach(f"peft_type is {shown(kind)}", ["peft_type"])


def _regex(subject: Subject) -> Breach | None:
    wanted = subject.fields.get("target_modules", [])
    if isinstance(wanted, str) and wanted not in ALL:
        return Breach(
            f"target_modules is the regular expression {shown(wanted)}", ["target_modules"]
        )
    return None


def _added_tokens(subject: Subject) -> Breach | None:
    if "added_tokens.json" not in subject.files:
        return None
    return Breach(
        "added_tokens.json lies in the folder: it is refused if any of its tokens is beyond the"
        " base's vocabulary; if none is, the file can be taken away",
        ["added_tokens.json"],
    )


def _two_dimensional(subject: Subject) -> list[Pair]:
    return [pair for pair in subject.pairs if pair.down and len(pair.down.spec.shape) == 2]


def _mixed_ranks(subject: Subject) -> Breach | None:
    general = subject.fields.get("r")
    if not isinstance(general, int):
        return None
    stacked = bool(subject.fields.get("target_parameters"))
    other = {
        pair.path: pair.rank
        for pair in _two_dimensional(subject)
        if pair.rank and pair.rank != general and not (stacked and pair.path.endswith("experts"))
    }
    if not other:
        return None
    name, rank = next(iter(other.items()))
    return Breach(
        f"r is {general}, but {len(other)} of {len(subject.pairs)} modules have another rank"
        f" ({name}: {rank}), which does not fit the buffers",
        list(other),
    )


def _query_alone(subject: Subject) -> Breach | None:
    """Find query projections without a value projection, whose absence raises a KeyError."""
    key_prefixes = {pair.key_prefix for pair in subject.pairs}
    lone = [
        s
        for s in key_prefixes
        if s.endswith(QUERY) and s.removesuffix(QUERY) + VALUE not in key_prefixes
    ]
    lone = [key_prefix for key_prefix in lone if not key_prefix.endswith(PACKED)]
    return breach(sorted(lone), f"{len(lone)} q_proj have no v_proj beside them to be packed with")


def _passed_over(subject: Subject) -> Breach | None:
    targets = subject.fields.get("target_modules") or []
    names = set(EMBEDDINGS) & set(targets) if isinstance(targets, list) else set(EMBEDDINGS)
    lost = [key for key in subject.specs if not LAYER.search(key) and not _any(names, key)]
    if lost and len(lost) == len(subject.specs):
        return Breach("no tensor belongs to `layers.N`", [p.key_prefix for p in subject.pairs])
    return breach(lost, f"{len(lost)} tensors outside `layers.N` are ignored")


def _others(subject: Subject) -> Breach | None:
    others = [key for key in subject.rest if LAYER.search(key)]
    return breach(others, f"{len(others)} tensors of layers are no factors")


def _any(names: Iterable[str], key: str) -> bool:
    return any(name in key for name in names)


SGLANG = Runtime(
    "sglang",
    "0.5.23",
    "sglang/srt/lora/lora_config.py, lora.py, lora_manager.py, mem_pool.py, utils.py",
    (
        CONFIG,
        fields("peft_type", "r", "lora_alpha", "target_modules"),
        Rule("kind", Verdict.REFUSED, "peft_type must be LORA.", _kind, final=True),
        Rule(
            "tensor-file", Verdict.REFUSED, "Tensors must lie in the folder.", _tensors, final=True
        ),
        types("r", "lora_alpha", "target_modules"),
        Rule(
            "regex",
            Verdict.REFUSED,
            "target_modules must be a list, or one of the words all and all-linear.",
            _regex,
            refolded,
        ),
        Rule(
            "added-tokens",
            Verdict.REFUSED,
            "Adapters that add tokens to the vocabulary are refused.",
            _added_tokens,
        ),
        DORA,
        Rule(
            "mixed-ranks",
            Verdict.REFUSED,
            "Every module must have the rank r: rank_pattern is not read, and factors of another"
            " rank do not fit the buffers.",
            _mixed_ranks,
            uniform,
        ),
        Rule(
            "query-alone",
            Verdict.REFUSED,
            "A q_proj is packed with the v_proj beside it, which must be in the adapter.",
            _query_alone,
        ),
        Rule(
            "no-factors",
            Verdict.NO_EFFECT,
            "Tensors that are not named as PEFT names them are ignored.",
            has_pairs,
        ),
        Rule(
            "ignored",
            Verdict.WRONG,
            "Only tensors of `layers.N` and targeted embeddings are read; others are ignored.",
            _passed_over,
            whole=Verdict.NO_EFFECT,
        ),
        Rule(
            "others",
            Verdict.WRONG,
            "Of a layer only factors are read; other tensors are ignored, or taken for a second"
            " factor and refused.",
            _others,
        ),
        Rule(
            "one-scale",
            Verdict.WRONG,
            "One scale for the whole adapter, lora_alpha / r: neither alpha_pattern nor use_rslora"
            " is read.",
            read_at(
                "sglang", lambda subject, pair: config_scale(subject), "reads lora_alpha / r alone"
            ),
            even,
        ),
    ),
)
