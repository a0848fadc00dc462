"""Tied embeddings: one tensor that reads tokens in and scores them at the end."""

from typing import NamedTuple

from lora_tools.model import Model

EMBEDDINGS = (
    "embed_tokens.weight",
    "word_embeddings.weight",
    "wte.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
    "shared.weight",
)
HEADS = ("lm_head.weight", "embed_out.weight", "cls.predictions.decoder.weight", "output.weight")
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
    embedding = next((key for key in base.tensors.specs if is_one_of(key, EMBEDDINGS)), None)
    head = next((key for key in base.tensors.specs if is_one_of(key, HEADS)), None)
    if embedding is None or not (head or architecture.endswith(WITH_HEAD)):
        return None
    said = "tie_word_embeddings" in base.config
    if base.tied or (not said and head is None):
        masked = architecture.endswith("ForMaskedLM") and "word_embeddings" in embedding
        return Tie(embedding, head or (HEADS[2] if masked else HEADS[0]))
    return None


def is_one_of(key: str, endings: tuple[str, ...]) -> bool:
    """Whether a name ends with one of these, from a dot on."""
    return any(f".{key}".endswith(f".{ending}") for ending in endings)
