"""Tied embeddings: one tensor that reads tokens in and scores them at the end."""

from typing import NamedTuple

from lora_tools.architectures import families
from lora_tools.architectures.conventions import ANY_HEADS, HEADS, MASKED, TOKENS, ends
from lora_tools.architectures.family import Family
from lora_tools.architectures.index import Candidate, positions
from lora_tools.model import Model

WITH_HEAD = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForConditionalGeneration")
"""How the names of architectures end that score tokens."""


class TiedWeights(NamedTuple):
    """The tensor that is both, and what the head would be called by itself."""

    embedding: str
    head: str


def tie_of(base: Model) -> TiedWeights | None:
    """Return the tie of a base, or None if it has none.

    Its family says which tensors they are, else their names do. A configuration that does not say
    whether they are one leaves it to the family, and to the file: a model that scores tokens and
    has no head of its own is tied.
    """
    specs, architecture = base.tensors.specs, base.architecture or ""
    scores = architecture.endswith(WITH_HEAD)
    if not scores and not any(ends(key, ANY_HEADS) for key in specs):
        return None  # without asking the families, whose import takes longer
    pair, always = _by_family(base), False
    if pair is not None:
        embedding, name, always = pair
        head = name if name in specs else None
    else:
        by_name = next((key for key in specs if ends(key, TOKENS)), None)
        head = next((key for key in specs if ends(key, HEADS)), None)
        if by_name is None:
            return None
        embedding = by_name
        masked = architecture.endswith("ForMaskedLM") and MASKED in embedding
        name = head or f"{HEADS[2] if masked else HEADS[0]}.weight"
    if not (head or scores):
        return None
    stated = "tie_word_embeddings" in base.config
    if base.tied or (not stated and (head is None or always)):
        return TiedWeights(embedding, name)
    return None


def _by_family(base: Model) -> tuple[str, str, bool] | None:
    """Return embedding and head of a known family, and whether they are one by default."""
    kind = base.fields.text("model_type")
    for family in families.FAMILIES:
        if kind and kind in family.types and (tie := family.tie):
            for dialect in (family.hub, *family.dialects):
                embedding, head = (
                    _key(path, family, dialect) for path in (tie.embedding, tie.head)
                )
                if embedding in base.tensors.specs:
                    return embedding, head or f"{tie.head}.weight", tie.always
    return None


def _key(path: str, family: Family, dialect: str) -> str:
    """Return what a dialect calls the weight of a fine module; "" if it has none."""
    found = next(positions(path, None, Candidate(family, dialect)), None)
    return f"{found.path}.weight" if found else ""
