"""Tied embeddings under adapters: whether the head is still the embedding afterwards."""

from typing import Any

import numpy as np

from lora_tools.errors import UnsupportedError
from lora_tools.files.place import Place, read_array
from lora_tools.matching.ties import TiedWeights
from lora_tools.merging.factors import load
from lora_tools.merging.matched import MatchedUpdates, WeightedAdapter
from lora_tools.merging.tensor_plan import BaseValues, Patch, TensorPlan, Tokens
from lora_tools.model import Model


def follow(weighted: WeightedAdapter, matched: MatchedUpdates, tie: TiedWeights) -> None:
    """Let the head have what an adapter means for both ends of a tied embedding.

    That is as PEFT has it (`utils/other.py`, `tuners/tuners_utils.py`): a module that is saved
    whole is a copy of its own unless ``ensure_weight_tying`` is set; the weight below an update,
    which a resized vocabulary makes PEFT save, is still the one of both; and so are trained tokens,
    unless the head has its own.
    """
    manifest = weighted.adapter.manifest
    embedding = matched.replaced.get(tie.embedding)
    if embedding is not None and tie.head not in matched.replaced:
        own = embedding.kind == "modules_to_save"
        if not own or manifest.config.get("ensure_weight_tying"):
            matched.replaced[tie.head] = embedding
    if tie.embedding in matched.tokens and tie.head not in matched.tokens:
        matched.tokens[tie.head] = matched.tokens[tie.embedding]


def settled(
    base: Model, entries: dict[str, TensorPlan], tie: TiedWeights, *, untie: bool
) -> tuple[dict[str, TensorPlan], str | None]:
    """Return the entries, the head as the embedding if both are one still; else, a note as well.

    Reads what both are made of, where that is not one and the same. Raises `UnsupportedError` for
    an encoder with a decoder, which scales its outputs by whether the two are tied.
    """
    embedding, head = entries[tie.embedding], entries[tie.head]
    if not untie and _agree(embedding, head):
        kept = {key: entry for key, entry in entries.items() if key != tie.head}
        if tie.head in base.tensors.specs:  # the file has a copy of the one tensor
            kept[tie.head] = entries[tie.head] if embedding.plain else _copy(embedding, tie.head)
        return {key: kept[key] for key in entries if key in kept}, None
    if base.config.get("is_encoder_decoder"):
        raise UnsupportedError(
            f"{base.path}: {tie.embedding} and {tie.head} are tied, and an encoder with a decoder"
            " scales its outputs by that: they cannot become two"
        ).hint("Keep the adapter beside its base.")
    note = (
        f"The base ties {tie.head} to {tie.embedding}, and they differ now: both are written, and"
        " tie_word_embeddings is false."
    )
    return _with_bias(entries, tie.head), None if untie else note


def _with_bias(entries: dict[str, TensorPlan], head: str) -> dict[str, TensorPlan]:
    """Return the entries with the bias that a head of its own has.

    Models that fill masks have one beside the head, and take it for the head's while both are tied.
    """
    module = head.removesuffix(".weight")
    own, shared = f"{module}.bias", f"{module.rpartition('.')[0]}.bias"
    if own in entries or shared not in entries:
        return entries
    return entries | {own: _copy(entries[shared], own)}


def _copy(entry: TensorPlan, key: str) -> TensorPlan:
    return TensorPlan(key, entry.spec, entry.source, entry.patches, entry.tokens)


def _agree(embedding: TensorPlan, head: TensorPlan) -> bool:
    """Whether two entries have the same numbers, if not by the same updates."""
    return (
        embedding.spec == head.spec
        and same_values(embedding.source, head.source)
        and _all_same(embedding.tokens, head.tokens, _same_tokens)
        and _all_same(embedding.patches, head.patches, _same_update)
    )


def same_values(one: BaseValues, other: BaseValues) -> bool:
    """Whether two tensors that replace one of the base's hold the same numbers."""
    if one.weight is other.weight or (one.adapter is None and other.adapter is None):
        return True
    return one.spec == other.spec and _equal(_array(one), _array(other))


def _all_same(ours: tuple[Any, ...], theirs: tuple[Any, ...], same: Any) -> bool:
    return len(ours) == len(theirs) and all(map(same, ours, theirs))


def _same_tokens(one: Tokens, other: Tokens) -> bool:
    if one.adapter is not other.adapter or one.rows != other.rows:
        return False
    arrays = one.adapter.tensors.numbers
    return one.extra == other.extra or _equal(arrays[one.extra.key], arrays[other.extra.key])


def _same_update(one: Patch, other: Patch) -> bool:
    """Whether a patch of the embedding and one of the head are the same product."""
    if one.adapter is not other.adapter or one.weight != other.weight or one.dora or other.dora:
        return False
    scale = one.module.scale * one.weight
    if other.module.scale * other.weight != scale or one.piece.start != other.piece.start:
        return False
    ours, theirs = load(one, {}), load(other, {})
    if one.piece.transposed != other.piece.transposed:  # the scale is in B, which is the other one
        ours = ours._replace(left=ours.left * scale)
        theirs = theirs._replace(right=theirs.right * scale)
    return _equal(ours.left, theirs.left) and _equal(ours.right, theirs.right)


def _array(source: BaseValues) -> Any:
    return read_array(source.values) if isinstance(source.values, Place) else source.values


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return bool(np.array_equal(one, other))
    return bool(one.shape == other.shape and (one == other).all())
