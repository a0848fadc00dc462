"""Adapters: read lazily from files, written atomically to folders."""

from lora_tools.adapter.finding import README, REPORT
from lora_tools.adapter.reading import Adapter, read
from lora_tools.adapter.writing import laid_out, tensor_name, write

__all__ = ["README", "REPORT", "Adapter", "laid_out", "read", "tensor_name", "write"]
