"""Recipes of merges: what becomes of every tensor of a base, before any of it is computed."""

from lora_tools.recipe.draft import Options
from lora_tools.recipe.entry import Entry, Outcome
from lora_tools.recipe.place import Strong
from lora_tools.recipe.recipe import Recipe, plan

__all__ = ["Entry", "Options", "Outcome", "Recipe", "Strong", "plan"]
