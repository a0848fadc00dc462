"""Strings of pickles, without unpickling, and members of zips."""

import pickle
import zipfile
from io import BytesIO

import numpy as np
import pytest
import torch

from lora_tools.errors import RefusedError
from lora_tools.verbs.push.texts import pickles, texts


def found(name, data):
    return {text.text for text in texts(name, data)}


@pytest.mark.parametrize("zipped", [True, False])
def test_names_and_strings_of_a_checkpoint(zipped):
    file = BytesIO()
    state = {"lora.weight": torch.ones(3, 4), "config": {"dir": "the secret"}}
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    assert {"lora.weight", "config", "dir", "the secret"} <= found("adapter.bin", file.getvalue())


def test_nothing_is_unpickled():
    class Hostile:
        def __reduce__(self):
            return exec, ("raise SystemExit('the secret')",)

    assert any("the secret" in text for text in found("a.pt", pickle.dumps(Hostile())))


def test_arrays_of_a_zip_are_named_and_other_members_are_searched():
    file = BytesIO()
    np.savez(file, **{"layer.lora_a": np.ones(2)})
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("notes.txt", "the secret")
        archive.comment = b"another secret"
    assert found("adapters.npz", file.getvalue()) == {
        "layer.lora_a.npy",
        "notes.txt",
        "the secret",
        "another secret",
    }


def test_a_bomb_is_refused():
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/notes.txt", bytes(pickles.LIMIT + 1))
    with pytest.raises(RefusedError, match=r"a\.pt: x/notes\.txt .* more than 64 MiB"):
        found("a.pt", file.getvalue())


def test_a_damaged_zip_is_refused():
    with pytest.raises(RefusedError, match=r"a\.bin: damaged"):
        found("a.bin", b"PK\3\4" + bytes(99))


def test_a_string_of_gigabytes_is_refused_before_it_is_read():
    data = b"\x80\4\x8d" + (1 << 40).to_bytes(8, "little") + b"x"
    with pytest.raises(RefusedError, match=r"a\.pt: a string"):
        found("a.pt", data)
