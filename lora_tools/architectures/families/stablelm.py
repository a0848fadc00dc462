"""StableLM, named as Llama."""

from lora_tools.architectures.decoders import gguf, gguf_layer, like_llama

STABLELM = like_llama("StableLM", ("stablelm",), {"gguf": gguf(gguf_layer())})
