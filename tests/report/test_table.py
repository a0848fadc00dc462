from lora_tools.report import table


def test_a_cell_is_one_line_of_one_cell():
    text = table([("a\nb\x1b[31m", 3)], ("name", "count"))
    assert text.split("\n")[2:] == ["a\\nb\\x1b[31m  3"]


def test_a_long_name_loses_its_middle():
    (*_, line) = table([("x" * 10**6, 1)], ("name", "count")).split("\n")
    assert len(line) < 250
    assert "x…x" in line
