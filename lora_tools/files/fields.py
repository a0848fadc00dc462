"""Typed values in text: how metadata, which is text elsewhere, holds the fields of a GGUF file.

A string is itself; any other value is the name of its type and JSON: ``FLOAT32 16.0``, ``ARRAY
UINT32 [1, 2]``. A string that would be taken for one of those has ``STRING`` before it.
"""

import json
import re
import struct
from typing import Any, NamedTuple

from lora_tools.errors import CheckpointError
from lora_tools.files.objects import json_value

CODES = {
    "UINT8": "B",
    "INT8": "b",
    "UINT16": "H",
    "INT16": "h",
    "UINT32": "I",
    "INT32": "i",
    "FLOAT32": "f",
    "BOOL": "?",
    "UINT64": "Q",
    "INT64": "q",
    "FLOAT64": "d",
}
"""How `struct` packs single values, by GGUF's names of their types."""

TYPED = re.compile(rf"((?:ARRAY )?(?:{'|'.join(CODES)})|(?:ARRAY )?STRING) (.*)", re.DOTALL)


class Field(NamedTuple):
    """A value of a header and its type, as GGUF names it; an array's has two words."""

    type: str
    value: Any

    @property
    def kinds(self) -> list[str]:
        """The words of its type."""
        return self.type.split()


def text_of(field: Field) -> str:
    """Return a field as text.

    >>> text_of(Field("STRING", "lora")), text_of(Field("FLOAT32", 16.0))
    ('lora', 'FLOAT32 16.0')
    """
    if field.type == "STRING":
        text = str(field.value)
        return f"STRING {text}" if TYPED.fullmatch(text) else text
    return f"{field.type} {json.dumps(field.value, ensure_ascii=False)}"


def field_of(text: str) -> Field:
    """Return the field that a text stands for: the inverse of `text_of`.

    >>> field_of("ARRAY UINT32 [1, 2]")
    Field(type='ARRAY UINT32', value=[1, 2])
    """
    match = TYPED.fullmatch(text)
    if match is None:
        return Field("STRING", text)
    kind, value = match.groups()
    if kind == "STRING":
        return Field(kind, value)
    field = Field(kind, json_value(value, "a GGUF field"))
    try:
        pack(field)
    except (struct.error, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"a GGUF field of type {kind} is {value[:60]}") from error
    return field


def pack(field: Field) -> bytes:
    """Return the bytes of a value in a GGUF file; before an array's, its type is the caller's."""
    kind = field.kinds[-1]
    if field.kinds[0] == "ARRAY":
        items = b"".join(pack(Field(kind, item)) for item in field.value)
        return struct.pack("<Q", len(field.value)) + items
    if kind == "STRING":
        data = str(field.value).encode()
        return struct.pack("<Q", len(data)) + data
    return struct.pack(f"<{CODES[kind]}", field.value)
