"""Our section of an adapter's README: kept between markers, so that the rest stays its author's."""

BEGIN = "<!-- lora-tools: begin -->"
END = "<!-- lora-tools: end -->"


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
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        return f"{before}{ours}{after.removeprefix(chr(10))}"
    return f"{text.rstrip()}\n\n{ours}"
