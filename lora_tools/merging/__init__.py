"""Plans of merges: what becomes of every tensor of a base, before any of it is computed."""

from lora_tools.merging.entry import Outcome, TensorPlan
from lora_tools.merging.matched import WeightedAdapter
from lora_tools.merging.merge_plan import MergePlan, general, plan
from lora_tools.merging.planner import Options

__all__ = ["MergePlan", "Options", "Outcome", "TensorPlan", "WeightedAdapter", "general", "plan"]
