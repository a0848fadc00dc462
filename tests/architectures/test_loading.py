"""The table of names in memory beside transformers' own, of the version that is installed."""

import re

import pytest
import tiny
from judges import judge
from safetensors import safe_open

from lora_tools.architectures.loading import EXPERT, LOADINGS, kinds_of, loaded, stack_of, stacks

ENCODERS = """
    altclip BeitBackbone BeitForSemanticSegmentation BeitModel cohere_asr colqwen2
    ConditionalDetrForSegmentation ConditionalDetrModel d_fine deepseek_ocr2 deformable_detr
    DetrForSegmentation DetrModel Dinov2Backbone Dinov2Model Dinov2WithRegistersBackbone
    Dinov2WithRegistersModel dinov3_convnext dinov3_vit dots3_note_audio_encoder
    dots3_note_vision_encoder esm flint gradium_phonon_tts hunyuan_vl hyperclovax_vision_v2
    lfm3_vl_vision lw_detr maskformer MaskFormerDetrDecoder MimiDecoderModel MimiEncoderModel
    MimiModel nemo_speechlm paddleocr_vl pi0 pixio pp_chart2table pp_doclayout_v2
    pp_doclayout_v3 pp_doclayout_v4 PPChart2TableModel qianfan_ocr radio
    RfDetrForInstanceSegmentation RfDetrForObjectDetection RfDetrModel rt_detr rt_detr_v2
    sam3_tracker sam3_tracker_video sapiens2 Sapiens2ForImageMatting Sapiens2ForNormalEstimation
    Sapiens2ForPointmapEstimation Sapiens2ForPoseEstimation Sapiens2ForSemanticSegmentation
    SegformerForSemanticSegmentation SegformerModel shieldgemma2 step3p5_vision swin
    SwinBackbone timesfm2_5 timm_wrapper tipsv2 tipsv2_dpt Tipsv2DptForDepthEstimation
    Tipsv2DptForNormalEstimation Tipsv2DptForSemanticSegmentation Tipsv2TextModel
    Tipsv2VisionBackbone Tipsv2VisionModel unlimited_ocr UnlimitedOcrSamVisionEncoder
    UnlimitedOcrTextModel UnlimitedOcrVisionEncoder vibevoice_asr VibeVoiceAsrModel videomae
    ViTMAEForPreTraining ViTMSNForImageClassification xCLIPTextModel xCLIPVisionModel yolos
"""
"""Detectors, encoders of images, speech, video and documents, and assemblies of them."""
OTHERS = """
    aria_text axk1 axk2 bailing_hybrid cosmos3_edge cosmos3_omni deepseek_v4
    Dots3NoteForConditionalGeneration Dots3NoteModel Dots3NoteTextModel emu3 Emu3Model
    ernie4_5_vl_moe gemma4_unified glm5_next glm5_next_text gte hrm_text hy_v3 hy_v4 inkling2
    inkling2_text inkling_mm_model jev jina_embeddings_v3 kimi_k25 kimi_linear kolibri1 laguna
    lfm3 mimo_v2_flash minimax_m3_vl mistral_large4 mistral_large4_text molmo2 Molmo2TextModel
    MtpModel NemotronH_Omni_Reasoning_V3 nomic_bert olmo_hybrid qwen2_5_omni_thinker
    Qwen2_5OmniThinkerForConditionalGeneration Qwen2_5OmniThinkerModel
    Qwen3OmniMoeThinkerForConditionalGeneration Qwen3OmniMoeThinkerModel qwen4_exp_text step3p7
    t5gemma2_encoder UltrabertForMaskedLM UltrabertForQuestionAnswering
    UltrabertForSequenceClassification UltrabertForTokenClassification UltrabertModel
    UltraVBertForMaskedLM
"""
"""Language models with names of their own in their published files."""
NOT_DESCRIBED = frozenset([*ENCODERS.split(), *OTHERS.split()])
"""Models of transformers' table that ours does not have: their adapters are matched by names."""


def table():
    judge("transformers")
    from transformers.conversion_mapping import _build_checkpoint_conversion_mapping

    return _build_checkpoint_conversion_mapping()


def kinds(name: str) -> frozenset[str]:
    """Return what a model of this type or class says of itself."""
    config = getattr(getattr(judge("transformers"), name, None), "config_class", None)
    return frozenset({name, getattr(config, "model_type", name)})


def sample(pattern: str) -> str:
    """Return a name that a pattern of transformers matches."""
    text = re.sub(r"\(\?:\(\?!.*?\)\)|\(\?[!<].*\)|\^|\$", "", pattern)
    text = text.replace("(.+)", "layers.3.mlp.up_proj.weight").replace("\\.", ".")
    text = "model.layers.3.mlp.up_proj.weight" if text == "model" else text
    first = pattern.startswith("^") or pattern == "backbone."
    whole = text if first else f"model.layers.3.{text.lstrip('.')}"
    if pattern in ("attention.query", "attention.key", "attention.value"):
        whole = f"encoder.layer.3.attention.{pattern}"
    if pattern == r"encoder\.layer\.":
        whole = "encoder.layer.3.layernorm_before"
    return whole if whole.endswith(("weight", "newline")) else f"{whole.rstrip('.')}.weight"


def test_transformers_renames_as_the_table_says():
    """Every model of its table is walked: what it is loaded as, or that we do not describe it."""
    from transformers.core_model_loading import apply_renamings

    wrong = []
    for name, entry in table().items():
        renamings = [t for t in entry if type(t).__name__ in ("WeightRenaming", "PrefixChange")]
        if name in NOT_DESCRIBED or name == "legacy":
            continue
        mine = kinds(name)
        for renaming in renamings:
            for pattern in renaming.source_patterns:
                key = sample(pattern)
                theirs = apply_renamings(key, renamings)
                ours = loaded(key, mine)
                if name[0].isupper() and name.endswith("Model"):  # which has no ``model.``
                    ours, theirs = ours.removeprefix("model."), theirs.removeprefix("model.")
                if ours != theirs:
                    wrong.append(f"{name}: {key}: {ours}, and transformers {theirs}")
        merged = any("MergeModulelist" in map(kind_of, getattr(t, "operations", ())) for t in entry)
        if merged and not stacks(mine):
            wrong.append(f"{name} stacks its experts")
    assert not wrong, "\n".join(wrong)


def kind_of(value):
    return type(value).__name__


def test_what_is_not_described_is_still_in_transformers_table():
    assert not NOT_DESCRIBED - table().keys()
    described = frozenset[str]().union(*(each.kinds for each in LOADINGS))
    assert NOT_DESCRIBED.isdisjoint(described)


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_a_saved_model_is_loaded_under_these_names(name, tmp_path):
    """What transformers has saved, and what it has in memory: every name and no other."""
    model = tiny.auto(name).from_config(tiny.config(name))
    tiny.save(model, tmp_path)
    memory = {n for n, weight in model.named_parameters()}
    stated = kinds_of(model.config.to_dict() | {"architectures": [type(model).__name__]})
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = {loaded(key, stated) for key in file.keys()}  # noqa: SIM118 - not a mapping
    if stacks(stated):
        siblings = {m["leaf"] for n in names if (m := EXPERT.fullmatch(n))}
        names = {
            f"{m['experts']}.{stack_of(m['leaf'], siblings)[0]}"
            if (m := EXPERT.fullmatch(n))
            else n
            for n in names
        }
    buffers = {n for n, _ in model.named_buffers()}
    assert names - buffers == memory


def test_a_model_by_itself_has_nothing_before_its_parts():
    body = {"llava", "LlavaModel"}
    assert loaded("language_model.model.layers.0.w", body) == "language_model.layers.0.w"
    assert loaded("vision_tower.layers.0.w", body) == "vision_tower.layers.0.w"


def test_names_of_the_first_models_are_read():
    assert loaded("bert.LayerNorm.gamma", ()) == "bert.LayerNorm.weight"
