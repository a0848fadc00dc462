"""Objects that strangers wrote: JSON and YAML, parsed as far as they can be trusted to mean one."""

import json
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from typing import Any

from lora_tools.errors import CheckpointError, LoraToolsError, some
from lora_tools.files.inputs import MAX_TEXT, read_input
from lora_tools.files.location import Location

YAML = (".yaml", ".yml")
MAX_YAML = 1_000_000
"""The largest YAML file that is read, in bytes: its parser takes seconds for each megabyte."""
DEEPEST = 100
"""Brackets within brackets. Configurations have about five; Python's own stack ends near 1,000."""

SURROGATE = re.compile(r"\\[uU]0*[dD][89a-fA-F]")
"""How text may escape half of a surrogate pair, which no encoding can write."""

FAULTS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What parsers raise for text that is not of their language, pyyaml's `YAMLError` aside."""


def read_object(file: Location, error: type[LoraToolsError] = CheckpointError) -> dict[str, Any]:
    """Return the object that is the whole of a file: YAML by its ending, or else JSON.

    Raises an ``error`` if it is anything else.
    """
    yaml = file.suffix in YAML
    parse = yaml_object if yaml else json_object
    return parse(read_input(file, MAX_YAML if yaml else MAX_TEXT), str(file), error)


def json_object(
    text: str | bytes, where: str, error: type[LoraToolsError] = CheckpointError
) -> dict[str, Any]:
    """Return the object that is the whole of a JSON text.

    Raises an ``error`` that names ``where`` it is, also if a name occurs twice in one object: which
    value counts depends on the parser.
    """
    return _object(_json, text, "JSON", where, error)


def json_value(text: str | bytes, where: str, error: type[LoraToolsError] = CheckpointError) -> Any:
    """Return whatever a JSON text is, as `json_object` does."""
    return _value(_json, text, "JSON", where, error)


def yaml_object(
    text: str | bytes, where: str, error: type[LoraToolsError] = CheckpointError
) -> dict[str, Any]:
    """Return the mapping that is the whole of a YAML text, as `json_object` does; {} for nothing.

    What would make objects of Python is refused.
    """
    return _object(_yaml, text, "YAML", where, error)


def _object(
    parse: Callable[[str], Any],
    text: str | bytes,
    kind: str,
    where: str,
    error: type[LoraToolsError],
) -> dict[str, Any]:
    found = _value(parse, text, kind, where, error)
    if not isinstance(found, dict):
        raise error(f"{where}: not a {kind} object")
    return found


def _value(
    parse: Callable[[str], Any],
    text: str | bytes,
    kind: str,
    where: str,
    error: type[LoraToolsError],
) -> Any:
    try:
        decoded = text if isinstance(text, str) else text.decode(json.detect_encoding(text))
        found = parse(decoded)
        _check(found, decoded)
    except FAULTS as fault:
        raise error(f"{where}: not valid {kind} ({fault})") from fault
    return found


def _json(text: str) -> Any:
    return json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_unique)


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"names occur twice: {some(key for key in counts if counts[key] > 1)}")
    return found


def _yaml(text: str) -> Any:
    import yaml  # few folders have any

    class Loader(yaml.SafeLoader):
        """`yaml.SafeLoader`, but that a key which occurs twice is an error, as YAML says it is."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            if all(isinstance(key, Hashable) for key in keys):
                _unique([(key, None) for key in keys if key != "<<"])
            return super().construct_mapping(node, deep)

    try:
        found = yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error).partition("\n")[0]) from error
    return {} if found is None else found


def _check(found: Any, text: str) -> None:
    """Raise `ValueError` for values that could not be walked or written again."""
    _check_depth(found, text)
    text.encode()
    if SURROGATE.search(text):
        json.dumps(found, ensure_ascii=False, default=str).encode()


def _check_depth(found: Any, text: str) -> None:
    marks = text.count("[") + text.count("{") + text.count("\n")  # indentation nests in YAML
    if marks < DEEPEST and "&" not in text:
        return
    level, count = [found], 0
    for _ in range(DEEPEST):
        level = [inner for value in level for inner in _inner(value)]
        count += len(level)
        if not level:
            return
        if count > len(text):  # every value has a character, but for YAML's aliases
            raise ValueError("aliases repeat values without end")
    raise ValueError(f"more than {DEEPEST} levels deep")


def _inner(value: Any) -> Iterator[Any]:
    match value:
        case dict():
            yield from value.values()
        case list():
            yield from value
