"""How jobs are mapped: one after another or by threads, with one meaning."""

from lora_tools.executors.base import Executor, Serial
from lora_tools.executors.threads import Threads, ahead

__all__ = ["Executor", "Serial", "Threads", "ahead"]
