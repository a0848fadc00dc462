"""Jobs of every verb are addresses: small whatever they are of, and the same done anywhere."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES
from safetensors.numpy import save_file
from spawned import Spawned

from lora_tools import Energy, Executor, Fixed, Serial, diff, inspect, read, staged, write
from lora_tools.adapter import REPORT
from lora_tools.errors import CheckpointError
from lora_tools.files.address import reopened
from lora_tools.formats.registry import format_named
from lora_tools.model import open_model
from lora_tools.rewrite import Rewrite, RewriteOptions, survey
from lora_tools.rewrite.source import source
from lora_tools.verbs.convert import convert, translate
from lora_tools.verbs.extract import extract
from lora_tools.verbs.extract import plan as extraction
from lora_tools.verbs.merge import WeightedAdapter, merge, plan
from lora_tools.verbs.verify import verify

LIMIT = 4096
"""Bytes of a pickled job."""
LAYERS = 32
SHAPES = {
    "self_attn.q_proj": (16, 16),
    "self_attn.k_proj": (8, 16),
    "self_attn.v_proj": (8, 16),
    "self_attn.o_proj": (16, 16),
    "mlp.gate_proj": (24, 16),
    "mlp.up_proj": (24, 16),
    "mlp.down_proj": (16, 24),
}
NORMS = [f"norm_{number}" for number in range(6)]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "id2label": {str(number): f"a label, number {number}" for number in range(1000)},
    "text_config": {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 16,
        "layer_types": ["full_attention"] * 200,
    },
}
"""With tables that no format asks for, and numbers where only a nested section has them."""


def weights(seed: int) -> dict[str, np.ndarray]:
    """Return a model of 418 tensors."""
    rng = np.random.default_rng(seed)
    named = {
        f"model.layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in SHAPES.items()
    }
    norms = {f"model.layers.{i}.{name}": (16,) for i in range(LAYERS) for name in NORMS}
    tables = {"model.embed_tokens": (40, 16), "lm_head": (40, 16)}
    return {
        f"{name}.weight": rng.standard_normal(shape, np.float32)
        for name, shape in (named | norms | tables).items()
    }


def model(folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    """Save a model in two shards."""
    folder.mkdir()
    names = list(tensors)
    index = {}
    for number, part in enumerate((names[:200], names[200:]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def adapter(folder: Path, seed: int) -> Path:
    """Save an adapter of 224 modules, with a head that is saved whole."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    tensors = {"base_model.model.lm_head.weight": rng.standard_normal((40, 16), np.float32)}
    for i in range(LAYERS):
        for name, (out, inp) in SHAPES.items():
            stem = f"base_model.model.model.layers.{i}.{name}"
            tensors[f"{stem}.lora_A.weight"] = rng.standard_normal((4, inp), np.float32)
            tensors[f"{stem}.lora_B.weight"] = rng.standard_normal((out, 4), np.float32)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "modules_to_save": ["lm_head"]}
    config["target_modules"] = [name.rpartition(".")[2] for name in SHAPES]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def spawned() -> Iterator[Spawned]:
    executor = Spawned()
    yield executor
    executor.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, a fine-tune of it, and two adapters."""
    folder = tmp_path_factory.mktemp("jobs")
    before, change = weights(1), weights(2)
    model(folder / "base", before)
    kept = [key for key in before if "layers.7." in key or "norm" in key]  # not all of it changed
    after = before | {key: before[key] + change[key] / 8 for key in before if key not in kept}
    model(folder / "tuned", after)
    adapter(folder / "one", 3)
    adapter(folder / "two", 4)
    tensors = {
        f"lora_unet_double_blocks_{i}_{side}_attn_{layer}.{part}.weight": array
        for i in range(19)
        for side in ("img", "txt")
        for layer, out in (("qkv", 96), ("proj", 32))
        for part, array in (
            ("lora_down", np.random.default_rng(i).standard_normal((4, 32), np.float32)),
            ("lora_up", np.random.default_rng(99 - i).standard_normal((out, 4), np.float32)),
        )
    }
    save_file(tensors, folder / "flux.safetensors")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return what a folder holds, but for reports and cards, which have times."""
    parts = {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    return {name: data for name, data in parts.items() if name not in ("README.md", REPORT)}


def written(rewrite: Rewrite, out: Path) -> tuple[list[object], dict[str, bytes]]:
    """Write a rewrite, and return its rows and the bytes of its files."""
    rows = []

    def updates():
        for change in rewrite:
            rows.append(change.row)
            yield change.module, change.update

    like = rewrite.source.adapter
    with staged(out) as place:
        write(place, rewrite.manifest, updates(), like=like, format=rewrite.source.format)
    return rows, contents(out)


def test_shrink(made, tmp_path, both):
    def run(executor: Executor, out: Path):
        of = survey(source(read(made / "one")), executor=executor)
        chosen = [of.rewrite(Fixed(2)), of.rewrite(Energy(0.9))]
        at_once = survey(of.source, RewriteOptions(dtype="F16"), executor, expect=Fixed(3))
        chosen.append(at_once.rewrite(Fixed(3)))
        return [written(each, out / str(number)) for number, each in enumerate(chosen)]

    both(run, "decompose", "rewrite", "decompose_and_rewrite")


@pytest.mark.parametrize(
    ("file", "target"), [("one", "kohya"), ("one", "mlx"), ("flux.safetensors", "diffusers")]
)
def test_convert(made, tmp_path, both, file, target):
    base = open_model(made / "base")

    def run(executor: Executor, out: Path):
        of = read(made / file, base=base.config)
        plan = convert(of, format_named(target), executor, drop=["modules_to_save"])
        return written(plan, out / "kept"), written(
            survey(plan.source, executor=executor).rewrite(Fixed(2)), out / "shrunk"
        )

    both(run, "rewrite", "decompose", *(["measure"] if "flux" in file else []))


def test_names_that_the_base_gives_back(made, tmp_path, both):
    base = open_model(made / "base")
    flat = convert(read(made / "one"), format_named("kohya"), drop=["modules_to_save"])
    with staged(tmp_path / "flat") as place:
        changes = ((change.module, change.update) for change in flat)
        write(place, flat.manifest, changes, like=read(made / "one"), format=flat.source.format)

    def run(executor: Executor, out: Path):
        of = translate(read(tmp_path / "flat"), format_named("peft"), executor, paths=base)
        return written(survey(of, executor=executor).rewrite(Fixed(2)), out)

    (rows, _) = both(run, "decompose", "rewrite")
    assert {row.module for row in rows} == set(read(made / "one"))


def strong(made: Path, base) -> list[WeightedAdapter]:
    return [
        WeightedAdapter(read(made / name, base=base.config), weight)
        for name, weight in (("one", 1.0), ("two", 0.5))
    ]


def merging(made: Path):
    base = open_model(made / "base")
    first, second = strong(made, base)
    return plan(base, [first, WeightedAdapter(second.adapter, -0.5)])


def test_merge(made, both):
    def run(executor: Executor, out: Path):
        report = merge(merging(made)).write(out, executor)
        return report.rows, contents(out)

    both(run, "merge_rows")


def test_verify(made, tmp_path, both):
    merge(merging(made)).write(tmp_path / "merged")

    def run(executor: Executor, out: Path):
        return verify(open_model(tmp_path / "merged").tensors, merging(made), executor).to_dict()

    assert both(run, "examine")["passed"]


@pytest.mark.parametrize("policy", [Fixed(3), Energy(0.8)], ids=str)
def test_extract(made, both, policy):
    def run(executor: Executor, out: Path):
        of = extraction(made / "base", made / "tuned")
        with extract(of, policy, out, executor) as work:
            report = work.run()
        return report.to_dict(), contents(out)

    both(run, *(["extract_one"] + ["survey_one"] * isinstance(policy, Energy)))


def test_diff(made, both):
    both(lambda executor, _: diff(read(made / "one"), read(made / "two"), None, executor).to_dict(),
         "compare")  # fmt: skip


def test_inspect(made, both):
    def run(executor: Executor, out: Path):
        base = open_model(made / "base")
        of = inspect(read(made / "one"), spectrum=True, base=base, executor=executor)
        return of.to_dict()

    both(run, "measure", "weigh")


@pytest.fixture
def both(spawned, tmp_path):
    """Run a verb here and in another process; return what both come to."""

    def check(run, *tasks: str):
        here = run(Serial(), tmp_path / "here")
        spawned.sizes.clear()
        there = run(spawned, tmp_path / "there")
        assert here == there
        largest = {name: max(sizes) for name, sizes in spawned.sizes.items() if sizes}
        assert set(largest) == set(tasks)
        assert max(largest.values()) < LIMIT, largest
        return here

    return check


def test_numbers_of_nested_configurations_survive(made):
    again = pickle.loads(pickle.dumps(read(made / "one", base=CONFIG)))
    assert again.manifest.base == {key: CONFIG[key] for key in CONFIG if key != "id2label"}
    assert again.manifest.modules == read(made / "one").manifest.modules


def test_what_changes_between_two_processes_is_noticed(tmp_path):
    one = read(adapter(tmp_path / "one", 5))
    data = pickle.dumps(one)
    assert pickle.loads(data) is pickle.loads(data)  # opened once
    path = tmp_path / "one" / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 8', '"lora_alpha": 16'))
    again = read(tmp_path / "one")
    assert again.manifest != one.manifest
    assert pickle.loads(pickle.dumps(again)).manifest == again.manifest
    reopened.cache_clear()
    with pytest.raises(CheckpointError, match="one: has changed since it was first opened"):
        pickle.loads(data)


def test_what_contradicts_itself_is_found_out_in_any_process(tmp_path):
    path = adapter(tmp_path / "one", 5) / "adapter_config.json"
    path.write_text(path.read_text().replace('"r": 4', '"r": 8'))
    looked_at = read(tmp_path / "one", strict=False)
    assert looked_at.manifest.problems
    assert pickle.loads(pickle.dumps(looked_at)).manifest == looked_at.manifest


def test_a_pickled_adapter_is_an_address_too(spawned):
    def run(executor: Executor):
        return diff(read(FIXTURES / "minilm-bin"), read(FIXTURES / "minilm-plain"), None, executor)

    spawned.sizes.clear()
    assert run(spawned).to_dict() == run(Serial()).to_dict()
    assert max(spawned.sizes["compare"]) < LIMIT
