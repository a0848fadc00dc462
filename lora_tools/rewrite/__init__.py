"""Rewrite: the one road from an adapter to an adapter.

``Source`` → ``survey`` (spectra) → policy (ranks) → ``Rewrite`` (layout) → changes → report. Shrink
and convert differ in the source and in the policy, and in nothing else.
"""

from lora_tools.rewrite.options import RewriteOptions
from lora_tools.rewrite.plan import Rewrite, keep
from lora_tools.rewrite.source import Origin, Source
from lora_tools.rewrite.survey import Survey, UniformRank, survey

__all__ = [
    "Origin",
    "Rewrite",
    "RewriteOptions",
    "Source",
    "Survey",
    "UniformRank",
    "keep",
    "survey",
]
