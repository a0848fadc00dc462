import pytest

from lora_tools.architectures.conventions import ends
from lora_tools.architectures.families import FAMILIES
from lora_tools.architectures.index import Candidate, positions
from lora_tools.matching.ties import ANY_HEADS

TIED = [
    (family, dialect)
    for family in FAMILIES
    if family.tie
    for dialect in (family.hub, *family.dialects)
]


@pytest.mark.parametrize(("family", "dialect"), TIED, ids=lambda each: getattr(each, "name", each))
def test_a_head_of_any_family_is_one_by_its_name(family, dialect):
    """Else a tied base would be taken for one without a head, and no family would be asked."""
    for position in positions(family.tie.head, None, Candidate(family, dialect)):
        assert ends(f"{position.path}.weight", ANY_HEADS)
