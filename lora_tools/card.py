"""Our part of an adapter's README: a section between markers, and fields of its front matter.

The rest stays as it was written, to the letter.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_tools.errors import FormatError
from lora_tools.files.disk import naming
from lora_tools.files.inputs import is_present
from lora_tools.files.location import Location
from lora_tools.files.objects import yaml_object
from lora_tools.files.sides import create, opened, why_not

BEGIN = "<!-- lora-tools: begin -->"
END = "<!-- lora-tools: end -->"
# From the last BEGIN before an END, so that a stray BEGIN costs its author nothing.
SECTION = re.compile(rf"{BEGIN}(?:(?!{BEGIN}).)*?{END}\n?", re.DOTALL)


def carry(readme: Location, target: Path, section: str) -> tuple[str, ...]:
    """Copy a README with our section in it; return what a person should know of that.

    Writes nothing if there is none, or none that may go along. One that is not UTF-8 stays as it
    is, byte for byte.
    """
    if not is_present(readme):
        return ()
    if why := why_not(readme):
        return (f"{readme.name} is left out: {why}",)
    with opened(readme) as source, naming(target), create(target, source) as copy:
        data = source.read()
        try:
            text = data.decode()
        except UnicodeDecodeError:
            copy.write(data)
            return (f"{readme.name} is not UTF-8: copied as it is, without a section about this.",)
        copy.write(with_section(text, section).encode())
    return ()


def decoded(data: bytes, name: object) -> str:
    """Return the text of a README that is to be published; `FormatError` if it is not UTF-8."""
    try:
        return data.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise FormatError(f"{name}: is not UTF-8 ({error})").hint("Save it as UTF-8.") from error


def with_section(text: str, section: str) -> str:
    """Return ``text`` with our section replaced, or appended where there is none.

    >>> print(with_section("# Mine", "new"))
    # Mine
    <BLANKLINE>
    <!-- lora-tools: begin -->
    new
    <!-- lora-tools: end -->
    <BLANKLINE>
    """
    ours = f"{BEGIN}\n{section}\n{END}\n"
    if found := SECTION.search(text):
        return f"{text[: found.start()]}{ours}{text[found.end() :]}"
    return f"{text.rstrip()}\n\n{ours}"


FRONT = re.compile(r"\A---[ \t]*\n(.*?)^---[ \t]*$\n?", re.DOTALL | re.MULTILINE)
KEY = re.compile(r"^(?=[^\s-])", re.MULTILINE)
"""Where a field of the outermost level begins, or a comment."""


def metadata(text: str) -> dict[str, Any]:
    """Return the front matter of a README; `FormatError` if it is no YAML mapping."""
    found = FRONT.match(text)
    return yaml_object(found[1], "README.md: the front matter", FormatError) if found else {}


def with_metadata(text: str, fields: Mapping[str, Any]) -> str:
    r"""Return ``text`` with these fields in its front matter, the lines of the others untouched.

    >>> print(with_metadata("---\nlicense: mit  # mine\n---\n# Cat", {"tags": ["lora"]}))
    ---
    license: mit  # mine
    tags:
    - lora
    ---
    # Cat
    """
    import yaml

    old = metadata(text)
    found = FRONT.match(text)
    front, rest = (found[1], text[found.end() :]) if found else ("", text)
    blocks = [block for block in KEY.split(front) if block]
    for name, value in fields.items():
        if name in old and old[name] == value:
            continue
        new = yaml.safe_dump({name: value}, allow_unicode=True, sort_keys=False)
        mine = [i for i, block in enumerate(blocks) if re.match(rf"[\"']?{name}[\"']?\s*:", block)]
        if mine:
            blocks[mine[0]] = new
        else:
            blocks.append(new)
    if not blocks:
        return text
    lines = "".join(block if block.endswith("\n") else f"{block}\n" for block in blocks)
    wanted = {**old, **fields}
    try:
        sound = yaml_object(lines, "README.md", FormatError) == wanted
    except FormatError:
        sound = False
    if not sound:  # spelled in a way that lines do not tell apart
        lines = yaml.safe_dump(wanted, allow_unicode=True, sort_keys=False)
    return f"---\n{lines}---\n{rest}"
