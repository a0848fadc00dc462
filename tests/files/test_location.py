"""Paths of this machine and locations elsewhere answer the same questions alike."""

from pathlib import Path

import pytest

from lora_tools.files.inputs import is_present
from lora_tools.files.location import Location, entries, known_sha256, size_of
from lora_tools.files.private import allowed
from lora_tools.files.sides import side_files
from lora_tools.hub.location import HubLocation
from lora_tools.hub.reading import Blob, Snapshot

FILES = {
    ".gitattributes": 5,
    "README.md": 7,
    "adapter_model.safetensors": 9,
    "deep/er/config.json": 2,
    "deep/x.bin": 1,
    "deeper.txt": 3,
    "optimizer.pt": 4,
}


@pytest.fixture(params=["here", "hub"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """The same files on this machine and on the Hub, which is not asked."""
    if request.param == "hub":
        files = {name: Blob(size, "", None) for name, size in FILES.items()}
        return HubLocation(Snapshot("org/name", "c" * 40, files))
    for name, size in FILES.items():
        file = tmp_path / "name" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(size))
    return tmp_path / "name"


def test_names(folder):
    file = folder / "deep" / "er" / "config.json"
    assert file == folder / "deep/er/config.json" == folder / "." / "deep//er/./config.json"
    assert hash(file) == hash(folder / "deep/er/config.json")
    assert file != folder / "deep"
    assert (file.name, file.suffix, folder.name) == ("config.json", ".json", "name")
    assert file.parent == folder / "deep/er"
    assert file.parent.parent.parent == folder
    assert str(file) == f"{folder}/deep/er/config.json"
    assert file.absolute() == file


@pytest.mark.parametrize(
    ("name", "is_file", "is_dir"),
    [
        ("README.md", True, False),
        ("deep", False, True),
        ("deep/er", False, True),
        ("deep/er/config.json", True, False),
        ("dee", False, False),
        ("none", False, False),
        ("README.md/none", False, False),
    ],
)
def test_what_is_there(name, is_file, is_dir, folder):
    place = folder / name
    assert (place.is_file(), place.is_dir()) == (is_file, is_dir)
    assert place.exists() == is_present(place) == (is_file or is_dir)


def test_entries_in_the_order_of_their_names(folder):
    names = [entry.name for entry in entries(folder)]
    assert names == sorted(name.split("/")[0] for name in FILES if name != "deep/x.bin")
    assert [entry.name for entry in entries(folder, "*.safetensors")] == [
        "adapter_model.safetensors"
    ]
    assert entries(folder / "deep", "*.bin") == [folder / "deep/x.bin"]
    assert entries(folder, "*.GGUF") == []


def test_sizes(folder):
    assert {name: size_of(folder / name) for name in FILES} == FILES
    with pytest.raises(FileNotFoundError, match="none"):
        size_of(folder / "none")


def test_what_is_known_of_a_file_elsewhere_is_asked_without_reading_it(tmp_path):
    files = {
        "large.safetensors": Blob(9, "b" * 40, "a" * 64),
        "small.json": Blob(2, "c" * 40, None),
    }
    elsewhere = HubLocation(Snapshot("org/name", "c" * 40, files))
    assert known_sha256(elsewhere / "large.safetensors") == "a" * 64
    assert known_sha256(elsewhere / "small.json") is None
    assert known_sha256(tmp_path) is None


def test_side_files(folder):
    carried, left_out = side_files(folder, ["adapter_model.safetensors"])
    assert carried == (folder / "README.md", folder / "deeper.txt")
    assert left_out == {
        ".gitattributes": "hidden",
        "deep": "a folder",
        "optimizer.pt": "other weights or training state",
    }


def test_what_is_elsewhere_withholds_nothing(folder):
    if not isinstance(folder, Path):
        assert allowed([folder, folder / "README.md"]) == 0o777
        return
    (folder / "README.md").chmod(0o600)
    assert allowed([folder / "README.md"]) == 0o700
