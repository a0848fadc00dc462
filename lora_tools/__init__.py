"""Adapter checkpoints: see what is in them, re-factor them, and know what that cost.

The public names, loaded when they are first used: importing the package imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_tools.adapter import Adapter, read, write
    from lora_tools.errors import LoraToolsError
    from lora_tools.executors import Executor, Serial, Threads
    from lora_tools.files.writer import staged
    from lora_tools.formats.registry import format_named
    from lora_tools.hub import locate
    from lora_tools.linalg.rank import Energy, Fixed, MaxBytes, MaxError, MaxParams, RankPolicy
    from lora_tools.linalg.svd import SVD, svd
    from lora_tools.model import Model, open_model
    from lora_tools.report import Report
    from lora_tools.rewrite import RewriteOptions
    from lora_tools.runtimes import VLLM
    from lora_tools.update import Biased, DoRA, LowRank, Update
    from lora_tools.verbs.combine import Weights, combine
    from lora_tools.verbs.convert import convert
    from lora_tools.verbs.convert.translation import translate
    from lora_tools.verbs.diff import diff
    from lora_tools.verbs.inspect import inspect, read_or_list
    from lora_tools.verbs.shrink import shrink, survey
    from lora_tools.version import __version__ as __version__

_MODULES = {
    "adapter": ("Adapter", "read", "write"),
    "executors": ("Executor", "Serial", "Threads"),
    "errors": ("LoraToolsError",),
    "formats.registry": ("format_named",),
    "linalg.rank": ("Energy", "Fixed", "MaxBytes", "MaxError", "MaxParams", "RankPolicy"),
    "linalg.svd": ("SVD", "svd"),
    "model": ("Model", "open_model"),
    "verbs.diff": ("diff",),
    "verbs.combine": ("Weights", "combine"),
    "verbs.convert": ("convert", "translate"),
    "verbs.inspect": ("inspect", "read_or_list"),
    "verbs.shrink": ("shrink", "survey"),
    "rewrite": ("RewriteOptions",),
    "runtimes": ("VLLM",),
    "hub": ("locate",),
    "report": ("Report",),
    "files.writer": ("staged",),
    "version": ("__version__",),
    "update": ("Biased", "DoRA", "LowRank", "Update"),
}
_MODULE = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "SVD",
    "VLLM",
    "Adapter",
    "Biased",
    "DoRA",
    "Energy",
    "Executor",
    "Fixed",
    "LoraToolsError",
    "LowRank",
    "MaxBytes",
    "MaxError",
    "MaxParams",
    "Model",
    "RankPolicy",
    "Report",
    "RewriteOptions",
    "Serial",
    "Threads",
    "Update",
    "Weights",
    "combine",
    "convert",
    "diff",
    "format_named",
    "inspect",
    "locate",
    "open_model",
    "read",
    "read_or_list",
    "shrink",
    "staged",
    "survey",
    "svd",
    "translate",
    "write",
]


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first used."""
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
