"""What transformers calls the weights of a checkpoint once it has loaded them.

Files keep the names under which a model was published. In memory, vision-language models have
others since transformers 4.52 and mixtures of experts since 5; those are the names that PEFT wraps.
The table is transformers' own (`conversion_mapping.py`) for the models that are named here.
"""

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

Renames: TypeAlias = tuple[tuple[str, str], ...]

QKV = "query", "key", "value"
LEGACY: Renames = (
    (".LayerNorm.gamma", ".LayerNorm.weight"),
    (".LayerNorm.beta", ".LayerNorm.bias"),
)
"""Names of any model that were given up before the first of those that are named here."""


class Loading(NamedTuple):
    """What changes in the names of some models, by their ``model_type`` or their class."""

    kinds: frozenset[str]
    start: Renames = ()
    """At the beginning of a name: the first that fits."""
    inside: Renames = ()
    """Anywhere, one after another, each once."""
    stacks: bool = False
    """Whether a layer's experts become one stack."""


def _kinds(names: str) -> frozenset[str]:
    return frozenset(names.split())


LANGUAGE_MODEL: Renames = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("language_model.", "model.language_model."),
)
"""And of all that a model has beside it, with ``model.`` before it."""
QWEN_VL: Renames = (
    ("visual.", "model.visual."),
    ("audio_tower.", "model.audio_tower."),
    *((f"model.{part}.", f"model.language_model.{part}.") for part in ("layers", "embed_tokens")),
    ("model.norm.", "model.language_model.norm."),
)
MIXTRAL = ((".block_sparse_moe.", ".mlp."),)
GRANITE = (
    (".block_sparse_moe.input_linear.weight", ".block_sparse_moe.experts.gate_up_proj"),
    (".block_sparse_moe.output_linear.weight", ".block_sparse_moe.experts.down_proj"),
    (".block_sparse_moe.router.layer.weight", ".block_sparse_moe.router.weight"),
)
BIASES = "moe_statics.", "e_score_correction_bias"
VIT = (
    ("encoder.layer.", "layers."),
    *((f".attention.attention.{part}.", f".attention.{part[0]}_proj.") for part in QKV),
    (".attention.output.dense.", ".attention.o_proj."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
)


def _under_model(kinds: str, parts: str) -> Loading:
    """Return how a model is loaded whose parts had nothing before their names."""
    moved = tuple((part, f"model.{part}") for part in parts.split())
    return Loading(_kinds(kinds), start=(*LANGUAGE_MODEL, *moved))


LOADINGS = (
    _under_model(
        "llava vipllava aria paligemma aya_vision got_ocr2 gemma3 internvl mistral3"
        " llava_next llava_next_video llava_onevision",
        "vision_tower. multi_modal_projector. image_newline",
    ),
    _under_model("mllama", "vision_model. multi_modal_projector."),
    _under_model("video_llava", "image_tower. video_tower. multi_modal_projector."),
    _under_model("fuyu", "vision_embed_tokens."),
    _under_model(
        "qwen2_audio voxtral voxtral_realtime audioflamingo3 glmasr musicflamingo",
        "audio_tower. multi_modal_projector.",
    ),
    _under_model("granite_speech granite_speech_plus", "encoder. projector."),
    Loading(_kinds("qwen2_vl qwen2_5_vl"), start=QWEN_VL),
    Loading(_kinds("gpt_neox"), start=(("embed_out.", "lm_head."),)),
    Loading(
        _kinds(
            "CLIPTextModel CLIPSegTextModel MetaClip2TextModel SiglipTextModel Siglip2TextModel"
        ),
        start=(("text_model.", ""),),
    ),
    Loading(
        _kinds(
            "CLIPVisionModel AltCLIPVisionModel ChineseCLIPVisionModel CLIPSegVisionModel"
            " MetaClip2VisionModel SiglipVisionModel Siglip2VisionModel mlcd mlcd_vision"
        ),
        start=(("vision_model.", ""),),
    ),
    Loading(
        _kinds("vit deit ijepa vit_mae vit_msn vivit audio-spectrogram-transformer"), inside=VIT
    ),
    Loading(_kinds("mixtral minimax minimax_m2"), inside=MIXTRAL, stacks=True),
    Loading(_kinds("phimoe"), inside=(*MIXTRAL, (".gate.weight", ".router.weight")), stacks=True),
    Loading(_kinds("granitemoe granitemoeshared granitemoehybrid"), inside=GRANITE),
    Loading(_kinds("nemotron_h"), start=(("backbone.", "model."),), stacks=True),
    Loading(
        _kinds(
            "qwen2_moe qwen3_moe qwen3_next olmoe flex_olmo deepseek_v2 deepseek_v3 deepseek_v32"
            " dots1 ernie4_5_moe glm4_moe glm4_moe_lite glm4v_moe glm_moe_dsa longcat_flash"
            " solar_open hunyuan_v1_moe afmoe exaone_moe cohere2_moe jamba lfm2_moe mellum beam"
            " qwen3_omni_moe qwen3_omni_moe_thinker qwen3_omni_moe_text qwen3_5_moe_text"
        ),
        stacks=True,
    ),
    Loading(
        _kinds("ernie4_5_moe exaone_moe"),
        inside=tuple((f".mlp.{bias}", f".mlp.gate.{bias}") for bias in BIASES),
    ),
    Loading(
        _kinds("qwen3_5_text qwen3_5_moe_text gemma3n_text"),
        start=(("model.language_model.", "model."),),
    ),
)

EXPERT = re.compile(r"(?P<experts>.*\.experts)\.(?P<number>\d{1,9})\.(?P<leaf>\w+)\.weight")
"""A weight of one expert."""
STACKS: Mapping[str, tuple[str, int]] = MappingProxyType(
    {
        "gate_proj": ("gate_up_proj", 0),
        "up_proj": ("gate_up_proj", 1),
        "down_proj": ("down_proj", 0),
        "w1": ("gate_up_proj", 0),
        "w3": ("gate_up_proj", 1),
        "w2": ("down_proj", 0),
    }
)
"""Which stack an expert's layer is a part of, and which of its parts."""
UNGATED = "up_proj"
"""A stack of its own where experts have no gate."""
PARTS = {"gate_up_proj": 2, "down_proj": 1, UNGATED: 1}
"""Of how many layers of an expert each stack is made."""


def stack_of(leaf: str, siblings: Collection[str]) -> tuple[str, int]:
    """Return the stack that a layer of an expert with these layers is a part of, and which part.

    >>> stack_of("up_proj", {"gate_proj", "up_proj"}), stack_of("up_proj", {"up_proj"})
    (('gate_up_proj', 1), ('up_proj', 0))
    """
    return STACKS[leaf] if leaf != UNGATED or "gate_proj" in siblings else (UNGATED, 0)


def kinds_of(config: Mapping[str, Any]) -> frozenset[str]:
    """Return the names under which a configuration's model is known, its language model's too."""
    text = config.get("text_config")
    stated = [config.get("model_type"), text.get("model_type") if isinstance(text, Mapping) else ""]
    classes = config.get("architectures")
    stated += classes if isinstance(classes, list) else []
    return frozenset(name for name in stated if isinstance(name, str) and name)


def loaded(name: str, kinds: Collection[str]) -> str:
    """Return what transformers calls a weight of such a model in memory.

    >>> loaded("language_model.model.norm.weight", {"llava"})
    'model.language_model.norm.weight'
    """
    for loading in LOADINGS:
        if loading.kinds.isdisjoint(kinds):
            continue
        for old, new in loading.start:
            if name.startswith(old):
                whole = new + name.removeprefix(old)
                # A model that is saved without its head has nothing before its parts.
                name = whole.removeprefix("model.") if _is_body(kinds) and new else whole
                break
        for old, new in loading.inside:
            name = name.replace(old, new, 1)
    for old, new in LEGACY:
        name = name.replace(old, new)
    return name


def _is_body(kinds: Collection[str]) -> bool:
    return any(kind[:1].isupper() and kind.endswith("Model") for kind in kinds)


def stacks(kinds: Collection[str]) -> bool:
    """Whether transformers stacks the experts of such a model."""
    return any(loading.stacks and not loading.kinds.isdisjoint(kinds) for loading in LOADINGS)
