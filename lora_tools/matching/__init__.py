"""Which weights of a model are which of another's: an adapter's of its base, a fine-tune's."""

from lora_tools.matching.adapters import Matching, match
from lora_tools.matching.pieces import Piece, Site
from lora_tools.matching.prefixes import Prefix, Prefixes, Swap, align, listed

__all__ = ["Matching", "Piece", "Prefix", "Prefixes", "Site", "Swap", "align", "listed", "match"]
