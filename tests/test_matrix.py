"""Families × adapters: what the support matrix says is what happens, with the real libraries."""

import runpy
from pathlib import Path

import pytest
import tiny
from cells import COLUMNS, outcome

PAGE = runpy.run_path(str(Path(__file__).parent.parent / "docs" / "architectures.py"))
STATED = PAGE["stated"]()
LARGEST = "towers", "both", "all-linear"
"""The columns that hold the most layers, the largest first: the others are parts of them."""


def cases():
    for name in tiny.CONFIGS:
        largest = next(column for column in LARGEST if STATED[name, column])
        for column in COLUMNS:
            marks = () if column == largest else pytest.mark.slow
            yield pytest.param(name, column, marks=marks, id=f"{name}-{column}")


@pytest.mark.parametrize(("name", "column"), cases())
def test_a_cell_is_as_the_page_says(name, column, tmp_path):
    assert outcome(name, column, tmp_path) == STATED[name, column]


def test_the_page_has_every_cell():
    assert STATED.keys() == {(name, column) for name in tiny.CONFIGS for column in COLUMNS}
    assert PAGE["page"](STATED) == PAGE["PATH"].read_text(encoding="utf-8")
