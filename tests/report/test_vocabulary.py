"""One name for one thing: the list of fields itself."""

import pytest

from lora_tools.report.schemas import SCHEMAS
from lora_tools.report.vocabulary import FIELDS, field

SYNONYMS = {
    "nbytes": "bytes",
    "size": "bytes",
    "parameters": "params",
    "r": "rank",
    "rank_kept": "rank_after",
    "lora_alpha": "alpha",
    "scaling": "scale",
    "ratio": "relative_norm",
    "lost": "lost_to_rounding",
    "moved": "updated_elements",
    "why": "reason",
    "detail": "reason",
    "word": "outcome",
    "what": "outcome",
    "name": "module or tensor",
    "key": "tensor",
    "weight_name": "base_tensor",
    "element_type": "dtype",
    "type": "dtype or kind",
    "command_line": "arguments",
    "factor": "strength",
    "missing": "unmatched or missing_files",
    "extras": "tensors",
    "counts": "outcomes",
    "time": "seconds",
    "remarks": "notes",
}
"""What a field could be called and is not, and what it is called."""


@pytest.mark.parametrize("name", SYNONYMS)
def test_no_field_has_a_second_name(name):
    assert name not in FIELDS, SYNONYMS[name]


def test_no_two_fields_mean_the_same():
    meanings = [(entry.meaning, entry.unit) for entry in FIELDS.values()]
    assert [each for each in meanings if meanings.count(each) > 1] == []


def test_a_side_of_a_change_is_a_field_with_a_side():
    for path in FIELDS:
        before, after = f"{path}_before", f"{path}_after"
        others = {"scale"}  # of the file that is written; the other one is `scale_before`
        assert (before in FIELDS) == (after in FIELDS) or path in others, path
        assert (f"{path}_a" in FIELDS) == (f"{path}_b" in FIELDS), path


def test_fields_are_those_of_the_documents():
    used = {path for schema in SCHEMAS.values() for path in schema.paths()}
    assert {path if path in FIELDS else path.rpartition(".")[2] for path in used} == set(FIELDS)
    for path in used:
        assert field(path).meaning


def test_an_object_has_a_figure_or_its_two_sides():
    sides = ("before", "after", "a", "b")
    for name, schema in SCHEMAS.items():
        for path, fields in schema.objects.items():
            for each in ("rank", "params", "bytes", "norm", "module", "tensor", "dtype", "shape"):
                beside = {f"{each}_{side}" for side in sides} & set(fields)
                both = each in fields and beside and each not in ("module", "tensor")
                assert not both, (name, path, each)
