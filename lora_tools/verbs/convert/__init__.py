"""Convert: spell an adapter in another format, with the same updates."""

from lora_tools.verbs.convert.convert import Converted, convert, rewritten
from lora_tools.verbs.convert.outcome import Outcome, Row
from lora_tools.verbs.convert.translate import translate
from lora_tools.verbs.convert.translated import Translated

__all__ = ["Converted", "Outcome", "Row", "Translated", "convert", "rewritten", "translate"]
