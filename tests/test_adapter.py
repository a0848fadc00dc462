import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_tools.adapter import README, REPORT, read, write
from lora_tools.errors import CheckpointError, FormatError, UnsupportedError
from lora_tools.formats.peft import Peft
from lora_tools.update import LowRank

FIXTURES = Path(__file__).parents[1] / "fixtures"
PLAIN = FIXTURES / "minilm-plain"

CONFIG = {
    "base_model_name_or_path": "some/base",
    "lora_alpha": 4,
    "peft_type": "LORA",
    "r": 2,
    "target_modules": ["q", "k"],
    "unbekannt": {"ключ": [1, None]},
}


def tensors() -> dict[str, Tensor]:
    return {
        f"base_model.model.h.{i}.{name}.lora_{part}.weight": torch.randn(shape)
        for i in range(2)
        for name in "qk"
        for part, shape in (("A", (2, 3)), ("B", (4, 2)))
    } | {"base_model.model.head.weight": torch.randn(5, 4)}


def make(folder: Path, config: object = CONFIG) -> Path:
    """Make an adapter folder by hand."""
    folder.mkdir(parents=True)
    save_file(tensors(), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "adapter")


def copy(path: Path, out: Path) -> Path:
    """Read an adapter and write it again, unchanged."""
    adapter = read(path)
    out.mkdir()
    write(out, Peft().write(adapter.manifest), adapter.items(), like=adapter)
    return out


def test_an_adapter_is_a_mapping_of_updates(folder):
    adapter = read(folder)
    stored = load_file(folder / "adapter_model.safetensors")
    assert list(adapter) == ["h.0.k", "h.0.q", "h.1.k", "h.1.q"]
    assert len(adapter) == 4
    for name, update in adapter.items():
        assert isinstance(update, LowRank)
        assert torch.equal(update.a, stored[f"base_model.model.{name}.lora_A.weight"])
        assert torch.equal(update.b, stored[f"base_model.model.{name}.lora_B.weight"])
        assert update.scale == 2.0


def test_what_an_adapter_says_of_itself(folder):
    adapter = read(folder)
    file = folder / "adapter_model.safetensors"
    assert adapter.path == folder
    assert adapter.config == CONFIG
    assert adapter.base_model == "some/base"
    assert adapter.params == sum(tensor.numel() for tensor in load_file(file).values())
    assert adapter.nbytes == file.stat().st_size
    assert [extra.key for extra in adapter.manifest.extras] == ["base_model.model.head.weight"]


def test_reading_needs_no_tensor_before_one_is_asked_for(folder):
    adapter = read(folder)
    (folder / "adapter_model.safetensors").unlink()
    assert "h.0.q" in adapter
    assert "h.9.q" not in adapter
    assert adapter.module("h.0.q").shape == (4, 3)
    with pytest.raises(FileNotFoundError):
        adapter["h.0.q"]


def test_an_unknown_module_is_a_key_error(folder):
    with pytest.raises(KeyError):
        read(folder)["h.9.q"]
    with pytest.raises(KeyError):
        read(folder).module("h.9.q")


def test_a_file_is_read_with_the_configuration_beside_it(folder):
    file = folder / "adapter_model.safetensors"
    adapter = read(str(file))
    assert adapter.path == file
    assert list(adapter) == list(read(folder))


def test_safetensors_are_preferred_to_a_pickle(folder):
    torch.save({"other": torch.ones(1)}, folder / "adapter_model.bin")
    assert read(folder).tensors.path.name == "adapter_model.safetensors"


def test_a_pickle_is_read_where_there_is_nothing_else():
    assert read(FIXTURES / "minilm-bin").tensors.path.name == "adapter_model.bin"


def test_a_file_of_another_name_is_found_if_it_is_the_only_one(folder):
    (folder / "adapter_model.safetensors").rename(folder / "mine.safetensors")
    assert read(folder).tensors.path.name == "mine.safetensors"
    shutil.copyfile(folder / "mine.safetensors", folder / "yours.safetensors")
    with pytest.raises(CheckpointError, match=r"mine\.safetensors, yours\.safetensors") as caught:
        read(folder)
    assert caught.value.__notes__ == ["Name the one that is meant."]


def test_a_path_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        read(tmp_path / "nowhere")


def test_an_empty_folder_is_an_error_that_says_what_is_expected(tmp_path):
    with pytest.raises(CheckpointError, match="holds no adapter") as caught:
        read(tmp_path)
    assert "adapter_model.safetensors" in caught.value.__notes__[0]


def test_tensors_of_no_known_format_are_named(tmp_path):
    save_file({"weight": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match=r"in no known adapter format.*named weight") as caught:
        read(tmp_path)
    assert caught.value.__notes__ == [
        "Known formats: peft, kohya, diffusers, comfyui, mlx, xlabs, gguf, torchtune, loralib,"
        " litgpt, megatron."
    ]


def test_a_missing_configuration_is_an_error(folder):
    (folder / "adapter_config.json").unlink()
    with pytest.raises(FormatError, match="alpha is unknown") as caught:
        read(folder)
    assert str(caught.value).startswith(f"{folder}: ")
    assert "adapter_config.json" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"7", "not a JSON object"),
    ],
)
def test_a_damaged_configuration_is_an_error_that_names_the_file(text, fault, folder):
    (folder / "adapter_config.json").write_bytes(text)
    with pytest.raises(FormatError, match=fault) as caught:
        read(folder)
    assert str(folder / "adapter_config.json") in str(caught.value)


def test_a_refusal_names_the_adapter_and_keeps_its_hint(tmp_path):
    folder = make(tmp_path / "a", CONFIG | {"init_lora_weights": "pissa"})
    with pytest.raises(UnsupportedError, match="pissa") as caught:
        read(folder)
    assert str(caught.value).startswith(f"{folder}: ")
    assert "path_initial_model_for_weight_conversion" in caught.value.__notes__[0]


def test_a_contradiction_names_the_adapter(tmp_path):
    folder = make(tmp_path / "a", CONFIG | {"r": 3})
    with pytest.raises(FormatError, match="do not fit together") as caught:
        read(folder)
    assert str(caught.value).startswith(f"{folder}: ")


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


def test_many_contradictions_are_cut_and_counted(tmp_path):
    path = make(tmp_path / "adapter", CONFIG | {"r": 3})
    factors = {
        f"base_model.model.h.{i}.q.lora_{part}.weight": torch.randn(2, 2)
        for i in range(9)
        for part in "AB"
    }
    save_file(factors, path / "adapter_model.safetensors")
    with pytest.raises(FormatError) as caught:
        read(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 5 + 1
    assert lines[-1] == "  and 4 more"
    assert "lora-tools inspect" in caught.value.__notes__[0]


def test_an_adapter_that_contradicts_itself_can_be_looked_at(tmp_path):
    path = make(tmp_path / "adapter", CONFIG | {"target_modules": ["q"]})
    adapter = read(path, strict=False)
    assert list(adapter) == ["h.0.q", "h.1.q"]
    assert len(adapter.manifest.problems) == 2
    assert adapter.manifest.specs.keys() == adapter.tensors.keys()


def test_what_zero_3_has_not_gathered_is_named_as_that(tmp_path):
    tensors = load_file(PLAIN / "adapter_model.safetensors")
    first = next(iter(tensors))
    shutil.copytree(PLAIN, tmp_path / "empty")
    save_file(tensors | {first: torch.empty(0)}, tmp_path / "empty" / "adapter_model.safetensors")
    with pytest.raises(FormatError, match=f"1 of 24 tensors are empty, as .* ZeRO-3 .*{first}"):
        read(tmp_path / "empty")
