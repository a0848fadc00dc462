"""What PEFT makes of the tensors: which it ignores, and which it misses."""

from lora_tools.errors import some
from lora_tools.formats.peft.keys import TOKENS, base_name
from lora_tools.formats.wrapped import unwrapped
from lora_tools.runtimes.base import Breach, Subject
from lora_tools.runtimes.checks import breach
from lora_tools.runtimes.keys import PREFIX, Pair
from lora_tools.runtimes.peft.configuration import of_lora, of_sound, owner, targets

DEFAULT = ".default.weight"
"""What ends the keys in a dump of a model whose adapter has the usual name; peft reads it."""


@of_sound
def shapes(subject: Subject) -> Breach | None:
    """Find factors of another rank than the configuration's."""
    if subject.manifest is not None:
        return None  # a manifest's shapes were held against its configuration
    peft = subject.peft
    wrong = {
        pair.path: (
            peft.rank(owner(pair)),
            *(list(p.spec.shape) for p in (pair.up, pair.down) if p),
        )
        for pair in _of_peft(subject)
        if pair.key_prefix.startswith(PREFIX)
        and targets(subject, pair)
        and _misfits(pair, peft.rank(owner(pair)))
    }
    if not wrong:
        return None
    name, (rank, *found) = next(iter(wrong.items()))
    return Breach(
        f"{len(wrong)} of {len(subject.pairs)} modules have tensors of another rank than the"
        f" configuration's: {name} has {some(found)}, the rank should be {rank}",
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


@of_lora
def unprefixed(subject: Subject) -> Breach | None:
    """Find modules whose names do not begin as PEFT's do."""
    bare = [p.path for p in _of_peft(subject) if not p.key_prefix.startswith(PREFIX)]
    return breach(
        bare, f"{len(bare)} modules lack the prefix {PREFIX!r}, so their tensors are ignored"
    )


@of_lora
def unsaved(subject: Subject) -> Breach | None:
    """Find modules that are saved whole, and tokens, under names that PEFT does not look for.

    It looks each of them up by its name (`set_peft_model_state_dict`) and raises a `KeyError`.
    """
    names = subject.fields.get("modules_to_save")
    names = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    wanted = {
        key: expected
        for key in subject.rest
        if TOKENS in key or any(f".{name}." in f".{key}" for name in names)
        if (expected := _expected(key)) != key and expected not in subject.rest
    }
    if not wanted:
        return None
    key, expected = next(iter(wanted.items()))
    return Breach(
        f"{len(wanted)} of the tensors beside the modules have other names than PEFT looks for:"
        f" {key}, which should be {expected}",
        list(wanted),
    )


def _expected(key: str) -> str:
    """Return what PEFT calls a tensor that is saved whole, or trained tokens."""
    key = unwrapped(key)
    if TOKENS in key:
        return PREFIX + key[: key.index(TOKENS)].removeprefix(PREFIX) + TOKENS
    return PREFIX + base_name(key)


@of_lora
def wrapped(subject: Subject) -> Breach | None:
    """Find names with what wrapped the model in training as a part of the path."""
    keys = {p.path: p.keys[0] for p in _of_peft(subject) if p.key_prefix.startswith(PREFIX)}
    lost = {path: key for path, key in keys.items() if unwrapped(key) != key}
    if not lost:
        return None
    key = next(iter(lost.values()))
    return Breach(f"a wrapper's name is left in the keys ({key}), so they are ignored", list(lost))


@of_lora
def named(subject: Subject) -> Breach | None:
    """Find names that hold the adapter's own."""
    names = {p.path: p.keys[0] for p in subject.pairs if p.naming == "peft, named"}
    lost = {path: key for path, key in names.items() if not key.endswith(DEFAULT)}
    if not lost:
        return None
    key = next(iter(lost.values()))
    return Breach(f"an adapter's name is left in the keys ({key}), so they are ignored", list(lost))


@of_sound
def untargeted(subject: Subject) -> Breach | None:
    """Find modules that the configuration does not target."""
    if subject.fields.get("target_modules") in (None, "all-linear"):
        return None
    if subject.fields.get("target_parameters"):
        return None  # which of a module's parameters is meant, its reader has checked
    lost = [pair.path for pair in _of_peft(subject) if not targets(subject, pair)]
    return breach(
        lost,
        f"{len(lost)} of {len(subject.pairs)} modules are not among the configuration's targets, so"
        f" their tensors are ignored",
    )


@of_lora
def no_b(subject: Subject) -> Breach | None:
    """Find modules without their second factor."""
    lone = [p.path for p in _of_peft(subject) if p.up is None]
    return breach(
        lone, f"{len(lone)} of {len(subject.pairs)} modules have no lora_B, which is zero then"
    )


@of_lora
def no_a(subject: Subject) -> Breach | None:
    """Find modules without their first factor."""
    lone = [p.path for p in _of_peft(subject) if p.down is None]
    return breach(
        lone, f"{len(lone)} of {len(subject.pairs)} modules have no lora_A, which is random then"
    )


@of_lora
def mismatched_dora(subject: Subject) -> Breach | None:
    """Find magnitude vectors without `use_dora`, and the other way round."""
    vectors = [key for key in subject.rest if "lora_magnitude_vector" in key]
    dora = bool(subject.fields.get("use_dora"))
    if dora == bool(vectors):
        return None
    if dora:
        return Breach(
            "use_dora is set, but no magnitude vector is there: the base's own norms are used"
        )
    return Breach(f"use_dora is not set, so {len(vectors)} magnitude vectors are ignored", vectors)


@of_lora
def dropped_bias(subject: Subject) -> Breach | None:
    """Find biases of B without `lora_bias`."""
    if subject.fields.get("lora_bias"):
        return None
    biases = [key for key in subject.rest if key.endswith(".lora_B.bias")]
    return breach(biases, f"lora_bias is not set, so {len(biases)} biases of B are ignored")


@of_lora
def mixed_ranks(subject: Subject) -> Breach | None:
    """Remark on ranks that differ."""
    ranks = {pair.rank for pair in subject.pairs if pair.rank and not _stacked(subject, pair)}
    if len(ranks) < 2:
        return None
    return Breach(
        f"ranks from {min(ranks)} to {max(ranks)}: swapping it into a compiled model needs"
        f" prepare_model_for_compiled_hotswap(target_rank={max(ranks)}) first"
    )


def _stacked(subject: Subject, pair: Pair) -> bool:
    """Whether a pair adapts a parameter, so that its factors stack the ranks of all experts."""
    return bool(subject.fields.get("target_parameters")) and not targets(subject, pair)


def _of_peft(subject: Subject) -> list[Pair]:
    return [pair for pair in subject.pairs if pair.naming.startswith("peft")]
