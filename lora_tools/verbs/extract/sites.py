"""What a base weight is to the adapter: which kind of layer it belongs to, by name and shape."""

from typing import NamedTuple

from lora_tools.files.header import Spec
from lora_tools.formats.sites import Convolution, Embedding, Experts, Linear, Site
from lora_tools.model import Model

WEIGHT = ".weight"

# Names that models of transformers, and torch's own, give to tables that are looked up.
EMBEDDINGS = frozenset(
    {
        "embed_in",
        "embed_positions",
        "embed_tokens",
        "embedding",
        "embeddings",
        "position_embeddings",
        "shared",
        "tok_embeddings",
        "token_type_embeddings",
        "word_embeddings",
        "wpe",
        "wte",
    }
)
HEADS = frozenset({"lm_head", "embed_out", "output"})
"""Output layers whose rows belong to tokens."""

# modeling_utils.Conv1D, a linear layer stored as (in, out), in these models of transformers.
CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
CONV1D_LAYERS = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
# Experts stored as (count, in, out) in these models; as (count, out, in) in all others.
TRANSPOSED_EXPERTS = frozenset({"gpt_oss", "llama4", "llama4_text"})


class Place(NamedTuple):
    """A weight as matrices: ``stack`` of them, each ``rows`` x ``columns`` as they are stored."""

    module: str
    site: Site
    stack: int
    rows: int
    columns: int
    transposed: bool
    """Whether the stored matrix is the update's transpose, (in, out)."""

    @property
    def out(self) -> int:
        """Rows of the update."""
        return self.columns if self.transposed else self.rows

    @property
    def inp(self) -> int:
        """Columns of the update."""
        return self.rows if self.transposed else self.columns


def place(key: str, spec: Spec, model: Model) -> Place | None:
    """Return where an update of this weight goes, or None if no LoRA can hold it."""
    shape = spec.shape
    if len(shape) < 2 or min(shape) < 1:
        return None
    name = key.removesuffix(WEIGHT)
    parent, _, leaf = name.rpartition(".")
    rows, columns = shape[0], spec.numel // shape[0]
    if name == key:
        if len(shape) != 3 or "experts" not in parent.split("."):
            return None
        swapped = _kind(model) in TRANSPOSED_EXPERTS
        return Place(key, Experts(leaf, shape[0]), shape[0], shape[1], shape[2], swapped)
    if len(shape) > 5:
        return None
    if len(shape) > 2:
        return Place(name, Convolution(shape[1], shape[2:]), 1, rows, columns, False)
    if leaf in EMBEDDINGS:
        return Place(name, Embedding(), 1, rows, columns, True)
    swapped = _kind(model) in CONV1D_MODELS and leaf in CONV1D_LAYERS
    return Place(name, Linear(transposed=swapped), 1, rows, columns, swapped)


def by_token(place: Place) -> bool:
    """Whether its rows belong to the tokens of a vocabulary."""
    return isinstance(place.site, Embedding) or place.module.rpartition(".")[2] in HEADS


def _kind(model: Model) -> str:
    return model.fields.text("model_type") or ""
