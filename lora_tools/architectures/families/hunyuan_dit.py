"""HunyuanDiT in its original names: only what its modules are called."""

from lora_tools.architectures.family import ContainerPrefix, Family
from lora_tools.architectures.tables import being, same

HUNYUAN_DIT = Family(
    "HunyuanDiT",
    hub="original",
    containers={},
    modules={
        **same("x_embedder.proj", "{t_embedder.mlp,mlp_t5,extra_embedder}.{0,2}"),
        **same("pooler.{q,k,v,c}_proj", "final_layer.{linear,adaLN_modulation.1}"),
        **being("embedding", "style_embedder"),
        "blocks.#.": (
            "blocks.#.",
            {
                **same("attn1.{Wqkv,out_proj}", "attn2.{q_proj,kv_proj,out_proj}"),
                **same("mlp.{fc1,fc2}", "default_modulation.1", "skip_linear"),
                **being("norm", "norm{1,2,3}", "skip_norm", "attn{1,2}.{q,k}_norm"),
            },
        ),
    },
    named="hunyuan[-_]?dit",
    types=("HunyuanDiT2DModel",),
    loaders={"comfyui": ContainerPrefix("base_model.model.")},
)
