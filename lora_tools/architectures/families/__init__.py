"""The families that are known. A new one is a file here and a line in the list."""

from functools import cache
from importlib import import_module

from lora_tools.architectures.family import Family

FILES = (
    "stable_diffusion",
    "cascade",
    "sd3",
    "flux1",
    "flux2",
    "chroma",
    "wan",
    "hunyuan_video",
    "qwen_image",
    "z_image",
    "lumina2",
    "ltx",
    "auraflow",
    "pixart",
    "hunyuan_dit",
    "cogvideox",
    "cosmos",
    "krea2",
    "minimax_h3",
    "hidream",
    "autoencoder",
    "clip",
    "t5",
    "bert",
    "llama",
    "qwen",
    "gemma",
    "phi3",
    "mixtral",
    "qwen_moe",
    "gpt_oss",
    "gpt2",
    "gpt_neox",
    "falcon",
    "chatglm",
    "stablelm",
    "olmo",
    "cohere",
    "starcoder2",
    "glm4",
)
"""Each has one family or several."""

FAMILIES: tuple[Family, ...]
"""All of them, imported when they are first asked for: most files do without."""


@cache
def _imported() -> tuple[Family, ...]:
    modules = [import_module(f"{__name__}.{file}") for file in FILES]
    values = (value for module in modules for value in vars(module).values())
    return tuple(value for value in values if isinstance(value, Family))


def __getattr__(name: str) -> tuple[Family, ...]:
    if name == "FAMILIES":
        return _imported()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def family(name: str) -> Family:
    """Return the family of a name; `KeyError` if there is none."""
    return {each.name: each for each in _imported()}[name]
