"""Cosmos Predict 2, and Anima, which has it with an adapter for another text encoder."""

from lora_tools.architectures.family import DIT, ContainerPrefix, Encoder, Family
from lora_tools.architectures.tables import Table, norm, same

ATTENTION: Table = {
    "{q,k,v}_proj": "to_{q,k,v}",
    "output_proj": "to_out.0",
    "{q,k}_norm": norm("norm_{q,k}"),
}
MODULATION = "adaln_modulation_{self_attn,cross_attn,mlp}"

COSMOS2 = Family(
    "Cosmos 2 and Anima",
    hub="diffusers",
    containers={**DIT, "net": ContainerPrefix("net.")},
    dialects={
        "original": {
            "x_embedder.proj.1": "patch_embed.proj",
            "t_embedder.1.linear_{1,2}": "time_embed.t_embedder.linear_{1,2}",
            "t_embedding_norm": norm("time_embed.norm"),
            "blocks.#.": (
                "transformer_blocks.#.",
                {
                    "self_attn.": ("attn1.", ATTENTION),
                    "cross_attn.": ("attn2.", ATTENTION),
                    "mlp.layer{1,2}": "ff.net.{0.proj,2}",
                    f"{MODULATION}.1": "norm{1,2,3}.linear_1",
                    f"{MODULATION}.2": "norm{1,2,3}.linear_2",
                },
            ),
            "final_layer.adaln_modulation.{1,2}": "norm_out.linear_{1,2}",
            "final_layer.linear": "proj_out",
            "llm_adapter.blocks.#.": (
                "llm_adapter.blocks.#.",
                {
                    **same("{self,cross}_attn.{q,k,v,o}_proj", "mlp.{0,2}"),
                    **same("adaln_modulation_{self_attn,cross_attn,mlp}.{1,2}"),
                    "self_attn.{q,k}_norm": norm("self_attn.{q,k}_norm"),
                    "cross_attn.{q,k}_norm": norm("cross_attn.{q,k}_norm"),
                },
            ),
        }
    },
    blocks={"transformer_blocks": (28, 36)},
    named="cosmos|anima",
    types=("CosmosTransformer3DModel",),
    drops={"original": ("pos_embedder.seq",)},
    encoders=(Encoder("Qwen3", "text_encoder", "qwen3_06b", "lora_te_"),),
)
