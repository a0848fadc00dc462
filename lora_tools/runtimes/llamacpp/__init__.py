"""llama.cpp: its loader judges GGUF files, its converter what has to become one first."""

from lora_tools.runtimes.base import Runtime
from lora_tools.runtimes.llamacpp import converter, loader

LLAMACPP = Runtime(
    "llama.cpp",
    "2026.08",
    "convert_lora_to_gguf.py at 0b03ada, src/llama-adapter.cpp, src/llama-adapter.h",
    converter.RULES,
    own=(".gguf", loader.RULES),
)
