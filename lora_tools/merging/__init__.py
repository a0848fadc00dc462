"""Plans of merges: what becomes of every tensor of a base, before any of it is computed."""

from lora_tools.merging.matched import WeightedAdapter
from lora_tools.merging.merge_plan import MergePlan, configured, general, plan
from lora_tools.merging.planner import MergeOptions
from lora_tools.merging.tensor_plan import Outcome, TensorPlan

__all__ = [
    "MergeOptions",
    "MergePlan",
    "Outcome",
    "TensorPlan",
    "WeightedAdapter",
    "configured",
    "general",
    "plan",
]
