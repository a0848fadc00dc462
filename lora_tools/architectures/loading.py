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


class Loading(NamedTuple):
    """What changes in the names of some models, by their ``model_type`` or their class."""

    kinds: frozenset[str]
    start: Renames = ()
    """At the beginning of a name: the first that fits."""
    inside: Renames = ()
    """Anywhere, each once."""
    stacks: bool = False
    """Whether a layer's experts become one stack."""


def _kinds(names: str) -> frozenset[str]:
    return frozenset(names.split())


LANGUAGE_MODEL: Renames = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model.language_model."),
    ("language_model.", "model.language_model."),
)
TOWERS: Renames = tuple(
    (f"{part}.", f"model.{part}.")
    for part in ("vision_tower", "vision_model", "multi_modal_projector")
)
QWEN_VL: Renames = (
    ("visual.", "model.visual."),
    *((f"model.{part}.", f"model.language_model.{part}.") for part in ("layers", "embed_tokens")),
    ("model.norm.", "model.language_model.norm."),
)
MIXTRAL = ((".block_sparse_moe.", ".mlp."),)
GRANITE = (
    (".input_linear.weight", ".experts.gate_up_proj"),
    (".output_linear.weight", ".experts.down_proj"),
    (".router.layer.weight", ".router.weight"),
)

LOADINGS = (
    Loading(
        _kinds(
            "llava vipllava aria paligemma aya_vision got_ocr2 gemma3 internvl mistral3 mllama"
            " llava_next llava_next_video llava_onevision"
        ),
        start=(*LANGUAGE_MODEL, *TOWERS, ("image_newline", "model.image_newline")),
    ),
    Loading(_kinds("qwen2_vl qwen2_5_vl"), start=QWEN_VL),
    Loading(_kinds("gpt_neox"), start=(("embed_out.", "lm_head."),)),
    Loading(_kinds("CLIPTextModel"), start=(("text_model.", ""),)),
    Loading(_kinds("mixtral minimax minimax_m2"), inside=MIXTRAL, stacks=True),
    Loading(_kinds("phimoe"), inside=(*MIXTRAL, (".gate.weight", ".router.weight")), stacks=True),
    Loading(_kinds("granitemoe granitemoeshared granitemoehybrid"), inside=GRANITE),
    Loading(
        _kinds(
            "qwen2_moe qwen3_moe qwen3_next olmoe flex_olmo deepseek_v2 deepseek_v3 deepseek_v32"
            " dots1 ernie4_5_moe glm4_moe glm4_moe_lite glm4v_moe glm_moe_dsa longcat_flash"
            " solar_open hunyuan_v1_moe afmoe exaone_moe cohere2_moe jamba qwen3_omni_moe"
        ),
        stacks=True,
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
PARTS = {"gate_up_proj": 2, "down_proj": 1}
"""Of how many layers of an expert each stack is made."""


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
                name = new + name.removeprefix(old)
                break
        for old, new in loading.inside:
            name = name.replace(old, new, 1)
    return name


def stacks(kinds: Collection[str]) -> bool:
    """Whether transformers stacks the experts of such a model."""
    return any(loading.stacks and not loading.kinds.isdisjoint(kinds) for loading in LOADINGS)
