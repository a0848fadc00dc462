"""The Hugging Face Hub, as lora-tools needs it; the only import of huggingface_hub."""

from lora_tools.hub.address import HubAddress, page, parse
from lora_tools.hub.publishing import Commit, Publisher, Upload
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
    "Blob",
    "Commit",
    "HubAddress",
    "Publisher",
    "Snapshot",
    "Upload",
    "evict",
    "fetch",
    "hide_progress",
    "is_cached",
    "page",
    "parse",
    "read_range",
    "snapshot",
]
