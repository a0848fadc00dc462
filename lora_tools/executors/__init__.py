"""How jobs are mapped: one after another or by threads, with one meaning."""

from lora_tools.executors.base import Executor
from lora_tools.executors.serial import Serial
from lora_tools.executors.threads import Threads

__all__ = ["Executor", "Serial", "Threads"]
