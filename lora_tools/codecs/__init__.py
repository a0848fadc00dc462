"""Encodings of weights, one file each; those that are known and not read are in `unread`."""

from lora_tools.codecs.codec import Codec, Span, StoredPart
from lora_tools.codecs.fp8 import FP8
from lora_tools.codecs.plain import Plain

__all__ = ["CODECS", "Codec", "Plain", "Span", "StoredPart"]

CODECS: tuple[type[Codec], ...] = (FP8, Plain)
"""In the order in which they are asked for a weight; what nothing else encodes is plain."""
