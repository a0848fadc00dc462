"""The version of lora-tools."""

__version__ = "0.1.0"
