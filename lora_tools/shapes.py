"""Shapes of arrays in signatures: jaxtyping's where something checks them, and free elsewhere.

Importing jaxtyping takes a tenth of a second, a good part of a small command. The tests import it
first and check every call against these shapes; type checkers read it; nothing else needs it.
"""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or "jaxtyping" in sys.modules:
    from jaxtyping import Float, Int
else:

    class _Unchecked:
        def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
            """Return the array type of ``Float[array type, shape]``."""
            return item[0]

    Float = Int = _Unchecked

__all__ = ["Float", "Int"]
