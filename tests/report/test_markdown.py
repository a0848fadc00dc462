import hostile
import pytest
from markdown_it import MarkdownIt

from lora_tools.report import Code, block, code, plain, table

TEXTS = [
    *hostile.ESCAPES,
    hostile.LINES,
    "a|b`c``d",
    "[x](javascript:alert(1))",
    "![x](http://evil.example/pixel.png)",
    "<script>alert(1)</script>",
    "&lt;b&gt; *bold* _it_ __b__ ~~s~~ $x$",
    "[1](http://evil.example) [2]: x [0..3]",
    "`",
    " `` ",
    "\\|",
    "a\\",
]


def read(markdown: str) -> tuple[str, set[str]]:
    """Return the text that a reader sees, and the kinds of elements that there are."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    inner = [child for token in tokens if token.type == "inline" for child in token.children]
    return "".join(child.content for child in inner), {child.type for child in inner}


@pytest.mark.parametrize("text", TEXTS)
def test_a_name_is_read_as_it_is(text):
    from lora_tools.text import label

    seen, kinds = read(f"of {plain(text)} it")
    assert seen == f"of {label(text)} it"
    assert kinds == {"text", "text_special"} or kinds == {"text"}
    seen, kinds = read(f"of {code(text)} it")
    assert seen == f"of {label(text)} it"
    assert kinds == {"text", "code_inline"}


@pytest.mark.parametrize("text", TEXTS)
def test_a_cell_keeps_what_it_holds(text):
    from lora_tools.text import label

    tokens = (
        MarkdownIt("commonmark")
        .enable("table")
        .parse(table([(text, Code(text), 1)], ("a", "b", "c"), "pipe"))
    )
    cells = [token for token in tokens if token.type == "inline"]
    assert len(cells) == 6
    first, second = ("".join(part.content for part in cell.children) for cell in cells[3:5])
    assert first == label(text).strip()
    assert second.strip() == label(text).strip()


def test_names_of_modules_need_no_escapes():
    name = "model.layers.[0..11,14].self_attn.q_proj"
    assert plain(name) == name


def test_no_line_ends_a_block():
    lines = block("sh", "```", "rm -rf /", "````\n# Title")
    (token,) = MarkdownIt("commonmark").parse("\n".join(lines))
    assert token.type == "fence"
    assert token.content == "```\nrm -rf /\n````\\n# Title\n"
