"""Rules by which updates are combined that are no sum: each one function, with its paper."""

from lora_tools.rules.registry import RULES, rule_named
from lora_tools.rules.rule import ParametrisedRule, Rule, parametrised

__all__ = ["RULES", "ParametrisedRule", "Rule", "parametrised", "rule_named"]
