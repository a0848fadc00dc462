"""LTX-Video, and LTX-2, which has a second stream for sound."""

from lora_tools.architectures.family import DIT, Encoder, Family
from lora_tools.architectures.tables import Table, norm, one, same

ADALN = same("linear", "emb.timestep_embedder.linear_{1,2}")


def attention(names: str) -> Table:
    """Return the layers of attention of these names, alike but for their norms."""
    return {
        **same(names + ".{to_q,to_k,to_v,to_out.0,to_gate_logits}"),
        f"{names}.q_norm": norm(f"{names}.norm_q"),
        f"{names}.k_norm": norm(f"{names}.norm_k"),
    }


def parameters(*paths: str) -> Table:
    """Return bare parameters that are called alike."""
    return {path: one(path, role="parameter") for path in paths}


LTX = Family(
    "LTX-Video",
    hub="diffusers",
    containers=DIT,
    dialects={
        "original": {
            "patchify_proj": "proj_in",
            "adaln_single.": ("time_embed.", ADALN),
            **same("caption_projection.linear_{1,2}", "proj_out"),
            **parameters("scale_shift_table"),
            "transformer_blocks.#.": (
                "transformer_blocks.#.",
                {
                    **attention("{attn1,attn2}"),
                    **same("ff.net.{0.proj,2}"),
                    **parameters("scale_shift_table"),
                },
            ),
        }
    },
    blocks={"transformer_blocks": (28, 48)},
    named=r"ltx(?![-_.]?(video-)?2)",
    types=("LTXVideoTransformer3DModel",),
    encoders=(Encoder("T5", "text_encoder", "t5xxl", "lora_te_"),),
)
LTX2 = Family(
    "LTX-2",
    hub="diffusers",
    containers=DIT,
    dialects={
        "original": {
            "{,audio_}patchify_proj": "{,audio_}proj_in",
            "{,audio_}adaln_single.": ("{,audio_}time_embed.", ADALN),
            "{,audio_}prompt_adaln_single.": ("{,audio_}prompt_adaln.", ADALN),
            "av_ca_{video,audio}_scale_shift_adaln_single.": (
                "av_cross_attn_{video,audio}_scale_shift.",
                ADALN,
            ),
            "av_ca_{a2v,v2a}_gate_adaln_single.": (
                "av_cross_attn_{video_a2v,audio_v2a}_gate.",
                ADALN,
            ),
            **same("{,audio_}caption_projection.linear_{1,2}", "{,audio_}proj_out"),
            **parameters("{,audio_}scale_shift_table"),
            "transformer_blocks.#.": (
                "transformer_blocks.#.",
                {
                    **attention("{,audio_}{attn1,attn2}"),
                    **attention("{audio_to_video_attn,video_to_audio_attn}"),
                    **same("{,audio_}ff.net.{0.proj,2}"),
                    **parameters("{,audio_}scale_shift_table", "{,audio_}prompt_scale_shift_table"),
                    "scale_shift_table_a2v_ca_{video,audio}": one(
                        "{video,audio}_a2v_cross_attn_scale_shift_table", role="parameter"
                    ),
                },
            ),
        }
    },
    blocks={"transformer_blocks": (48,)},
    named=r"ltx[-_.]?(video-)?2",
    types=("LTX2VideoTransformer3DModel",),
)
