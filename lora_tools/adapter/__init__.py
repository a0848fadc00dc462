"""Adapters: read lazily from files, written atomically to folders.

What writes is imported when it is first used: most commands only read.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lora_tools.adapter.finding import README, REPORT
from lora_tools.adapter.reading import Adapter, read

if TYPE_CHECKING:
    from lora_tools.adapter.writing import laid_out, tensor_name, write

__all__ = ["README", "REPORT", "Adapter", "laid_out", "read", "tensor_name", "write"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.writing"), name)
