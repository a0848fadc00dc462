"""How jobs are mapped: one after another or by threads, with one meaning."""

from lora_tools.engine.base import Engine
from lora_tools.engine.serial import Serial
from lora_tools.engine.threads import Threads

__all__ = ["Engine", "Serial", "Threads"]
