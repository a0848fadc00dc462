from lora_tools.report import table
from lora_tools.report.table import PIPE, Code


def test_a_cell_is_one_line_of_one_cell():
    text = table([("a\nb\x1b[31m", 3)], ("name", "count"))
    assert text.split("\n")[2:] == ["a\\nb\\x1b[31m  3"]


def test_a_long_name_loses_its_middle():
    (*_, line) = table([("x" * 10**6, 1)], ("name", "count")).split("\n")
    assert len(line) < 250
    assert "x…x" in line


def test_a_terminal_has_columns_and_markdown_bars():
    rows = [("q_proj", 8, "1 %"), ("a_much_longer_name", 16, "12 %")]
    headers, align = ("module", "rank", "error"), ("left", "right", "right")
    assert table(rows, headers, align=align).split("\n") == [
        "module                rank    error",
        "------------------  ------  -------",
        "q_proj                   8      1 %",
        "a_much_longer_name      16     12 %",
    ]
    assert table(rows, headers, PIPE, align).split("\n") == [
        "| module             |   rank |   error |",
        "|:-------------------|-------:|--------:|",
        "| q_proj             |      8 |     1 % |",
        "| a_much_longer_name |     16 |    12 % |",
    ]


def test_a_table_without_rows_has_its_header():
    assert table([], ("a", "b")).split("\n") == ["a    b", "---  ---"]


def test_a_bar_in_a_name_does_not_end_its_cell():
    (*_, line) = table([("a|b", Code("c|d"))], ("x", "y"), PIPE).split("\n")
    assert line.count("|") - line.count("\\|") == 3
