"""Module paths of diffusion pipelines: their components, and paths whose dots were lost."""

import re
from collections.abc import Iterator
from functools import cache

COMPONENTS = (
    "diffusion_model",
    "transformer",
    "unet",
    "prior",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
)
"""Models of a pipeline. ``diffusion_model`` is a denoiser whose modules its authors named."""

LANGUAGE = ("h.", "wte", "wpe", "word_embeddings", "ln_f", "encoder.", "embedding.", "output")
"""How paths of GPT-2, Bloom, Falcon and ChatGLM go on after ``transformer.``: no denoiser's."""

STREAMS = "{transformer_blocks.#,single_transformer_blocks.#}"
SELF_ATTENTION = "self_attn.{q_proj,k_proj,v_proj,out_proj,o_proj,output_proj}"
CROSS = "{attn1,attn2}.{to_q,to_k,to_v,to_out.#}"
SPATIAL = "{proj_in,proj_out,transformer_blocks.#.{" + CROSS + ",ff.net.#.proj,ff.net.#}}"
RESIDUAL = "{conv1,conv2,time_emb_proj,conv_shortcut}"
SEQUENTIAL = "{in_layers.#,out_layers.#,emb_layers.#,skip_connection,op,conv," + SPATIAL + "}"
GATED = "{attn.{wq,wk,wv,wo,gate},mlp.{gate,up,down}}"
COSMOS = (
    "blocks.#.{{self_attn,cross_attn}.{q_proj,k_proj,v_proj,o_proj,output_proj},"
    "mlp.{layer1,layer2},adaln_modulation_{self_attn,cross_attn,mlp}.#}"
)

# A number of a path is written as #. Which paths there are: sd-scripts (`networks/lora*.py`),
# diffusers' and the models' own definitions, InvokeAI's key lists.
DENOISERS = {
    "unet": (
        "{down_blocks,up_blocks}.#.attentions.#." + SPATIAL,
        "{down_blocks,up_blocks}.#.resnets.#." + RESIDUAL,
        "{down_blocks.#.downsamplers,up_blocks.#.upsamplers}.#.conv",
        "mid_block.{attentions.#." + SPATIAL + ",resnets.#." + RESIDUAL + "}",
        "{conv_in,conv_out,{time_embedding,add_embedding}.{linear_1,linear_2}}",
    ),
    "transformer": (
        STREAMS + ".{attn.{to_q,to_k,to_v,to_out.#},norm.linear,proj_mlp,proj_out}",
        "transformer_blocks.#.attn.{add_q_proj,add_k_proj,add_v_proj,to_add_out}",
        "transformer_blocks.#.{ff,ff_context,img_mlp,txt_mlp}.net.{#.proj,#}",
        "transformer_blocks.#.{norm1.linear,norm1_context.linear,{img_mod,txt_mod}.#}",
        "transformer_blocks.#.{attn1,attn2}.{to_q,to_k,to_v,to_out.#}",
        "{x_embedder,context_embedder,proj_out,norm_out.linear}",
        "time_text_embed.{timestep,text,guidance}_embedder.{linear_1,linear_2}",
    ),
    "diffusion_model": (
        "{input_blocks,output_blocks}.#.#." + SEQUENTIAL,
        "{input_blocks.#.#,middle_block.#." + SEQUENTIAL + ",time_embed.#,label_emb.#.#,out.#}",
        "double_blocks.#.{img,txt}_{attn.{qkv,proj},mlp.#,mod.lin}",
        "single_blocks.#.{linear1,linear2,modulation.lin}",
        "{img_in,txt_in,final_layer.{linear,adaLN_modulation.#}}",
        "{time_in,vector_in,guidance_in}.{in_layer,out_layer}",
        "joint_blocks.#.{x_block,context_block}.{attn.{qkv,proj},mlp.{fc1,fc2}}",
        "joint_blocks.#.{x_block,context_block}.adaLN_modulation.#",
        "{,llm_adapter.}" + COSMOS,
        "{blocks.#,txtfusion.{layerwise_blocks,refiner_blocks}.#}." + GATED,
        "{first,last.linear,tmlp.#,tproj.#,txtmlp.#,txtfusion.projector}",
    ),
}
ENCODERS = (
    "text_model.encoder.layers.#.{self_attn.{q_proj,k_proj,v_proj,out_proj},mlp.{fc1,fc2}}",
    "text_projection",
    "encoder.block.#.layer.#.{SelfAttention.{q,k,v,o},DenseReluDense.{wi,wi_0,wi_1,wo}}",
    "{,model.}layers.#.{" + SELF_ATTENTION + ",mlp.{gate_proj,up_proj,down_proj}}",
)


def split(name: str) -> tuple[str, str]:
    """Return a name's component, or nothing, and its path in there.

    >>> split("unet.mid_block.resnets.0.conv1"), split("model.layers.0.q_proj")
    (('unet', 'mid_block.resnets.0.conv1'), ('', 'model.layers.0.q_proj'))
    """
    component, dot, path = name.partition(".")
    if not dot or component not in COMPONENTS:
        return "", name
    if component == "transformer" and path.startswith(LANGUAGE):
        return "", name
    return component, path


def is_known(path: str) -> bool:
    """Whether a path is one of a known denoiser or text encoder.

    >>> is_known("text_model.encoder.layers.0.mlp.fc1"), is_known("blocks.0.attn.Wqkv")
    (True, False)
    """
    encoder = unflatten(flatten(path), encoder=True)
    return component_of(path) is not None or (encoder is not None and encoder[1] == path)


def component_of(path: str) -> str | None:
    """Return the component that has a module of this path, if the path tells.

    >>> component_of("double_blocks.0.img_attn.qkv"), component_of("model.layers.0.mlp.up_proj")
    ('diffusion_model', None)
    """
    found = unflatten(flatten(path), encoder=False)
    if found and found[1] == path:
        return found[0]
    return "text_encoder" if path.startswith(("text_model.", "text_projection")) else None


def is_denoiser(path: str) -> bool:
    """Whether a path is one of a known denoiser, in diffusers' names.

    >>> is_denoiser("transformer_blocks.3.attn.to_q"), is_denoiser("h.3.attn.c_attn")
    (True, False)
    """
    return component_of(path) in ("unet", "transformer")


def flatten(path: str) -> str:
    """Return the path with underscores for dots."""
    return path.replace(".", "_")


def unflatten(flat: str, *, encoder: bool) -> tuple[str, str] | None:
    """Return the component and the path that a flattened path of a known model stands for.

    ``encoder``: of a text encoder. The component is empty for those.

    >>> unflatten("down_blocks_0_attentions_1_proj_in", encoder=False)
    ('unet', 'down_blocks.0.attentions.1.proj_in')
    >>> unflatten("somebodys_own_layer_0", encoder=False) is None
    True
    """
    for component in ("",) if encoder else DENOISERS:
        for template, expression in _known(component).get(_pattern(flat), ()):
            if match := expression.fullmatch(flat):
                return component, template.replace("#", "{}").format(*match.groups())
    return None


def _pattern(flat: str) -> str:
    return re.sub(r"(?<![^_])[0-9]+(?![^_])", "#", flat)


@cache
def _known(component: str) -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """Return the paths of a component, each with its expression, by how they read flattened."""
    found: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for template in DENOISERS[component] if component else ENCODERS:
        for path in dict.fromkeys(_expanded(template)):
            flat = flatten(path)
            expression = re.compile(flat.replace("#", "([0-9]+)"))
            found.setdefault(_pattern(flat), []).append((path, expression))
    return found


def _expanded(template: str) -> Iterator[str]:
    """Yield what a template with braces stands for, as a shell expands it; some of it twice."""
    found = re.search(r"\{([^{}]*)\}", template)
    if found is None:
        yield template
        return
    for choice in found[1].split(","):
        yield from _expanded(template[: found.start()] + choice + template[found.end() :])
