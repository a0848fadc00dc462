"""The texts of a notebook, cell by cell, with what its cells printed and drew."""

import json
from base64 import b64decode
from collections.abc import Iterator
from io import BytesIO
from typing import Any, BinaryIO

from lora_tools.verbs.push.texts.images import png
from lora_tools.verbs.push.texts.plain import decoded
from lora_tools.verbs.push.texts.text import LIMIT, Text, pieces


def notebook(file: BinaryIO, name: str) -> Iterator[Text]:
    """Yield sources, outputs and metadata; line by line what is no notebook, or a huge one."""
    data = file.read(LIMIT)
    document = _document(data) if len(data) < LIMIT else None
    if document is None:
        file.seek(0)
        yield from pieces(decoded(file), numbered=True)
        return
    for number, cell in enumerate(document.pop("cells"), 1):
        outputs = cell.pop("outputs", ()) if isinstance(cell, dict) else ()
        yield from _walk(cell, f"cell {number}", name)
        for count, output in enumerate(outputs, 1):
            yield from _walk(output, f"cell {number}, output {count}", name)
    yield from _walk(document, "its metadata", name)


def _document(data: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if isinstance(document, dict) and isinstance(document.get("cells"), list):
        return document
    return None


def _walk(value: Any, place: str, name: str) -> Iterator[Text]:
    """Yield every string of a value, and its keys with those that they belong to."""
    match value:
        case str():
            yield from pieces([value], place, numbered=True)
        case list() if value and all(isinstance(item, str) for item in value):
            yield from pieces(["".join(value)], place, numbered=True)
        case list():
            for item in value:
                yield from _walk(item, place, name)
        case dict():
            for key, item in value.items():
                if key == "image/png" and (image := _image(item)):
                    for text in png(BytesIO(image), name):
                        yield text._replace(place=f"{place}, {text.place}")
                elif isinstance(item, str):
                    yield from pieces([f"{key}: {item}"], place, numbered=True)
                else:
                    yield from pieces([key], place)
                    yield from _walk(item, place, name)


def _image(value: Any) -> bytes | None:
    try:
        data = b64decode("".join(value))
    except (TypeError, ValueError):
        return None
    return data if data.startswith(b"\x89PNG") else None
