"""The blocks of a model, as those call them who weigh them: ``IN04``, ``MID``, ``OUT11``."""

import re
from collections.abc import Iterator, Mapping
from functools import partial

from lora_tools.architectures.detection import Component, detect
from lora_tools.architectures.index import Candidate
from lora_tools.architectures.layout import Dimensions
from lora_tools.architectures.translation import translate


def named_blocks(modules: Mapping[str, Dimensions]) -> dict[str, tuple[str, ...]]:
    """Return the names of the block that each module is in, of families whose blocks have some.

    Raises `UnsupportedError` where the families that modules may be of count blocks otherwise.

    >>> path = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    >>> named_blocks({f"unet.{path}": Dimensions(640, 640)})[f"unet.{path}"]
    ('IN04',)
    """
    found: dict[str, tuple[str, ...]] = {}
    for each in detect(modules):
        component = each.among(lambda candidate: candidate.family.block_names is not None)
        if component.candidates:
            found |= component.decide(partial(_named, component, modules))
    return found


def _named(
    component: Component, modules: Mapping[str, Dimensions], candidate: Candidate
) -> dict[str, tuple[str, ...]]:
    """Return the labels of a component's modules, as a family has them."""
    names = {path: name for name, path in component.paths[candidate].items()}
    return {names[path]: labels for path, labels in _labels(candidate, names, modules)}


def _labels(
    candidate: Candidate, names: Mapping[str, str], modules: Mapping[str, Dimensions]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the labels of a component's paths."""
    named = candidate.family.block_names
    assert named is not None
    sizes = {path: modules[name] for path, name in names.items()}
    for target in translate(sizes, candidate, named.dialect, {}).targets:
        for pattern, labels in named.labels.items():
            if match := re.match(pattern.replace("#", r"(\d+)"), target.path):
                numbers = [int(number) for number in match.groups()]
                yield from (
                    (piece.module, tuple(label.format(*numbers) for label in labels))
                    for piece in target.pieces
                )
