"""Rules by which updates are combined that are no sum: each one function, with its paper."""

from lora_tools.rules.registry import RULES, rule_named
from lora_tools.rules.rule import Chosen, Rule, chosen

__all__ = ["RULES", "Chosen", "Rule", "chosen", "rule_named"]
