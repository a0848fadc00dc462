"""CLIP's text encoders, L, G and H: in transformers' two key namings, and in OpenCLIP's."""

from lora_tools.architectures.family import MODEL, ContainerPrefix, Family
from lora_tools.architectures.tables import Table, being, norm, one, rows, same

BODY: Table = {
    "encoder.layers.#.": (
        "encoder.layers.#.",
        {
            **same("self_attn.{q,k,v,out}_proj", "mlp.{fc1,fc2}"),
            **being("norm", "layer_norm{1,2}"),
        },
    ),
    **being("embedding", "embeddings.{token_embedding,position_embedding}"),
    **being("norm", "final_layer_norm"),
}
IN_PROJ = (("in_proj_weight", "weight"), ("in_proj_bias", "bias"))

CLIP = Family(
    "CLIP",
    hub="transformers",
    containers={**MODEL, "pipeline": ContainerPrefix("text_encoder.", ("transformers",))},
    dialects={
        "transformers5": {"": ("text_model.", BODY)},
        "openclip": {
            "token_embedding": one("text_model.embeddings.token_embedding", role="embedding"),
            "positional_embedding": one(
                "text_model.embeddings.position_embedding",
                role="embedding",
                tensors=(("", "weight"),),
            ),
            "transformer.resblocks.#.": (
                "text_model.encoder.layers.#.",
                {
                    "ln_{1,2}": norm("layer_norm{1,2}"),
                    "attn": rows("self_attn.{q,k,v}_proj", tensors=IN_PROJ),
                    "attn.out_proj": "self_attn.out_proj",
                    "mlp.{c_fc,c_proj}": "mlp.{fc1,fc2}",
                },
            ),
            "ln_final": norm("text_model.final_layer_norm"),
            "text_projection": one("text_projection", transposed=True, tensors=(("", "weight"),)),
        },
    },
    modules={"text_model.": ("text_model.", BODY), **same("text_projection")},
    named="clip",
    types=("clip_text_model",),
    drops={"openclip": ("logit_scale",)},
)
