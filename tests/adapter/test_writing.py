import json
from pathlib import Path

import pytest
import torch
from conftest import FIXTURES
from handmade import CONFIG
from safetensors import safe_open
from safetensors.torch import load_file

from lora_tools.adapter import README, REPORT, read, write
from lora_tools.errors import CheckpointError
from lora_tools.formats.peft import Peft
from lora_tools.update import LowRank

PLAIN = FIXTURES / "minilm-plain"


def copy(path: Path, out: Path) -> Path:
    """Read an adapter and write it again, unchanged."""
    adapter = read(path)
    out.mkdir()
    write(out, Peft().write(adapter.manifest), adapter.items(), like=adapter)
    return out


def test_writing_what_was_read_keeps_tensors_configuration_and_metadata(folder, tmp_path):
    out = copy(folder, tmp_path / "out")
    before = load_file(folder / "adapter_model.safetensors")
    after = load_file(out / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    with safe_open(out / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    assert CONFIG.items() <= config.items()


def test_a_fixture_is_written_byte_for_byte(tmp_path):
    out = copy(PLAIN, tmp_path / "out")
    name = "adapter_model.safetensors"
    assert (out / name).read_bytes() == (PLAIN / name).read_bytes()
    before, after = (json.loads((at / "adapter_config.json").read_text()) for at in (PLAIN, out))
    assert before == after


def test_a_pickle_is_written_as_safetensors(tmp_path):
    source = FIXTURES / "minilm-bin"
    out = copy(source, tmp_path / "out")
    assert sorted(file.name for file in out.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    before = torch.load(source / "adapter_model.bin", weights_only=True)
    after = load_file(out / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_updates_may_come_in_any_order(folder, tmp_path):
    adapter = read(folder)
    bytes_ = []
    for name, items in (("a", list(adapter.items())), ("b", list(adapter.items())[::-1])):
        (tmp_path / name).mkdir()
        write(tmp_path / name, Peft().write(adapter.manifest), items, like=adapter)
        bytes_.append((tmp_path / name / "adapter_model.safetensors").read_bytes())
    assert bytes_[0] == bytes_[1]


def test_an_update_that_never_came_is_named(folder, tmp_path):
    adapter = read(folder)
    (tmp_path / "out").mkdir()
    updates = [(name, adapter[name]) for name in adapter if name != "h.1.q"]
    with pytest.raises(CheckpointError, match=r"never written: .*h\.1\.q\.lora_A"):
        write(tmp_path / "out", Peft().write(adapter.manifest), updates, like=adapter)


def test_an_update_of_another_type_than_laid_out_is_named(folder, tmp_path):
    adapter = read(folder)
    (tmp_path / "out").mkdir()
    wrong = LowRank(torch.ones(2, 3).half(), torch.ones(4, 2).half(), 4.0)
    with pytest.raises(CheckpointError, match=r"h\.0\.k\.lora_A\.weight is .* was laid out"):
        write(tmp_path / "out", Peft().write(adapter.manifest), [("h.0.k", wrong)], like=adapter)


@pytest.fixture
def furnished(folder: Path) -> Path:
    """Return an adapter's folder as trainers leave them."""
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "LICENSE",
        README,
        REPORT,
        ".gitattributes",
        "optimizer.pt",
        "training_args.bin",
        "rng_state.pth",
        "other.safetensors",
        "x.gguf",
        "x.npz",
    ):
        (folder / name).write_text(name)
    (folder / "checkpoint-500").mkdir()
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "linked.txt").symlink_to(folder / "LICENSE")
    return folder


CARRIED = [
    "LICENSE",
    "chat_template.jinja",
    "linked.txt",
    "tokenizer.json",
    "tokenizer_config.json",
]


def test_side_files_go_along_and_others_are_left_out_with_the_reason(furnished):
    side = read(furnished).side_files()
    assert [path.name for path in side.carried] == CARRIED
    weights = "other weights or training state"
    assert side.left_out == {
        ".gitattributes": "hidden",
        "checkpoint-500": "a folder",
        "dangling": "a link to nothing",
        "optimizer.pt": weights,
        "other.safetensors": weights,
        "rng_state.pth": weights,
        "training_args.bin": weights,
        "x.gguf": weights,
        "x.npz": weights,
    }


def test_every_file_of_a_folder_is_accounted_for(furnished):
    side = read(furnished).side_files()
    ours = {"adapter_model.safetensors", "adapter_config.json", README, REPORT}
    known = ours | {path.name for path in side.carried} | side.left_out.keys()
    assert known == {path.name for path in furnished.iterdir()}


def test_side_files_are_copied_as_they_are(furnished, tmp_path):
    out = copy(furnished, tmp_path / "out")
    written = {file.name: file for file in out.iterdir()}
    assert sorted(written) == sorted([*CARRIED, "adapter_config.json", "adapter_model.safetensors"])
    assert not any(file.is_symlink() for file in written.values())
    for name in CARRIED:
        assert written[name].read_bytes() == (furnished / name).read_bytes()


def test_a_single_file_brings_nothing_along(furnished, tmp_path):
    file = furnished / "adapter_model.safetensors"
    assert read(file).side_files() == ((), {})
    assert len(list(copy(file, tmp_path / "out").iterdir())) == 2


def test_the_source_is_never_touched(furnished, tmp_path):
    def state() -> dict[str, tuple[int, bytes]]:
        files = (file for file in furnished.iterdir() if file.is_file())
        return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}

    before = state()
    copy(furnished, tmp_path / "out")
    assert state() == before
