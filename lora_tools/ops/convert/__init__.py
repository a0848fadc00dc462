"""Convert: spell an adapter in another format, with the same updates."""

from lora_tools.ops.convert.convert import Converted, convert
from lora_tools.ops.convert.outcome import Outcome, Row

__all__ = ["Converted", "Outcome", "Row", "convert"]
