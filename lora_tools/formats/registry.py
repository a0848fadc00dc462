"""The formats there are: ours, those of other packages, and namings that nobody reads."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from lora_tools.errors import FormatError, PackageError, UnsupportedError, some, suggestion
from lora_tools.files.header import Spec
from lora_tools.formats.base import Format
from lora_tools.formats.comfyui import ComfyUI
from lora_tools.formats.diffusers import OMI, Diffusers
from lora_tools.formats.gguf import LlamaCpp
from lora_tools.formats.kohya import Kohya
from lora_tools.formats.litgpt import LitGPT
from lora_tools.formats.loralib import Loralib
from lora_tools.formats.megatron import Megatron
from lora_tools.formats.mlx import MLX
from lora_tools.formats.peft import Peft
from lora_tools.formats.torchtune import Torchtune
from lora_tools.formats.xlabs import XLabs

PEFT = Peft()
"""What new adapters are written as: every runtime reads it."""
FORMATS: tuple[Format, ...] = (
    PEFT,
    Kohya(),
    Diffusers(),
    ComfyUI(),
    MLX(),
    XLabs(),
    LlamaCpp(),
    Torchtune(),
    Loralib(),
    LitGPT(),
    Megatron(),
)
# Spellings that say too little for anyone to use the tensors without the code that made them.
UNREADABLE = (
    (
        re.compile(r":(up|down)$"),
        "lora-diffusion numbers its pairs in the order of the model's layers: which weight a pair"
        " belongs to is not in the file",
    ),
    (
        re.compile(r"^#\d+$"),
        "the file is a list of tensors without names: which weight each belongs to is not in it",
    ),
    (
        OMI,
        "the Open Model Initiative's names number the parts of fused layers (qkv.0, linear1.3),"
        " which is not supported: have it saved in the names of diffusers or of kohya",
    ),
    (
        re.compile(r"^w_[ab]_\d+$"),
        "numbered pairs of a script's own, as LoRAs of segment-anything have them: neither the"
        " weight that a pair belongs to nor its scale is in the file",
    ),
)

PLUGINS = "lora_tools.formats"
"""The group of entry points under which other packages offer formats."""


def known() -> Iterator[Format]:
    """Yield every format: ours and, where none of those is taken, those of other packages."""
    yield from FORMATS
    yield from plugins()


def format_named(name: str) -> Format:
    """Return the format of a name; `FormatError` if there is none."""
    for format in known():
        if format.name == name:
            return format
    meant = suggestion(name, (format.name for format in known()))
    raise FormatError(f"there is no format {name}").hint(
        f"{meant}Known formats: {_names(known())}."
    )


@cache
def plugins() -> tuple[Format, ...]:
    """Return the formats of other packages: instances, or classes without arguments.

    They are loaded only where ours do not do. Raises `PackageError` for one that cannot be.
    """
    from importlib.metadata import entry_points  # takes as long as a small command

    formats = []
    for entry in entry_points(group=PLUGINS):
        try:
            loaded = entry.load()
            formats.append(loaded() if isinstance(loaded, type) else loaded)
        except Exception as error:  # anybody's code
            raise PackageError(
                f"{entry.value}: the format {entry.name} of another package cannot be loaded"
                f" ({type(error).__name__}: {error})"
            ).hint("Update that package, or uninstall it.") from error
    return tuple(formats)


def detected(
    specs: Mapping[str, Spec],
    config: Mapping[str, Any] | None,
    own: Callable[[Format], Mapping[str, Any] | None] | None = None,
    file: str = "",
) -> Format:
    """Return the one format that recognises an adapter, by its tensors rather than its folder.

    ``config`` is the configuration that ours have; ``own`` returns that of another package's
    format, and ``file`` is the name of the tensors' file. Raises `FormatError` if none recognises
    it or several do, `UnsupportedError` for a layout that is known and not read.
    """
    claims = [format for format in FORMATS if format.detect(specs, config)]
    if len(claims) == 1 and file in claims[0].files:
        return claims[0]
    if not any(format.detect(specs, None) for format in claims):  # by a configuration, if at all
        others = [f for f in plugins() if f.detect(specs, own(f) if own else config)]
        claims = others or claims
    if len(claims) > 1:  # the configuration may be that of a neighbour
        claims = [format for format in claims if format.detect(specs, None)] or claims
    if len(claims) == 1:
        return claims[0]
    if claims:
        raise FormatError(f"could be in each of these formats: {_names(claims)}").hint(
            "Say which: --format NAME."
        )
    if reason := _known_unreadable(specs):
        raise UnsupportedError(reason)
    raise FormatError(f"in no known adapter format; its tensors are named {some(specs)}").hint(
        f"Known formats: {_names(known())}."
    )


def _known_unreadable(specs: Mapping[str, Spec]) -> str | None:
    return next((why for form, why in UNREADABLE if any(map(form.search, specs))), None)


def _names(formats: Iterable[Format]) -> str:
    return ", ".join(format.name for format in formats)
