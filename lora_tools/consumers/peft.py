"""PEFT itself: what `PeftModel.from_pretrained` makes of an adapter, on the base it belongs to."""

import re
from collections.abc import Iterable

from lora_tools.consumers.base import Breach, Consumer, Rule, Subject, Verdict
from lora_tools.consumers.checks import (
    KINDS,
    failing,
    has_config,
    has_file,
    has_pairs,
    peft_of,
    typed,
)
from lora_tools.consumers.keys import PREFIX, WRAPPED, Pair
from lora_tools.consumers.mends import rebaked
from lora_tools.errors import some

DEFAULT = ".default.weight"
"""What ends the keys in a dump of a model whose adapter has the usual name; peft reads it."""


def _kind(subject: Subject) -> Breach | None:
    if subject.config is None or subject.config.get("peft_type"):
        return None
    return Breach("adapter_config.json has no peft_type", ["peft_type"])


def _is_lora(subject: Subject) -> bool:
    return bool(subject.config) and (subject.config or {}).get("peft_type") == "LORA"


def _types(subject: Subject) -> Breach | None:
    return typed(*KINDS)(subject) if _is_lora(subject) else None  # AdaLoRA's patterns are masks


def _owner(pair: Pair) -> str:
    """Return the module whose rank a pair has; attention hands it down to what it wraps."""
    stem = pair.stem.removeprefix(PREFIX)
    return stem.rpartition(f"{WRAPPED}.")[0] or pair.path


def _stacked(subject: Subject, pair: Pair) -> bool:
    """Whether a pair adapts a parameter, so that its factors stack the ranks of all experts."""
    parameters = (subject.config or {}).get("target_parameters")
    return bool(parameters) and not _targets(subject, pair)


def _targets(subject: Subject, pair: Pair) -> bool:
    peft = peft_of(subject)
    return peft.targets(_owner(pair)) or peft.targets(pair.path)


def _expression(subject: Subject) -> Breach | None:
    if not _is_lora(subject):
        return None
    config, peft = subject.config or {}, peft_of(subject)
    for field in ("rank_pattern", "alpha_pattern"):
        if error := failing(re.compile, config.get(field) or ()):
            return Breach(f"{field} holds what is no regular expression: {error}", [field])
    if error := failing(peft.targets, (_owner(pair) for pair in subject.pairs)):
        return Breach(f"the targets hold what is no regular expression: {error}")
    return None


def _sound(subject: Subject) -> bool:
    """Whether the configuration can be asked for ranks and targets."""
    return _is_lora(subject) and _expression(subject) is None


def _rank_zero(subject: Subject) -> Breach | None:
    if not _sound(subject):
        return None
    peft = peft_of(subject)
    low = [pair.path for pair in subject.pairs if peft.rank(_owner(pair)) <= 0]
    if not low:
        return None
    rank = peft.rank(_owner(next(pair for pair in subject.pairs if pair.path == low[0])))
    return Breach(f"the configuration gives {len(low)} modules the rank {rank}", low)


def _shapes(subject: Subject) -> Breach | None:
    if not _sound(subject) or subject.manifest is not None:
        return None  # a manifest's shapes were held against its configuration
    peft = peft_of(subject)
    wrong = {
        pair.path: (
            peft.rank(_owner(pair)),
            *(list(p.spec.shape) for p in (pair.up, pair.down) if p),
        )
        for pair in subject.pairs
        if pair.spelling.startswith("peft")
        and pair.stem.startswith(PREFIX)
        and _targets(subject, pair)
        and _misfits(pair, peft.rank(_owner(pair)))
    }
    if not wrong:
        return None
    name, (rank, *shapes) = next(iter(wrong.items()))
    return Breach(
        f"{len(wrong)} of {len(subject.pairs)} modules have tensors of another rank than the"
        f" configuration's: {name} has {some(shapes)}, the rank should be {rank}",
        list(wrong),
    )


def _misfits(pair: Pair, rank: int) -> bool:
    if pair.down and pair.down.spec.shape[:1] != (rank,):
        return True
    shape = pair.up.spec.shape if pair.up else ()
    # A grouped convolution's B has a part of the rank.
    return bool(pair.up) and (
        len(shape) < 2 or (shape[1] != rank if len(shape) == 2 else rank % shape[1] != 0)
    )


def _unprefixed(subject: Subject) -> Breach | None:
    if not _is_lora(subject):
        return None
    bare = [p.path for p in _of_peft(subject) if not p.stem.startswith(PREFIX)]
    return (
        Breach(
            f"{len(bare)} modules lack the prefix {PREFIX!r}, so their tensors are passed over",
            bare,
        )
        if bare
        else None
    )


def _named(subject: Subject) -> Breach | None:
    if not _is_lora(subject):
        return None
    named = {p.path: p.keys[0] for p in subject.pairs if p.spelling == "peft, named"}
    lost = {path: key for path, key in named.items() if not key.endswith(DEFAULT)}
    if not lost:
        return None
    key = next(iter(lost.values()))
    return Breach(
        f"an adapter's name is left in the keys ({key}), so they are passed over", list(lost)
    )


def _untargeted(subject: Subject) -> Breach | None:
    config = subject.config or {}
    if not _sound(subject) or config.get("target_modules") in (None, "all-linear"):
        return None
    if config.get("target_parameters"):
        return None  # which of a module's parameters is meant, its reader has checked
    lost = [pair.path for pair in _of_peft(subject) if not _targets(subject, pair)]
    if not lost:
        return None
    return Breach(
        f"{len(lost)} of {len(subject.pairs)} modules are not among the configuration's targets, so"
        f" their tensors are passed over",
        lost,
    )


def _no_b(subject: Subject) -> Breach | None:
    lone = [p.path for p in _of_peft(subject) if p.up is None] if _is_lora(subject) else []
    if not lone:
        return None
    return Breach(
        f"{len(lone)} of {len(subject.pairs)} modules have no lora_B, which is zero then", lone
    )


def _no_a(subject: Subject) -> Breach | None:
    lone = [p.path for p in _of_peft(subject) if p.down is None] if _is_lora(subject) else []
    if not lone:
        return None
    return Breach(
        f"{len(lone)} of {len(subject.pairs)} modules have no lora_A, which is random then", lone
    )


def _mismatched_dora(subject: Subject) -> Breach | None:
    if not _is_lora(subject):
        return None
    vectors = [key for key in subject.rest if "lora_magnitude_vector" in key]
    dora = bool((subject.config or {}).get("use_dora"))
    if dora == bool(vectors):
        return None
    if dora:
        return Breach(
            "use_dora is set, but no magnitude vector is there: the base's own norms are used"
        )
    return Breach(
        f"use_dora is not set, so {len(vectors)} magnitude vectors are passed over", vectors
    )


def _dropped_bias(subject: Subject) -> Breach | None:
    if not _is_lora(subject) or (subject.config or {}).get("lora_bias"):
        return None
    biases = [key for key in subject.rest if key.endswith(".lora_B.bias")]
    if not biases:
        return None
    return Breach(f"lora_bias is not set, so {len(biases)} biases of B are passed over", biases)


def _missing_saved(subject: Subject) -> Breach | None:
    names = (subject.config or {}).get("modules_to_save") if _is_lora(subject) else None
    if not isinstance(names, list) or not names:
        return None
    if any(f".{name}." in key for name in names for key in subject.rest):
        return None
    return Breach(f"modules_to_save names {some(names)}, but the file has no tensor of them", names)


def _missing_tokens(subject: Subject) -> Breach | None:
    config = subject.config or {}
    if not _is_lora(subject) or not config.get("trainable_token_indices"):
        return None
    if any("trainable_tokens" in key for key in subject.rest):
        return None
    return Breach("trainable_token_indices is set, but the file has no trainable tokens")


def _method(subject: Subject) -> Breach | None:
    kind = (subject.config or {}).get("peft_type")
    return None if kind in (None, "LORA") else Breach(f"peft_type is {kind}, which is not judged")


def _mixed(subject: Subject) -> Breach | None:
    if not _is_lora(subject):
        return None
    ranks = {pair.rank for pair in subject.pairs if pair.rank and not _stacked(subject, pair)}
    if len(ranks) < 2:
        return None
    return Breach(
        f"ranks from {min(ranks)} to {max(ranks)}: swapping it into a compiled model needs"
        f" prepare_model_for_compiled_hotswap(target_rank={max(ranks)}) first"
    )


def _of_peft(subject: Subject) -> Iterable[Pair]:
    return (pair for pair in subject.pairs if pair.spelling.startswith("peft"))


def _no_factors(subject: Subject) -> Breach | None:
    return has_pairs(subject) if _is_lora(subject) else None


PEFT = Consumer(
    "peft",
    "0.21.2",
    "peft/config.py, peft/utils/save_and_load.py, peft/utils/other.py, peft/tuners/lora",
    (
        Rule(
            "config",
            Verdict.REFUSED,
            "adapter_config.json must lie beside the tensors.",
            has_config,
            final=True,
        ),
        Rule(
            "kind", Verdict.REFUSED, "The configuration must say its peft_type.", _kind, final=True
        ),
        Rule(
            "tensor-file",
            Verdict.REFUSED,
            "The tensors are looked for in adapter_model.safetensors and adapter_model.bin.",
            has_file("adapter_model.safetensors", "adapter_model.bin"),
            final=True,
        ),
        Rule(
            "types",
            Verdict.REFUSED,
            "Numbers must be numbers, names names, and patterns pairs of them.",
            _types,
            final=True,
        ),
        Rule(
            "expression",
            Verdict.REFUSED,
            "Patterns are regular expressions, `(.*\\.)?key$`; one that cannot be compiled raises.",
            _expression,
            final=True,
        ),
        Rule(
            "rank-zero",
            Verdict.REFUSED,
            "A rank of 0 is refused, also one that rank_pattern gives.",
            _rank_zero,
        ),
        Rule(
            "shapes",
            Verdict.REFUSED,
            "The tensors must have the rank that the configuration gives the module; patterns match"
            " as a suffix that begins at a dot, and the first match wins.",
            _shapes,
        ),
        Rule(
            "modules-to-save",
            Verdict.REFUSED,
            "The tensors of modules_to_save must be in the file.",
            _missing_saved,
        ),
        Rule(
            "tokens",
            Verdict.REFUSED,
            "The rows of trainable_token_indices must be in the file.",
            _missing_tokens,
        ),
        Rule(
            "no-factors",
            Verdict.NOTHING,
            "Tensors that are not named as PEFT names them are passed over.",
            _no_factors,
        ),
        Rule(
            "prefix",
            Verdict.WRONG,
            "Names begin with `base_model.model.`; others are passed over without a warning.",
            _unprefixed,
            rebaked,
            whole=Verdict.NOTHING,
        ),
        Rule(
            "adapter-name",
            Verdict.WRONG,
            "Names do not hold the adapter's own, unless that is `default`; tensors whose names do"
            " are passed over.",
            _named,
            rebaked,
            whole=Verdict.NOTHING,
        ),
        Rule(
            "targets",
            Verdict.WRONG,
            "Only modules that target_modules names are adapted; other tensors are passed over.",
            _untargeted,
            whole=Verdict.NOTHING,
        ),
        Rule(
            "no-b",
            Verdict.WRONG,
            "A lora_B that the file lacks is zero.",
            _no_b,
            whole=Verdict.NOTHING,
        ),
        Rule("no-a", Verdict.WRONG, "A lora_A that the file lacks is random.", _no_a),
        Rule(
            "magnitude",
            Verdict.WRONG,
            "Magnitude vectors are read if, and only if, use_dora is set.",
            _mismatched_dora,
        ),
        Rule(
            "lora-bias",
            Verdict.WRONG,
            "A bias of B is read only if lora_bias is set.",
            _dropped_bias,
        ),
        Rule(
            "method",
            Verdict.LOADS,
            "Methods other than LoRA have rules of their own, which are not judged here.",
            _method,
        ),
        Rule(
            "hot-swap",
            Verdict.LOADS,
            "Hot-swapping into a compiled model needs equal ranks, or padding to the largest.",
            _mixed,
        ),
    ),
)
