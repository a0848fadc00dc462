"""diffusers' own converters judge the tables of diffusion models, bit for bit, and back again."""

import pytest
from dialects import assert_equal, converted, numbers_in, randomised
from image_models import CASES, read_by_diffusers
from judges import judge

from lora_tools.architectures.families import family


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_single_file_made_by_the_table_is_what_diffusers_reads(case):
    diffusers = judge("diffusers")
    known = family(case.name)
    model = randomised(getattr(diffusers, case.model)(**case.config))
    state = numbers_in(model.state_dict())
    ours = {key: array for key, array in state.items() if key not in case.without}
    theirs = converted(ours, known, "diffusers", case.dialect)
    assert_equal(converted(theirs, known, case.dialect, "diffusers"), ours)
    if case.converter:
        assert_equal(numbers_in(read_by_diffusers(case, theirs, dict(model.config))), ours)
