"""What models call their parts when no table has them: words that most libraries share."""

from collections.abc import Mapping
from typing import TypeAlias

Ways: TypeAlias = tuple[tuple[str, ...], ...]

GATE_UP: Ways = (("gate_proj", "up_proj"), ("w1", "w3"), ("fc1", "fc3"))
DOWN: Ways = (("down_proj",), ("w2",), ("fc2",))
QUERY, KEY, VALUE = "q_proj", "k_proj", "v_proj"
PACKED = "qkv_proj"
FUSED: Mapping[str, Ways] = {
    PACKED: ((QUERY, KEY, VALUE),),
    "gate_up_proj": GATE_UP[:2],
    "in_proj_weight": ((QUERY, KEY, VALUE),),
}
"""A fused projection, and the names of its parts in the order of their rows."""

PACKED_PARAMETER = ".in_proj_weight"
"""What stands behind the path of torch's own attention, whose fused weight is its parameter."""
WRAPPED_ENCODER = "text_model."
"""What text encoders have before their paths, or had until transformers 5.6."""

STACKS: Mapping[str, Ways] = {
    "gate_up_proj": GATE_UP,
    "down_proj": DOWN,
    "up_proj": (("up_proj",),),
}
"""Parameters that stack experts' matrices, and what the layers are called one by one."""
RENAMED_EXPERTS = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
"""Targets that PEFT takes for layers of experts, in models that stack those."""
EXPERT_PARAMETERS = ("gate_up_proj", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
"""Parameters of stacked experts in the order in which models define them."""

RENAMED = ((".mlp.", ".block_sparse_moe."), (".mlp.", ".feed_forward."))
"""What transformers 5 calls a layer, and what the files of older models call it."""

TRANSPOSED_EXPERTS = frozenset({"gpt_oss", "llama4", "llama4_text"})
"""Models whose stacked experts are stored as (expert, in, out)."""

PEFT_TRANSPOSED = frozenset({"gpt_oss", "openai_privacy_filter", "aria", "aria_text"})
"""Those of which PEFT knows it (transformers' ``is_transposed``), and so reads A as the input."""
STACKED_LAYERS = frozenset({"input_linear", "output_linear"})
"""Layers that stack the matrices of experts in their weight."""
ROUTERS = frozenset({"gate", "router"})
"""Layers beside experts that choose among them."""
MAMBAS = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})
"""Models whose kernels read weights behind a wrapper's back, so that PEFT refuses some layers."""
MAMBA_LAYERS = frozenset({"conv1d", "out_proj"})
"""Those layers."""

EMBEDDINGS = frozenset(
    {
        "embed_in",
        "embed_positions",
        "embed_tokens",
        "embedding",
        "embeddings",
        "pos_embed",
        "position_embedding",
        "position_embeddings",
        "relative_attention_bias",
        "shared",
        "tile_embedding",
        "tok_embeddings",
        "token_embedding",
        "token_type_embeddings",
        "word_embeddings",
        "wpe",
        "wte",
    }
)
"""Modules whose rows are looked up."""
ONLY_TOKENS = ("embed_tokens", "word_embeddings", "wte", "tok_embeddings")
TOKENS = (*ONLY_TOKENS, "embed_in", "shared")
"""Those whose rows are the tokens of a vocabulary; the first names mean nothing else anywhere."""
HEADS = ("lm_head", "embed_out", "cls.predictions.decoder", "output", "lm_head.decoder")
"""Modules whose rows score tokens."""
ANY_HEADS = (*HEADS, "output_layer")
"""The same, whichever tool names them."""
EMBEDDING, HEAD = TOKENS[0], HEADS[0]
"""What most models call them."""
MASKED = "word_embeddings"
"""What the embedding is called in models that fill masks."""

CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
CONV1D = ("c_attn", "c_proj", "c_fc")
CONV1D_LAYERS = frozenset({*CONV1D, "q_attn"})
"""Layers of these models that are stored as (in, out)."""

QKV = frozenset({"c_attn", "in_proj", "qkv", PACKED, "query_key_value", "Wqkv"})
"""Layers that compute queries, keys and values in one."""

MODALITIES: Mapping[str, str] = {
    **dict.fromkeys(("vision", "visual", "image", "vit", "siglip"), "vision"),
    **dict.fromkeys(("audio", "speech", "sound", "acoustic"), "audio"),
    **dict.fromkeys(("unet", "diffusion", "denoiser"), "diffusion"),
    **dict.fromkeys(("text", "language", "llm"), "text"),
    "vae": "vae",
    "encoder": "encoder",
    "decoder": "decoder",
}
"""Words of a path, cut at dots and underscores, that say which part of a model is meant."""
DEFAULT = frozenset({"text", "decoder"})
"""Parts that a model is where nothing else is said: a decoder of text."""


def modalities(path: str) -> frozenset[str]:
    """Return the parts of a model that a path names.

    >>> sorted(modalities("model.vision_tower.encoder."))
    ['encoder', 'vision']
    """
    words = path.lower().replace("_", ".").replace("-", ".").split(".")
    return frozenset(MODALITIES[word] for word in words if word in MODALITIES)


def is_embedding(path: str) -> bool:
    """Whether a module is an embedding by its name, where its tensors do not tell.

    >>> is_embedding("model.embed_tokens"), is_embedding("model.shared")
    (True, False)
    """
    return path.rpartition(".")[2] in ONLY_TOKENS


def ends(key: str, endings: tuple[str, ...]) -> bool:
    """Whether a weight's name ends with one of these modules' names, from a dot on.

    >>> ends("model.embed_tokens.weight", TOKENS), ends("my_wte.weight", TOKENS)
    (True, False)
    """
    return any(f".{key}".endswith(f".{ending}.weight") for ending in endings)
