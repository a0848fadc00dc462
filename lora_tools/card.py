"""Our section of an adapter's README: kept between markers, so that the rest stays its author's."""

import re

BEGIN = "<!-- lora-tools: begin -->"
END = "<!-- lora-tools: end -->"
# From the last BEGIN before an END, so that a stray BEGIN costs its author nothing.
SECTION = re.compile(rf"{BEGIN}(?:(?!{BEGIN}).)*?{END}\n?", re.DOTALL)


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
