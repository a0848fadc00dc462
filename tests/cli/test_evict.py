"""Models that pass through a small disk: what is fetched for a command goes after its last use."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hub_person import Person, make_adapter
from hub_server import HubServer
from safetensors.numpy import save_file

SHARDS, WIDE = 6, 384
SIZE = 2 * WIDE * WIDE * 4
"""Bytes of a shard, but for its header and a norm."""

LFS = {"HF_HUB_DISABLE_XET": "1"}


def make_models(folder: Path) -> tuple[Path, Path]:
    """Write a base and a fine-tune in six shards: two matrices each and a norm."""
    rng = np.random.default_rng(6)
    for name in ("base", "tuned"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    index: dict[str, str] = {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        base, tuned = {}, {}
        for what in ("q_proj", "k_proj"):
            key = f"model.layers.{shard}.self_attn.{what}.weight"
            base[key] = rng.standard_normal((WIDE, WIDE), dtype=np.float32)
            low = rng.standard_normal((WIDE, 3), dtype=np.float32) @ rng.standard_normal(
                (3, WIDE), dtype=np.float32
            )
            tuned[key] = base[key] + low / 100
        norm = f"model.layers.{shard}.input_layernorm.weight"
        base[norm] = np.ones(WIDE, np.float32)
        tuned[norm] = base[norm] + rng.standard_normal(WIDE, dtype=np.float32)
        save_file(base, folder / "base" / file)
        save_file(tuned, folder / "tuned" / file)
        index |= dict.fromkeys(base, file)
    for name in ("base", "tuned"):
        text = json.dumps({"metadata": {}, "weight_map": index})
        (folder / name / "model.safetensors.index.json").write_text(text)
    return folder / "base", folder / "tuned"


def cached(alice: Person) -> int:
    """Return the bytes of weights in the cache, those of a download under way among them."""
    home = alice.folder / alice.home
    files = {file.resolve() for file in home.rglob("*") if file.is_file()}
    return sum(file.stat().st_size for file in files if file.stat().st_size > SIZE // 2)


@pytest.fixture
def models(hub: HubServer, alice: Person) -> tuple[Path, Path]:
    """A base and a fine-tune, here and on the Hub as bob/base and bob/tuned."""
    alice.settings |= LFS
    found = make_models(alice.folder)
    for folder in found:
        hub.publish(f"bob/{folder.name}", {f.name: f.read_bytes() for f in folder.iterdir()})
    return found


@pytest.fixture
def most(hub: HubServer, alice: Person, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many shards lay in the cache at most when another one was asked for, with that one."""
    seen, content = [0], hub.content

    def watched(sha256: str) -> Path | None:
        seen.append(cached(alice))
        return content(sha256)

    monkeypatch.setattr(hub, "content", watched)
    return lambda: 1 + round(max(seen) / SIZE)


def downloads(hub: HubServer) -> Counter[str]:
    """Count how often each weight file was fetched whole."""
    gets = hub.seen("GET", "/objects/", "store")
    return Counter(request.path for request in gets if request.sent > SIZE)


def weights(folder: Path) -> dict[str, bytes]:
    """Return the bytes of the tensor files of a result."""
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


@pytest.mark.parametrize(
    ("policy", "passes"), [(("--rank", 2), 1), (("--energy", 0.9), 2)], ids=["rank", "energy"]
)
def test_extract_needs_room_for_a_few_shards_only(policy, passes, hub, alice, models, most):
    more = (*policy, "--small", "full", "--jobs", 2, "--base-model", "bob/base")
    alice.does("extract", "bob/base", "bob/tuned", "out", *more, "--evict")
    assert cached(alice) == 0
    assert most() <= 4 + 2, "two jobs, each with a shard of both models, and what was just done"
    assert set(downloads(hub).values()) == {passes}
    assert len(downloads(hub)) == 2 * SHARDS
    alice.does("extract", "base", "tuned", "local", *more)
    assert weights(alice.folder / "out") == weights(alice.folder / "local")
    assert (alice.folder / "out/lora_tools_report.json").is_file()


def test_merge_needs_room_for_a_few_shards_only(hub, alice, models, most):
    make_adapter(alice.folder / "mine", modules=SHARDS, wide=WIDE)
    alice.does("merge", "bob/base", "mine", "out", "--evict", "--jobs", 2)
    assert cached(alice) == 0
    assert most() <= 3
    assert set(downloads(hub).values()) == {1}
    alice.does("merge", "base", "mine", "local")
    assert weights(alice.folder / "out") == weights(alice.folder / "local")


def test_without_it_everything_stays(hub, alice, models, most):
    alice.does("extract", "bob/base", "bob/tuned", "out", "--rank", 2)
    assert cached(alice) > 2 * SHARDS * SIZE
    assert most() == 2 * SHARDS


def test_what_was_in_the_cache_before_stays(hub, alice, models):
    alice.does("extract", "bob/base", "base", "none", "--rank", 2, "--dry-run")
    alice.python(
        "from huggingface_hub import hf_hub_download;"
        "hf_hub_download('bob/base', 'model-00003-of-00006.safetensors')"
    )
    make_adapter(alice.folder / "mine", modules=SHARDS, wide=WIDE)
    alice.does("merge", "bob/base", "mine", "out", "--evict")
    assert SIZE < cached(alice) < 2 * SIZE


def test_local_models_stay(alice, tmp_path):
    base, tuned = make_models(alice.folder)
    before = weights(base) | weights(tuned)
    alice.does("extract", "base", "tuned", "out", "--rank", 2, "--evict")
    assert weights(base) | weights(tuned) == before


def test_a_failed_extraction_goes_on_and_fetches_only_the_rest(hub, alice, models, monkeypatch):
    more = ("--rank", 2, "--small", "full", "--jobs", 1, "--evict")
    last = (models[1] / f"model-{SHARDS:05d}-of-{SHARDS:05d}.safetensors").read_bytes()
    lost, content, asked = hashlib.sha256(last).hexdigest(), hub.content, Counter()

    def lose(sha256: str) -> Path | None:
        asked[sha256] += 1
        header = asked[sha256] == 1
        return content(sha256) if header or sha256 != lost else None

    monkeypatch.setattr(hub, "content", lose)
    assert alice.run("extract", "bob/base", "bob/tuned", "out", *more).returncode == 1
    assert not (alice.folder / "out").exists()
    monkeypatch.undo()
    before = downloads(hub)
    assert len(before) >= 2 * SHARDS - 2
    alice.does("extract", "bob/base", "bob/tuned", "out", *more)
    assert 0 < (downloads(hub) - before).total() <= 2
    alice.does("extract", "base", "tuned", "local", *more)
    assert weights(alice.folder / "out") == weights(alice.folder / "local")
