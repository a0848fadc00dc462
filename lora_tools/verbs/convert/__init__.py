"""Convert: an adapter in another format, with the same updates."""

from collections.abc import Collection

from lora_tools.adapter import Adapter
from lora_tools.executors import Executor
from lora_tools.formats.base import Format
from lora_tools.model import Model
from lora_tools.rewrite import Rewrite, keep
from lora_tools.rewrite.experts import Grouping
from lora_tools.verbs.convert.naming import nameless
from lora_tools.verbs.convert.translation import translate

__all__ = ["convert", "nameless", "translate"]


def convert(
    adapter: Adapter,
    format: Format,
    executor: Executor | None = None,
    *,
    drop: Collection[str] = (),
    paths: Model | Collection[str] = (),
    dtype: str | None = None,
    experts: Grouping | None = None,
    alpha: float | None = None,
) -> Rewrite:
    """Plan an adapter in another format, every update at the rank that it has.

    ``drop``, ``paths`` and ``experts`` are those of `translate`, and it raises what that raises. To
    lower ranks on the way, shrink what `translate` returns. With ``alpha``, every module is written
    with that one, and what it changes in the scale is folded into the factors.
    """
    source = translate(adapter, format, executor, drop=drop, paths=paths, experts=experts)
    return keep(source, executor, dtype=dtype, alpha=alpha)
