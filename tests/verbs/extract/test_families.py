"""Extractions from tiny models of the real transformers, loaded by the real PEFT on their bases."""

import json
import warnings
from pathlib import Path

import dense
import judge
import pytest
import tiny
import torch
import transformers
import whole
from torch import Tensor

from lora_tools import Fixed, read
from lora_tools.model import open_model
from lora_tools.verbs.extract import ExtractOptions, ExtractReport, extract, plan
from lora_tools.verbs.merge import WeightedAdapter, merge
from lora_tools.verbs.merge import plan as plan_merge


@pytest.fixture(scope="module")
def pair(request, tmp_path_factory) -> tuple[str, Path, Path]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folders = tiny.pair(request.param, tmp_path_factory.mktemp("pair"))
    return request.param, *folders


def run(base: Path, tuned: Path, out: Path, rank: int = 1, **options) -> ExtractReport:
    found = plan(base, tuned, ExtractOptions(**options))
    with extract(found, Fixed(rank), out) as extraction:
        return extraction.run()


def restored(name: str, base: Path, tuned: Path, out: Path) -> tuple[dict[str, Tensor], ...]:
    """Return the base, the tuned model and what PEFT merges, each as transformers has it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load = tiny.auto(name).from_pretrained
        before, after = (dense.state_of(load(folder)) for folder in (base, tuned))
        merged = judge.load(load(base), out).merge_and_unload()
    return before, after, {key: merged.state_dict()[key] for key in after}


def check(report: ExtractReport, states: tuple[dict[str, Tensor], ...]) -> None:
    """Every weight is restored by its reported error or listed, and so is the whole model."""
    rows = {row.module: row for row in report.rows}
    lost = total = 0.0
    for name, weight in states[1].items():
        row = rows.get(name) or rows[name.removesuffix(".weight")]
        change = float((weight.double() - states[0][name].double()).norm())
        gap = float((states[2][name].double() - weight.double()).norm())
        wanted = {"extracted": row.error, "carried": 0.0, "left out": 1.0, "unchanged": 0.0}[
            row.outcome
        ]
        # PEFT adds in float32 to weights of up to a hundred times the size.
        assert gap == pytest.approx(wanted * change, rel=1e-3, abs=1e-5 * change), name
        lost, total = lost + gap**2, total + change**2
    assert (lost / total) ** 0.5 == pytest.approx(report.model_error, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("pair", tiny.CONFIGS, indirect=True)
@pytest.mark.parametrize("small", ["skip", pytest.param("full", marks=pytest.mark.slow)])
def test_peft_restores_every_weight_or_it_is_listed(pair, small, tmp_path):
    name, base, tuned = pair
    report = run(base, tuned, tmp_path / "out", small=small)
    assert not report.unmatched
    assert min(row.error for row in report.extracted) < 1
    check(report, restored(name, base, tuned, tmp_path / "out"))
    ties = any("is tied to the head" in note for note in report.notes)
    assert ties == tiny.is_tied(name)


@pytest.mark.parametrize("pair", tiny.CONFIGS, indirect=True)
def test_what_was_extracted_is_merged_back(pair, tmp_path):
    """By the names in memory, onto the base as it lies on disk."""
    name, base, tuned = pair
    embeddings = "skip" if tiny.is_tied(name) else "lora"  # one update for both ends is no LoRA's
    report = run(base, tuned, tmp_path / "out", embeddings=embeddings)
    weighted = WeightedAdapter(read(tmp_path / "out"))
    merging = plan_merge(open_model(base), [weighted])
    merge(merging).write(tmp_path / "merged")
    assert not merging.left_out
    before, after, merged = map(whole.state, (base, tuned, tmp_path / "merged"))
    assert merged.keys() == before.keys() == after.keys()
    lost = sum(float((after[key].double() - w.double()).norm()) ** 2 for key, w in merged.items())
    total = sum(float((after[key].double() - w.double()).norm()) ** 2 for key, w in before.items())
    assert (lost / total) ** 0.5 == pytest.approx(report.model_error, rel=1e-5)


@pytest.mark.parametrize("pair", ["gemma2", "gpt2"], indirect=True)
def test_a_tied_embedding_that_is_stored_whole_is_both_ends(pair, tmp_path):
    """In PEFT as it computes, and in what is merged, which is tied still."""
    name, base, tuned = pair
    run(base, tuned, tmp_path / "out", 16, small="full", embeddings="full")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["ensure_weight_tying"] is True
    merge(plan_merge(open_model(base), [WeightedAdapter(read(tmp_path / "out"))])).write(
        tmp_path / "merged"
    )
    assert whole.state(tmp_path / "merged").keys() == whole.state(base).keys()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load = tiny.auto(name).from_pretrained
        live = judge.load(load(base), tmp_path / "out")
        models = [live, load(tmp_path / "merged").eval()]
        wanted = load(tuned).eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        logits = wanted(input_ids=ids).logits
        for model in models:
            got = model(input_ids=ids).logits
            assert torch.allclose(got, logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max()))


@pytest.mark.parametrize("pair", ["deepseek-v3"], indirect=True)
def test_targets_are_those_that_peft_means(pair, tmp_path):
    """PEFT takes ``down_proj`` for the experts' own where those are stacked."""
    _, base, tuned = pair
    run(base, tuned, tmp_path / "out", small="full")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    layer = "model.layers.1.mlp"
    assert {
        "model.layers.0.mlp.down_proj.weight",
        f"{layer}.shared_experts.down_proj.weight",
        f"{layer}.experts.down_proj",
        f"{layer}.experts.gate_up_proj",
    } <= {*config["target_parameters"]}
    assert not [name for name in config["target_modules"] if name.endswith("down_proj")]
    assert config["peft_version"] == "0.19.1"  # since which A reads the experts' input
    assert "model.layers.0.input_layernorm" in config["modules_to_save"]  # no expression
    again = {module.name: module.shape for module in read(tmp_path / "out").manifest.modules}
    assert again["model.layers.0.mlp.down_proj.weight"] == (1, 16, 24)


@pytest.mark.parametrize("pair", ["gpt2"], indirect=True)
def test_a_module_is_stored_with_all_that_is_in_it(pair, tmp_path):
    """PEFT looks for the bias of a norm of which the weight alone has changed."""
    name, base, _ = pair
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    weights = whole.state(base)
    weights["transformer.h.0.ln_1.weight"] = torch.randn(16)
    weights["transformer.h.1.attn.c_attn.weight"] = torch.randn(16, 48)
    dense.save_file(weights, tuned / "model.safetensors")
    (tuned / "config.json").write_bytes((base / "config.json").read_bytes())
    report = run(base, tuned, tmp_path / "out", 16, small="full")
    assert [row.module for row in report.rows if row.outcome == "carried"] == [
        "transformer.h.0.ln_1.weight"
    ]
    check(report, restored(name, base, tuned, tmp_path / "out"))
    assert "base_model.model.transformer.h.0.ln_1.bias" in whole.state(tmp_path / "out")


def test_what_peft_would_mistake_for_other_modules_is_not_stored_whole(tmp_path):
    """It compares ends of names, letter by letter: ``norm`` is the end of ``q_norm``."""
    names = "norm", "layers.0.q_norm", "layers.0.proj", "layers.0.proj.inner"
    for folder, shift in (("base", 0.0), ("tuned", 1.0)):
        weights = {f"{each}.weight": torch.full((4,), 1 + shift) for each in names}
        weights["layers.0.up.weight"] = torch.eye(8) * (1 + shift)
        (tmp_path / folder).mkdir()
        dense.save_file(weights, tmp_path / folder / "model.safetensors")
    report = run(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", small="full")
    outcomes = {row.module: (row.outcome, row.reason) for row in report.rows}
    reason = "PEFT cannot store it whole"
    assert outcomes["norm.weight"] == ("left out", reason)
    assert outcomes["layers.0.proj.weight"] == ("left out", reason)  # with another one inside
    assert outcomes["layers.0.q_norm.weight"] == ("carried", "")


TEXTS = {
    "llava": "LlamaForCausalLM",
    "qwen2-vl": "Qwen2ForCausalLM",
    "qwen2.5-vl": "Qwen2ForCausalLM",
    "gemma3-vl": "Gemma3ForCausalLM",
    "mistral3": "MistralForCausalLM",
    "qwen3-vl": "Qwen3ForCausalLM",
}
"""Vision-language models, and the class of their language model by itself."""


def in_memory(name: str, folder: Path, out: Path) -> Path:
    """Save a model's weights under the names that transformers has in memory."""
    model = tiny.auto(name).from_pretrained(folder)
    out.mkdir()
    state = {key: weight.detach().clone() for key, weight in model.named_parameters()}
    dense.save_file(state, out / "model.safetensors")
    (out / "config.json").write_bytes((folder / "config.json").read_bytes())
    return out


def text_of(name: str, folder: Path, out: Path) -> Path:
    """Save the language model of a vision-language model by itself, with its head."""
    whole_model = tiny.auto(name).from_pretrained(folder)
    kind = getattr(transformers, TEXTS[name])
    stated = whole_model.config.text_config.to_dict()
    derived = ("model_type", "architectures", "rope_parameters", "tie_word_embeddings")
    given = {key: value for key, value in stated.items() if key not in derived}
    text = kind(kind.config_class(**given, tie_word_embeddings=False))
    body = whole_model.model.language_model.state_dict()
    head = {"lm_head.weight": whole_model.get_output_embeddings().weight}
    text.load_state_dict({f"model.{key}": w for key, w in body.items()} | head)
    tiny.save(text, out)
    return out


@pytest.mark.parametrize("pair", TEXTS, indirect=True)
@pytest.mark.parametrize("moved", ["base", "tuned"])
def test_names_of_before_and_after_transformers_4_52_are_the_same_weights(pair, moved, tmp_path):
    name, base, tuned = pair
    folders = {"base": base, "tuned": tuned}
    folders[moved] = in_memory(name, folders[moved], tmp_path / "moved")
    alike = run(base, tuned, tmp_path / "alike")
    report = run(*folders.values(), tmp_path / "out")
    assert not report.unmatched
    assert (report.compared.base, report.compared.tuned) == (1, 1)
    assert [row.module for row in report.rows] == [row.module for row in alike.rows]
    assert report.model_error == pytest.approx(alike.model_error, rel=1e-6)


@pytest.mark.parametrize("pair", TEXTS, indirect=True)
def test_a_text_model_is_compared_with_its_part_and_the_rest_is_in_the_totals(pair, tmp_path):
    name, base, tuned = pair
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = text_of(name, base, tmp_path / "before")
        after = text_of(name, tuned, tmp_path / "after")
    report = run(base, after, tmp_path / "out")
    assert report.compared.tuned == 1
    lost = sum(weight.numel() for key, weight in whole.state(base).items() if not is_text(key))
    total = sum(weight.numel() for weight in whole.state(base).values())
    assert report.compared.base == pytest.approx(1 - lost / total)
    assert {each.side for each in report.unmatched} == {"base"}
    assert not [each.tensor for each in report.unmatched if is_text(each.tensor)]
    back = run(before, tuned, tmp_path / "back")
    assert back.compared.base == 1
    assert {each.side for each in back.unmatched} == {"tuned"}


def is_text(key: str) -> bool:
    return not any(part in key for part in ("vis", "project"))
