"""ChatGLM 2 and after, in the names of its original code: only what its modules are called."""

from lora_tools.architectures.family import MODEL, Family
from lora_tools.architectures.tables import being, same

CHATGLM = Family(
    "ChatGLM",
    hub="transformers",
    containers=MODEL,
    modules={
        **being("embedding", "transformer.embedding.word_embeddings"),
        **being("head", "transformer.output_layer"),
        **being("norm", "transformer.encoder.final_layernorm"),
        "transformer.encoder.layers.#.": (
            "transformer.encoder.layers.#.",
            {
                **same("self_attention.{query_key_value,dense}"),
                **same("mlp.{dense_h_to_4h,dense_4h_to_h}"),
                **being("norm", "{input,post_attention}_layernorm"),
            },
        ),
    },
    named="chatglm",
    types=("chatglm",),
)
