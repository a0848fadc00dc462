import os

import numpy as np
import pytest

from lora_tools.errors import CheckpointError
from lora_tools.files.transfer import copy, get, opened, put


@pytest.fixture
def files(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(np.random.default_rng(0).bytes(3_000_000))
    target = tmp_path / "target"
    target.write_bytes(bytes(4_000_000))
    return source, target


@pytest.mark.parametrize("kernel", [True, False])
def test_bytes_are_copied_to_their_place(files, kernel, monkeypatch):
    def refuse(*_: object) -> int:
        raise OSError(18, "Invalid cross-device link")

    if not kernel:
        monkeypatch.setattr(os, "copy_file_range", refuse)
    source, target = files
    with opened(source) as x, opened(target, os.O_WRONLY) as y:
        copy(x, 100, 2_500_000, y, 7)
    assert target.read_bytes()[7 : 7 + 2_500_000] == source.read_bytes()[100 : 100 + 2_500_000]
    assert target.stat().st_size == 4_000_000


def test_what_was_put_is_got(files):
    data = np.arange(1000, dtype=np.uint8)
    with opened(files[1], os.O_RDWR) as file:
        put(file, data.data, 5000)
        back = np.empty_like(data)
        get(file, back, 5000)
    assert np.array_equal(back, data)


def test_a_file_that_ends_too_soon_is_an_error(files):
    source, target = files
    with opened(source) as x, opened(target, os.O_WRONLY) as y:
        with pytest.raises(CheckpointError, match="became shorter"):
            get(x, np.empty(10, np.uint8), 3_000_000)
        with pytest.raises(CheckpointError, match="became shorter"):
            copy(x, 2_999_999, 2, y, 0)
