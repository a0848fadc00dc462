"""Weights of a base as views of a fine-tune's rows, bit for bit, in every dialect of a family."""

import json
from pathlib import Path

import numpy as np
import pytest
from dialects import NUMBERS, converted, modules_of, stored
from safetensors.numpy import save_file

from lora_tools.architectures.families import FAMILIES
from lora_tools.architectures.index import Candidate, matches
from lora_tools.base import Base, base_of
from lora_tools.errors import FormatError
from lora_tools.matching.models import Correspondence, correspond
from lora_tools.model import open_model

CASES = [(known, dialect) for known in FAMILIES for dialect in known.dialects]
CONFIG = {"num_attention_heads": NUMBERS["heads"], "num_key_value_heads": NUMBERS["kv_heads"]}


def named(case):
    return "-".join((case[0].name, case[1]))


def opened(folder: Path, state: dict[str, np.ndarray], config: dict) -> Base:
    folder.mkdir()
    arrays = {name: np.ascontiguousarray(array) for name, array in state.items()}
    save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return base_of(open_model(folder), "")


def checkpoint(known, dialect) -> dict[str, np.ndarray]:
    """Return a weight for every rule of a dialect."""
    random, state = np.random.default_rng(0), {}
    for path, size in modules_of(known, dialect).items():
        layout = next(
            match.layout
            for match in matches(path, Candidate(known, dialect))
            if match.layout.fits(size) and match.layout.has("weight")
        )
        arrays = [random.standard_normal((size.out, size.inp)) for _ in range(size.stack)]
        name = f"{path}.{layout.named('weight')}".rstrip(".")
        state[name] = stored(arrays, layout).astype(np.float32)
    return state


def made(found: Correspondence, tuned: Base) -> dict[str, np.ndarray]:
    """Return the base's weights, made of the tuned model's rows."""
    result = {}
    for _, view in found.same:
        out = np.zeros(view.spec.numel, np.float32)
        for numbers, place in view.blocks(tuned, out):
            place += numbers
        result[view.name] = out.reshape(view.spec.shape)
    return result


@pytest.mark.parametrize("case", CASES, ids=named)
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_every_dialect_is_made_of_the_rows_of_the_others(case, side, tmp_path):
    known, dialect = case
    coarse = checkpoint(known, dialect)
    fine = converted(coarse, known, dialect, known.hub, NUMBERS)
    config = CONFIG | ({"model_type": known.types[0]} if known.types else {})
    pair = (fine, coarse) if side == "tuned" else (coarse, fine)
    base, tuned = (opened(tmp_path / n, s, config) for n, s in zip("ab", pair, strict=True))
    found = correspond(base, tuned)
    views = made(found, tuned)
    wanted = {view.name: pair[0][view.key] for view in found.base.values() if view.is_whole}
    if "MiniMax" in known.name:
        # Two of its dialects have the same names and shapes: nobody can tell which one a file is.
        assert found.why
        assert all(why.endswith("which lay them out differently") for why in found.why.values())
        return
    assert not found.tuned, (list(found.tuned)[:5], found.why)
    for name, array in wanted.items():
        assert np.array_equal(views[name], array), name


def test_equal_places_are_refused_with_both(tmp_path):
    layers = {f"layers.{i}.q.weight": np.ones((2, 2), np.float32) for i in range(2)}
    twice = {f"{part}.{name}": w for part in ("one", "other") for name, w in layers.items()}
    base, tuned = opened(tmp_path / "a", twice, {}), opened(tmp_path / "b", layers, {})
    with pytest.raises(FormatError, match=r"several places: one\., other\."):
        correspond(base, tuned)


def test_no_prefix_changes_a_number(tmp_path):
    weights = np.ones((2, 2), np.float32)
    base = opened(tmp_path / "a", {"model.layers.0.q.weight": weights}, {})
    tuned = opened(tmp_path / "b", {f"layers.{i}.q.weight": weights for i in (0, 31)}, {})
    found = correspond(base, tuned)
    assert [each.base.name for each in found.same] == ["model.layers.0.q.weight"]
    assert list(found.tuned) == ["layers.31.q.weight"]
    assert any("names begin with ''" in note for note in found.notes)
