"""Addresses: one thing per process, however often and from however deep it is asked for."""

import pickle
from pathlib import Path

import pytest

from lora_tools.errors import CheckpointError
from lora_tools.files.address import KEPT, Address, reopened
from lora_tools.files.fingerprint import check_state, state


def pair(*arguments: object) -> list[object]:
    return list(arguments)


def test_a_thing_is_opened_once_and_what_it_is_made_of_with_it():
    part = Address(pair, ("a part", 1))
    whole = reopened(Address(pair, (part, "whole")))
    assert whole == [["a part", 1], "whole"]
    assert reopened(pickle.loads(pickle.dumps(Address(pair, (part, "whole"))))) is whole
    assert reopened(part) is whole[0]


def test_few_things_are_kept():
    first = reopened(Address(pair, ("first",)))
    for number in range(KEPT):
        reopened(Address(pair, (number,)))
    assert reopened(Address(pair, ("first",))) is not first


def test_the_state_of_files_tells_sizes_times_and_absence(tmp_path: Path):
    file = tmp_path / "x"
    states = [state([file])]
    for text in ("a", "ab"):
        file.write_text(text)
        states.append(state([file]))
    states.append(state([file, file]))
    assert len(set(states)) == 4
    check_state(file, state([file]), states[2])
    with pytest.raises(CheckpointError, match="x: has changed since it was first opened"):
        check_state(file, state([file]), states[1])
