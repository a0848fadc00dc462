"""Alpha where tensors have none: in a configuration, or as a person states it."""

from typing import Any

from lora_tools.errors import FormatError
from lora_tools.files.typed import is_number, shown
from lora_tools.formats.base import Contents


def stated_alpha(contents: Contents, stated: Any, where: str) -> float:
    """Return the alpha that the files say or, where they are silent, the one that is stated.

    ``stated`` is what the files say, None for nothing, and ``where`` what they should have said it
    in. Raises `FormatError` where nobody says it: it is not guessed.
    """
    alpha = contents.alpha if stated is None else stated
    if alpha is None:
        raise FormatError(f"alpha is unknown: there is {where}").hint(
            "Say what the adapter was trained with: --alpha N."
        )
    if not is_number(alpha):
        raise FormatError(f"alpha is {shown(alpha)}, which is no number")
    return float(alpha)
