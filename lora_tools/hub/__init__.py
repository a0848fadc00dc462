"""The Hugging Face Hub, as lora-tools needs it; the only import of huggingface_hub."""

from lora_tools.hub.address import Address, page, parse
from lora_tools.hub.publishing import Commission, Commit, Publisher
from lora_tools.hub.reading import (
    Blob,
    Snapshot,
    evict,
    fetch,
    hide_progress,
    is_cached,
    read_range,
    snapshot,
)

__all__ = [
    "Address",
    "Blob",
    "Commission",
    "Commit",
    "Publisher",
    "Snapshot",
    "evict",
    "fetch",
    "hide_progress",
    "is_cached",
    "page",
    "parse",
    "read_range",
    "snapshot",
]
