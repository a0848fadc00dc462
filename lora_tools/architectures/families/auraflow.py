"""AuraFlow. ``w1`` is the context's in double blocks, and the only stream's in single ones."""

from lora_tools.architectures.family import DIT, Family
from lora_tools.architectures.tables import halves, one

AURAFLOW = Family(
    "AuraFlow",
    hub="diffusers",
    containers=DIT,
    dialects={
        "original": {
            "register_tokens": one("register_tokens", role="parameter"),
            "t_embedder.mlp.{0,2}": "time_step_proj.linear_{1,2}",
            "cond_seq_linear": "context_embedder",
            "positional_encoding": one("pos_embed.pos_embed", role="parameter"),
            "init_x_linear": "pos_embed.proj",
            "double_layers.#.": (
                "joint_transformer_blocks.#.",
                {
                    "mlpX.{c_fc1,c_fc2,c_proj}": "ff.{linear_1,linear_2,out_projection}",
                    "mlpC.{c_fc1,c_fc2,c_proj}": "ff_context.{linear_1,linear_2,out_projection}",
                    "mod{X,C}.1": one("{norm1,norm1_context}.linear", ratio=6),
                    "attn.w2{q,k,v,o}": "attn.{to_q,to_k,to_v,to_out.0}",
                    "attn.w1{q,k,v,o}": "attn.{add_q_proj,add_k_proj,add_v_proj,to_add_out}",
                },
            ),
            "single_layers.#.": (
                "single_transformer_blocks.#.",
                {
                    "mlp.{c_fc1,c_fc2,c_proj}": "ff.{linear_1,linear_2,out_projection}",
                    "modCX.1": one("norm1.linear", ratio=6),
                    "attn.w1{q,k,v,o}": "attn.{to_q,to_k,to_v,to_out.0}",
                },
            ),
            "modF.1": halves("norm_out.linear"),
            "final_linear": "proj_out",
        }
    },
    blocks={"joint_transformer_blocks": (4,), "single_transformer_blocks": (32,)},
    named="aura[-_]?flow",
    types=("AuraFlowTransformer2DModel",),
    like="Flux.1",
)
