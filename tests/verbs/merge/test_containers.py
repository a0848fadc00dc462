"""What a diffusion model may lie in: the result lies in the same, under a name that says it."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from dialects import converted, numbers_in, randomised
from image_models import CASES
from judges import judge
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_tools import read
from lora_tools.architectures.families import family
from lora_tools.errors import FormatError, UnsupportedError
from lora_tools.files.opening import open_partly
from lora_tools.model import open_model
from lora_tools.verbs.merge import MergeOptions, WeightedAdapter, merge, plan
from lora_tools.verbs.verify import verify

RANK = 2


def case(name: str):
    return next(each for each in CASES if each.name == name)


def model_of(name: str):
    """Return a tiny model, and its weights as the original has them."""
    known = case(name)
    model = randomised(getattr(judge("diffusers"), known.model)(**known.config))
    fine = numbers_in(model.state_dict())
    coarse = converted(fine, family(name), "diffusers", known.dialect)
    return model, {key: torch.from_numpy(np.ascontiguousarray(v)) for key, v in coarse.items()}


def lora(file: Path, weights: dict[str, torch.Tensor], before: str) -> dict[str, torch.Tensor]:
    """Write a LoRA of all linear layers; return what it adds."""
    torch.manual_seed(1)
    tensors, deltas = {}, {}
    for key, weight in weights.items():
        if weight.ndim == 2 and key.endswith(".weight"):
            a, b = torch.randn(RANK, weight.shape[1]), torch.randn(weight.shape[0], RANK)
            module = before + key.removesuffix(".weight")
            tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
            deltas[key] = b.double() @ a.double()
    save_file(tensors, file)
    return deltas


def merged(base: Path, adapter: Path, out: Path, **options):
    """Merge, verify, and return the plan."""
    made = plan(open_model(base), [WeightedAdapter(read(adapter))], MergeOptions(**options))
    report = merge(made).write(out)
    found, missing = open_partly(out)
    assert verify(found, made, None, missing).passed
    return report


def close(found, before, deltas):
    for key, weight in before.items():
        wanted = (weight.double() + deltas.get(key, 0)).to(found[key].dtype)
        torch.testing.assert_close(found[key], wanted)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("flux.safetensors", save_file),
        ("flux.ckpt", lambda own, file: torch.save({"state_dict": own, "epoch": 1}, file)),
        ("flux.pt", torch.save),
    ],
)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_one_file_stays_one_file_of_the_same_names(name, save, prefix, tmp_path):
    _, weights = model_of("Flux.1")
    named = {prefix + key: tensor for key, tensor in weights.items()}
    save(named, tmp_path / name)
    deltas = lora(tmp_path / "lora.safetensors", weights, "diffusion_model.")
    merged(tmp_path / name, tmp_path / "lora.safetensors", tmp_path / "out")
    found = load_file(tmp_path / "out" / "flux.safetensors")
    assert found.keys() == named.keys()
    close(found, named, {prefix + key: delta for key, delta in deltas.items()})


def test_a_float8_file_of_comfyui_is_multiplied_out_and_no_longer_marked(tmp_path):
    _, weights = model_of("Flux.1")
    deltas = lora(tmp_path / "lora.safetensors", weights, "diffusion_model.")
    stored, before, marks = {}, {}, {}
    for key, tensor in weights.items():
        if key not in deltas:
            stored[key] = before[key] = tensor.bfloat16()
            continue
        module, scale = key.removesuffix(".weight"), torch.tensor(0.5)
        stored[key] = (tensor / scale).to(torch.float8_e4m3fn)
        stored[f"{module}.weight_scale"] = scale
        marks[module] = {"format": "float8_e4m3fn"}
        text = json.dumps(marks[module]).encode()
        stored[f"{module}.comfy_quant"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        before[key] = stored[key].double() * 0.5
    header = {"a": "b", "modelspec.hash_sha256": "0x12", "sshs_model_hash": "34"}  # of these bytes
    note = {"format_version": "1.0", "layers": marks}
    save_file(
        stored, tmp_path / "fp8.safetensors", {"_quantization_metadata": json.dumps(note), **header}
    )
    adapter = tmp_path / "lora.safetensors"
    with pytest.raises(UnsupportedError, match="cannot be rounded to their type"):
        merged(tmp_path / "fp8.safetensors", adapter, tmp_path / "out")
    report = merged(tmp_path / "fp8.safetensors", adapter, tmp_path / "out", dtype="BF16")
    assert len(report.left_out) == 2 * len(deltas)
    file = tmp_path / "out" / "fp8.safetensors"
    found = load_file(file)
    assert found.keys() == weights.keys()
    close(found, before, deltas)
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"a": "b"}


@pytest.fixture
def wan(tmp_path) -> Path:
    """A pipeline of two transformers, as Wan 2.2 has them, with a scheduler and a variant."""
    diffusers = judge("diffusers")
    for part in ("transformer", "transformer_2"):
        torch.manual_seed(len(part))
        model = diffusers.WanTransformer3DModel(**case("Wan").config)
        model.save_pretrained(tmp_path / "wan" / part, max_shard_size="20KB")
        model.save_pretrained(tmp_path / "wan" / part, variant="fp16")
    diffusers.UniPCMultistepScheduler().save_pretrained(tmp_path / "wan" / "scheduler")
    index = {"_class_name": "WanPipeline", "_diffusers_version": "0"}
    index |= {
        part: ["diffusers", "WanTransformer3DModel"] for part in ("transformer", "transformer_2")
    }
    (tmp_path / "wan" / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "wan" / "LICENSE").write_text("free")
    return tmp_path / "wan"


def state(folder: Path) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = judge("diffusers").WanTransformer3DModel.from_pretrained(folder)
    return {key: tensor.detach() for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize("part", ["transformer", "transformer_2"])
@pytest.mark.parametrize("most", [None, 30_000])
def test_of_a_pipeline_the_model_is_merged_that_the_adapter_names(part, most, wan, tmp_path):
    before = {each: state(wan / each) for each in ("transformer", "transformer_2")}
    deltas = lora(tmp_path / "lora.safetensors", before[part], f"{part}.")
    made = plan(open_model(wan), [WeightedAdapter(read(tmp_path / "lora.safetensors"))])
    out = tmp_path / "out"
    report = merge(made, most=most).write(out)
    (other,) = before.keys() - {part}
    close(state(out / part), before[part], deltas)
    close(state(out / other), before[other], {})
    names = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    assert {"model_index.json", "LICENSE", "README.md", "scheduler/scheduler_config.json"} <= names
    assert (out / "model_index.json").read_bytes() == (wan / "model_index.json").read_bytes()
    left_out = f"{part}/diffusion_pytorch_model.fp16.safetensors"
    assert report.left_out[left_out] == "other weights or training state"
    assert left_out not in names
    found, missing = open_partly(out)
    assert verify(found, made, None, missing).passed
    merge(made, most=most).write(out, force=True)  # an output of ours may be replaced


def test_nothing_is_taken_along_through_a_link_out_of_a_pipeline(wan, tmp_path):
    """A pipeline may be anybody's, and its links lead to what is its reader's."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "notes.txt").write_text("mine")
    (wan / "tokenizer").symlink_to(tmp_path / "private")
    lora(tmp_path / "lora.safetensors", state(wan / "transformer"), "transformer.")
    made = plan(open_model(wan), [WeightedAdapter(read(tmp_path / "lora.safetensors"))])
    report = merge(made).write(tmp_path / "out")
    assert report.left_out["tokenizer"] == "a link that leaves the folder"
    assert not (tmp_path / "out" / "tokenizer").exists()
    assert (tmp_path / "out" / "scheduler" / "scheduler_config.json").exists()


def test_names_of_no_model_are_refused_where_two_have_them(wan, tmp_path):
    """Trainers name the two experts of Wan 2.2 alike; each has a folder to merge into."""
    _, weights = model_of("Wan")
    deltas = lora(tmp_path / "lora.safetensors", weights, "diffusion_model.")
    adapter = tmp_path / "lora.safetensors"
    with pytest.raises(FormatError, match="several places") as caught:
        plan(open_model(wan), [WeightedAdapter(read(adapter))])
    assert "transformer" in str(caught.value)
    merged(wan / "transformer_2", adapter, tmp_path / "out")
    fine = converted(
        {key: np.asarray(deltas.get(key, torch.zeros_like(w))) for key, w in weights.items()},
        family("Wan"),
        "original",
        "diffusers",
    )
    close(
        state(tmp_path / "out"),
        state(wan / "transformer_2"),
        {key: torch.from_numpy(np.ascontiguousarray(v)) for key, v in fine.items()},
    )


def test_an_interrupted_merge_of_a_pipeline_resumes(wan, tmp_path, monkeypatch):
    before = state(wan / "transformer")
    lora(tmp_path / "lora.safetensors", before, "transformer.")
    made = plan(open_model(wan), [WeightedAdapter(read(tmp_path / "lora.safetensors"))])
    with pytest.raises(KeyboardInterrupt):
        merge(made).write(tmp_path / "out", finished=_stop(9))
    assert not (tmp_path / "out").exists()
    report = merge(made).write(tmp_path / "out")
    assert report.resumed
    close(state(tmp_path / "out" / "transformer_2"), state(wan / "transformer_2"), {})


def _stop(after: int):
    counts = []

    def finished(nbytes: int) -> None:
        counts.append(nbytes)
        if len(counts) > after:
            raise KeyboardInterrupt

    return finished
