"""The families that are known. A new one is a file here and a line in the list."""

from collections.abc import Iterable

from lora_tools.architectures.families import gemma, hunyuan_video, llama, ltx, pixart, qwen
from lora_tools.architectures.families import stable_diffusion as sd
from lora_tools.architectures.families.auraflow import AURAFLOW
from lora_tools.architectures.families.autoencoder import AUTOENCODER_KL
from lora_tools.architectures.families.bert import BERT
from lora_tools.architectures.families.cascade import CASCADE
from lora_tools.architectures.families.chatglm import CHATGLM
from lora_tools.architectures.families.chroma import CHROMA
from lora_tools.architectures.families.clip import CLIP
from lora_tools.architectures.families.cogvideox import COGVIDEOX
from lora_tools.architectures.families.cosmos import COSMOS2
from lora_tools.architectures.families.falcon import BLOOM, FALCON
from lora_tools.architectures.families.flux1 import FLUX1
from lora_tools.architectures.families.flux2 import FLUX2
from lora_tools.architectures.families.gpt2 import GPT2
from lora_tools.architectures.families.gpt_neox import GPT_NEOX
from lora_tools.architectures.families.gpt_oss import GPT_OSS
from lora_tools.architectures.families.hunyuan_dit import HUNYUAN_DIT
from lora_tools.architectures.families.krea2 import KREA2
from lora_tools.architectures.families.lumina2 import LUMINA2
from lora_tools.architectures.families.minimax_h3 import MINIMAX_H3
from lora_tools.architectures.families.mixtral import MIXTRAL
from lora_tools.architectures.families.phi3 import PHI3
from lora_tools.architectures.families.qwen_image import QWEN_IMAGE
from lora_tools.architectures.families.qwen_moe import QWEN_MOE
from lora_tools.architectures.families.sd3 import SD3
from lora_tools.architectures.families.t5 import T5
from lora_tools.architectures.families.wan import WAN
from lora_tools.architectures.families.z_image import Z_IMAGE
from lora_tools.architectures.family import Family

FAMILIES: tuple[Family, ...] = (
    sd.SD,
    sd.SDXL,
    sd.REFINER,
    CASCADE,
    SD3,
    FLUX1,
    FLUX2,
    CHROMA,
    WAN,
    hunyuan_video.HUNYUAN_VIDEO,
    hunyuan_video.HUNYUAN_VIDEO_15,
    QWEN_IMAGE,
    Z_IMAGE,
    LUMINA2,
    ltx.LTX,
    ltx.LTX2,
    AURAFLOW,
    pixart.PIXART,
    pixart.SANA,
    HUNYUAN_DIT,
    COGVIDEOX,
    COSMOS2,
    KREA2,
    MINIMAX_H3,
    AUTOENCODER_KL,
    CLIP,
    T5,
    BERT,
    llama.LLAMA,
    llama.GRANITE,
    llama.SMOLLM3,
    qwen.QWEN2,
    qwen.QWEN3,
    gemma.GEMMA,
    gemma.GEMMA2,
    gemma.GEMMA3,
    PHI3,
    MIXTRAL,
    QWEN_MOE,
    GPT_OSS,
    GPT2,
    GPT_NEOX,
    FALCON,
    BLOOM,
    CHATGLM,
)


def family(name: str, families: Iterable[Family] = FAMILIES) -> Family:
    """Return the family of a name; `KeyError` if there is none."""
    return {each.name: each for each in families}[name]
