"""Every rule of every family undoes itself, and a LoRA commutes with it, in whole numbers."""

import numpy as np
import pytest
from dialects import NUMBERS, RANK, assemble, converted, modules_of
from hypothesis import given
from hypothesis import strategies as st

from lora_tools.architectures.families import FAMILIES, family
from lora_tools.architectures.index import Candidate, find
from lora_tools.architectures.layout import Dimensions
from lora_tools.architectures.translation import translate
from lora_tools.errors import FormatError, UnsupportedError

PAIRS = [(known, dialect) for known in FAMILIES for dialect in known.dialects]


def named(pair):
    return "-".join((pair[0].name, pair[1]))


def factors(modules):
    """Return B and A of whole numbers, with a scale that is one, for each matrix of the modules."""
    random = np.random.default_rng(0)
    return {
        (path, member): (
            random.integers(-4, 5, (size.out, RANK)),
            random.integers(-4, 5, (RANK, size.inp)),
        )
        for path, size in modules.items()
        for member in range(size.stack)
    }


def moved(targets, arrays):
    return {
        (target.path, member): array
        for target in targets
        for member, array in enumerate(assemble(target, arrays))
    }


@pytest.mark.parametrize("pair", PAIRS, ids=named)
def test_a_lora_commutes_with_every_rule_and_comes_back(pair):
    """What is done to a weight is done to B alone; A is shared; and both undo themselves."""
    known, dialect = pair
    here = Candidate(known, dialect)
    modules = modules_of(known, dialect)
    pairs = factors(modules)
    deltas = {key: b @ a for key, (b, a) in pairs.items()}
    there = translate(modules, here, known.hub, NUMBERS)
    assert not there.unmatched
    full = moved(there.targets, deltas)
    halves = moved(there.targets, {key: b for key, (b, _) in pairs.items()})
    for target in there.targets:
        assert target.is_whole
        (piece,) = target.pieces
        a = pairs[piece.module, piece.member][1]
        assert np.array_equal(halves[target.path, 0] @ a, full[target.path, 0])
    sizes = {target.path: target.size for target in there.targets}
    back = translate(sizes, Candidate(known, known.hub), dialect, NUMBERS)
    assert not back.unmatched
    again = moved(back.targets, full)
    assert again.keys() == deltas.keys()
    for key, delta in deltas.items():
        assert np.array_equal(again[key], delta)


@pytest.mark.parametrize("pair", PAIRS, ids=named)
def test_vectors_by_output_go_with_the_rows(pair):
    """Biases and DoRA's magnitudes: row numbers stand for them, so that each is seen to move."""
    known, dialect = pair
    modules = modules_of(known, dialect)
    rows = {(p, m): np.arange(s.out) for p, s in modules.items() for m in range(s.stack)}
    there = translate(modules, Candidate(known, dialect), known.hub, NUMBERS)
    fine = moved(there.targets, rows)
    taken = {}
    for target in there.targets:
        (piece,) = target.pieces
        taken.setdefault((piece.module, piece.member), []).append(fine[target.path, 0])
    for key, parts in taken.items():
        assert np.array_equal(np.sort(np.concatenate(parts)), rows[key])


SEVERAL = [known for known in FAMILIES if len(known.dialects) > 1]


@pytest.mark.parametrize("known", SEVERAL, ids=lambda known: known.name)
def test_from_any_dialect_to_any_is_the_way_through_the_hub(known):
    # The most fused of those that have the most: others may have no more than parts of a layer.
    counts = {dialect: len(known.rules(dialect)) for dialect in known.dialects}
    least = min(count for count in counts.values() if 2 * count > max(counts.values()))
    most_fused = next(dialect for dialect, count in counts.items() if count == least)
    whole = modules_of(known, most_fused)
    hub = translate(whole, Candidate(known, most_fused), known.hub, NUMBERS)
    fine = {target.path: target.size for target in hub.targets}
    random = np.random.default_rng(1)
    arrays = {(path, 0): random.integers(-9, 9, (s.out, s.inp)) for path, s in fine.items()}
    for dialect in known.dialects:
        there = translate(fine, Candidate(known, known.hub), dialect, NUMBERS)
        sizes = {target.path: target.size for target in there.targets}
        coarse = moved(there.targets, arrays)
        assert all(target.is_whole for target in there.targets)
        for other in known.dialects:
            direct = translate(sizes, Candidate(known, dialect), other, NUMBERS)
            found = moved([each for each in direct.targets if each.is_whole], coarse)
            through = translate(fine, Candidate(known, known.hub), other, NUMBERS)
            wanted = moved(through.targets, arrays)
            assert found
            assert all(np.array_equal(array, wanted[key]) for key, array in found.items())


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 6))
def test_groups_of_any_size_undo_themselves(kv_heads, times, half, columns):
    known, numbers = family("Falcon"), {"heads": kv_heads * times, "kv_heads": kv_heads}
    out = 2 * half * kv_heads * (times + 2)
    name = "transformer.h.7.self_attention.query_key_value.weight"
    tensors = {name: np.arange(out * columns).reshape(out, columns)}
    apart = converted(tensors, known, "transformers", "split", numbers)
    again = converted(apart, known, "split", "transformers", numbers)
    assert np.array_equal(again[name], tensors[name])


def test_what_is_translated_to_its_own_dialect_is_itself():
    sizes = {"double_blocks.0.img_attn.qkv": Dimensions(36, 12)}
    (target,) = translate(sizes, Candidate(family("Flux.1"), "original"), "original", {}).targets
    assert target.source == "double_blocks.0.img_attn.qkv"


def test_a_name_that_changes_alone_keeps_its_module():
    sizes = {"double_blocks.0.img_mlp.2": Dimensions(12, 48)}
    (target,) = translate(sizes, Candidate(family("Flux.1"), "original"), "diffusers", {}).targets
    assert (target.path, target.source) == (
        "transformer_blocks.0.ff.net.2",
        "double_blocks.0.img_mlp.2",
    )


def test_a_fused_module_of_which_parts_are_missing_has_its_rows_all_the_same():
    before = "single_transformer_blocks.3."
    sizes = {f"{before}attn.to_q": Dimensions(12, 12), f"{before}attn.to_v": Dimensions(12, 12)}
    (target,) = translate(sizes, Candidate(family("Flux.1"), "diffusers"), "original", {}).targets
    assert (target.path, target.size, target.is_whole) == (
        "single_blocks.3.linear1",
        Dimensions(84, 12),
        False,
    )
    assert [(p.module[-4:], p.at) for p in target.pieces] == [
        ("to_q", (range(12),)),
        ("to_v", (range(24, 36),)),
    ]
    arrays = {(name, 0): np.ones((12, 12)) for name in sizes}
    (whole,) = assemble(target, arrays)
    assert whole[:12].all()
    assert whole[24:36].all()
    assert whole.sum() == 2 * 144


def test_parts_stand_in_the_order_of_the_table_whatever_the_files():
    """Their factors are stacked in this order: the same adapter must give the same bytes."""
    sizes = {f"transformer_blocks.0.attn.to_{part}": Dimensions(12, 12) for part in "kvq"}
    (target,) = translate(sizes, Candidate(family("Flux.1"), "diffusers"), "original", {}).targets
    assert [piece.module[-1] for piece in target.pieces] == ["q", "k", "v"]


@pytest.mark.parametrize(
    ("sizes", "stated"),
    [
        (
            {"attn.to_q": Dimensions(12, 12), "attn.to_k": Dimensions(8, 12)},
            r"layers of \[8, 12\] rows",
        ),
        (
            {"attn.to_q": Dimensions(12, 12), "attn.to_k": Dimensions(12, 8)},
            r"layers of \[8, 12\] columns",
        ),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(sizes, stated):
    modules = {f"transformer_blocks.0.{path}": size for path, size in sizes.items()}
    with pytest.raises(FormatError, match=stated):
        translate(modules, Candidate(family("Flux.1"), "diffusers"), "original", {})


def test_two_names_of_one_module_are_refused_side_by_side():
    modules = {"embed_out": Dimensions(8, 8), "lm_head": Dimensions(8, 8)}
    with pytest.raises(FormatError, match="embed_out and lm_head are both embed_out"):
        translate(modules, Candidate(family("GPT-NeoX"), "transformers"), "split", {})


def test_an_order_by_heads_needs_the_base_model():
    modules = {"model.layers.0.self_attn.q_proj": Dimensions(32, 16)}
    here = Candidate(family("Llama"), "transformers")
    with pytest.raises(UnsupportedError, match="depends on heads of the base model") as error:
        translate(modules, here, "gguf", {})
    assert "--base" in "".join(error.value.__notes__)
    with pytest.raises(FormatError, match="32 rows are not those of 5 heads"):
        translate(modules, here, "gguf", {"heads": 5})
    sizes = {f"model.layers.0.self_attn.{x}_proj": Dimensions(16, 16) for x in "qkv"}
    assert translate(sizes, here, "fused", {}).targets[0].size.out == 48  # all parts are there


def test_modules_without_a_name_in_the_target_are_listed():
    modules = {"lm_head": Dimensions(8, 8), "model.norm": Dimensions(8, 0), "x.y": Dimensions(8, 8)}
    found = translate(modules, Candidate(family("Llama"), "transformers"), "bare", {})
    assert found.unmatched == ("x.y", "lm_head")
    assert [target.path for target in found.targets] == ["norm"]


def test_the_last_block_of_sd3_is_told_by_its_rows():
    name = "joint_blocks.23.context_block.adaLN_modulation.1.weight"
    six, two = (np.arange(n * 4 * 4).reshape(n * 4, 4) for n in (6, 2))
    known = family("Stable Diffusion 3")
    plain = converted({name: six}, known, "original", "diffusers")
    swapped = converted({name: two}, known, "original", "diffusers")
    (path,) = {*plain, *swapped}
    assert np.array_equal(plain[path], six)
    assert np.array_equal(swapped[path], np.concatenate([two[4:], two[:4]]))


def test_names_of_tensors_may_differ():
    here = Candidate(family("Flux.1"), "original")
    name = "double_blocks.0.img_attn.norm.query_norm"
    for tensor in ("scale", "weight"):  # ComfyUI's files have the second
        assert [match.path for match in find(f"{name}.{tensor}", here)] == [name]
    assert not list(find(f"{name}.other", here))
    known = family("CLIP")
    fused = {
        "transformer.resblocks.0.attn.in_proj_weight": np.arange(48).reshape(12, 4),
        "transformer.resblocks.0.attn.in_proj_bias": np.arange(12),
        "text_projection": np.arange(6).reshape(2, 3),
        "positional_embedding": np.arange(6).reshape(2, 3),
    }
    apart = converted(fused, known, "openclip", "transformers")
    before = "text_model.encoder.layers.0.self_attn."
    assert apart[f"{before}v_proj.bias"].tolist() == [8, 9, 10, 11]
    assert apart["text_projection.weight"].shape == (3, 2)
    again = converted(apart, known, "transformers", "openclip")
    assert again.keys() == fused.keys()
    assert all(np.array_equal(again[key], array) for key, array in fused.items())


@pytest.mark.parametrize(
    ("name", "size", "stated"),
    [
        ("final_layer.adaLN_modulation.1", Dimensions(9, 8), "9 rows are not two halves"),
        ("mixins.adaln_layer.adaLN_modulations.3.1", Dimensions(9, 8), "9 rows are not those of"),
    ],
)
def test_rows_that_do_not_divide_are_refused(name, size, stated):
    known = family("CogVideoX" if name.startswith("mixins") else "Flux.1")
    with pytest.raises(FormatError, match=stated):
        translate({name: size}, Candidate(known, "original"), "diffusers", {})


# As sd-scripts, and files of both models, have them.
UNETS = [
    ("XL", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "input_blocks.4.1."),
    ("XL", "up_blocks.0.attentions.2.transformer_blocks.9.ff.net.2", "output_blocks.2.1."),
    ("XL", "up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
    ("XL", "add_embedding.linear_2", "label_emb.0.2"),
    ("1 and 2", "down_blocks.3.resnets.1.conv1", "input_blocks.11.0.in_layers.2"),
    ("1 and 2", "up_blocks.0.upsamplers.0.conv", "output_blocks.2.1.conv"),
    ("1 and 2", "up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv"),
    ("1 and 2", "down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
    ("1 and 2", "mid_block.resnets.1.time_emb_proj", "middle_block.2.emb_layers.1"),
    ("1 and 2", "conv_in", "input_blocks.0.0"),
]


@pytest.mark.parametrize(("name", "ours", "theirs"), UNETS)
def test_known_pairs_of_a_unets_names(name, ours, theirs):
    known = family(f"Stable Diffusion {name}")
    (there,) = translate(
        {ours: Dimensions(8, 8)}, Candidate(known, "diffusers"), "original", {}
    ).targets
    assert there.path.startswith(theirs)
    here = Candidate(known, "original")
    (back,) = translate({there.path: Dimensions(8, 8)}, here, "diffusers", {}).targets
    assert back.path == ours
