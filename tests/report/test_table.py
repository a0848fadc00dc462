from lora_tools.report import Code, table

ROWS = [("a", 1, "10 %"), ("bcdef", 23, "9 %")]
HEADERS = ("module", "σ₁", "error")


def test_columns_stand_under_each_other():
    assert table(ROWS, HEADERS).split("\n") == [
        "module    σ₁    error",
        "--------  ----  -------",
        "a         1     10 %",
        "bcdef     23    9 %",
    ]


def test_columns_of_numbers_stand_to_the_right():
    assert table(ROWS, HEADERS, align=("left", "right", "right")).split("\n") == [
        "module      σ₁    error",
        "--------  ----  -------",
        "a            1     10 %",
        "bcdef       23      9 %",
    ]


def test_markdown_has_bars_and_sides():
    assert table(ROWS, HEADERS, "pipe", ("left", "right")).split("\n") == [
        "| module   |   σ₁ | error   |",
        "|:---------|-----:|:--------|",
        "| a        |    1 | 10 %    |",
        "| bcdef    |   23 | 9 %     |",
    ]


def test_wide_signs_take_two_columns_and_accents_none():
    lines = table([("模型", 1), ("e\u0301", 2), ("abcdefgh", 3)], ("x", "y")).split("\n")
    assert lines[2:] == ["模型      1", "e\u0301         2", "abcdefgh  3"]


def test_no_rows_are_a_header():
    assert table([], ("name", "count")) == "name    count\n------  -------"


def test_a_cell_is_one_line_of_one_cell():
    text = table([("a\nb\x1b[31m", 3)], ("name", "count"))
    assert text.split("\n")[2:] == ["a\\nb\\x1b[31m  3"]
    (*_, line) = table([(Code("a|b"), "c|d")], ("name", "count"), "pipe").split("\n")
    assert line == "| `a\\|b` | c\\|d    |"


def test_a_long_name_loses_its_middle():
    (*_, line) = table([("x" * 10**6, 1)], ("name", "count")).split("\n")
    assert len(line) < 250
    assert "x…x" in line
