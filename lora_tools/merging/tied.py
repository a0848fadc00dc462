"""Tied embeddings: one tensor that reads tokens in and scores them at the end."""

from typing import NamedTuple

from lora_tools.architectures.conventions import HEADS, TOKENS, ends
from lora_tools.model import Model

WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForConditionalGeneration")
"""How the names of architectures end that score tokens."""


class Tie(NamedTuple):
    """The tensor that is both, and what the head would be called by itself."""

    embedding: str
    head: str


def tie_of(base: Model) -> Tie | None:
    """Return the tie of a base, or None if it has none.

    A configuration that does not say leaves it to the file: a model that scores tokens and has no
    head of its own is tied.
    """
    architecture = base.architecture or ""
    embedding = next((key for key in base.tensors.specs if ends(key, TOKENS)), None)
    head = next((key for key in base.tensors.specs if ends(key, HEADS)), None)
    if embedding is None or not (head or architecture.endswith(WITH_HEAD)):
        return None
    said = "tie_word_embeddings" in base.config
    if base.tied or (not said and head is None):
        masked = architecture.endswith("ForMaskedLM") and "word_embeddings" in embedding
        return Tie(embedding, head or f"{HEADS[2] if masked else HEADS[0]}.weight")
    return None
