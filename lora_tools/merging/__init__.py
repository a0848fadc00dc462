"""Recipes of merges: what becomes of every tensor of a base, before any of it is computed."""

from lora_tools.merging.draft import Options
from lora_tools.merging.entry import Entry, Outcome
from lora_tools.merging.place import Strong
from lora_tools.merging.recipe import Recipe, general, plan

__all__ = ["Entry", "Options", "Outcome", "Recipe", "Strong", "general", "plan"]
