"""Real packages as judges of what is written, each named loudly where it is not installed."""

from importlib import import_module
from types import ModuleType

import pytest


def judge(name: str) -> ModuleType:
    """Import a package, or skip the test and say what is missing."""
    try:
        return import_module(name)
    except ImportError:
        pytest.skip(f"SKIPPED FOR WANT OF THE PACKAGE {name}: pip install -e '.[test]'")
