"""HiDream I1, whose original names are diffusers'."""

from lora_tools.architectures.family import DIT, Encoder, Family
from lora_tools.architectures.tables import Table, being, same

BLOCK: Table = {
    **same("adaLN_modulation.1", "attn1.{to_q,to_k,to_v,to_out}{,_t}"),
    **same("{ff_i.shared_experts,ff_i.experts.#,ff_t}.{w1,w2,w3}"),
    **being("norm", "attn1.{q,k}_rms_norm{,_t}"),
    **being("router", "ff_i.gate"),
}

HIDREAM = Family(
    "HiDream",
    hub="diffusers",
    containers=DIT,
    modules={
        **same("x_embedder.proj", "caption_projection.#.linear"),
        **same("final_layer.{linear,adaLN_modulation.1}"),
        **same("t_embedder.timestep_embedder.linear_{1,2}"),
        **same("p_embedder.pooled_embedder.linear_{1,2}"),
        **{
            f"{kind}_stream_blocks.#.block.": (f"{kind}_stream_blocks.#.block.", BLOCK)
            for kind in ("double", "single")
        },
    },
    blocks={"double_stream_blocks": (16,), "single_stream_blocks": (32,)},
    named="hidream",
    types=("HiDreamImageTransformer2DModel",),
    encoders=(
        Encoder("CLIP", "text_encoder", "clip_l", "lora_te1_"),
        Encoder("CLIP", "text_encoder_2", "clip_g", "lora_te2_"),
        Encoder("T5", "text_encoder_3", "t5xxl", "lora_te3_"),
    ),  # nobody trains its fourth, a Llama
)
