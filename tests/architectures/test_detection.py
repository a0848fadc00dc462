"""A family is decided for the whole adapter: real key lists, ties, shapes, blocks and hints."""

import json
import re
from dataclasses import replace

import pytest
from conftest import REAL, real

from lora_tools.architectures.detection import Component, Hints, detect
from lora_tools.architectures.families import FAMILIES, family
from lora_tools.architectures.family import DIT, ContainerPrefix, Family
from lora_tools.architectures.index import Candidate
from lora_tools.architectures.layout import Dimensions
from lora_tools.architectures.tables import expand, one, rows
from lora_tools.architectures.translation import translate
from lora_tools.errors import FormatError, UnsupportedError

SUFFIX = re.compile(
    r"\.(lora_(up|down|A|B)\.(weight|bias)|alpha|dora_scale|lokr_\w+|hada_\w+|lora\.\w+\.weight)$"
)
FLUX = {"Flux.1", "Chroma", "HunyuanVideo"}
TWINS = {"Flux.1", "HunyuanVideo"}
DECODERS = {"Llama", "Qwen2", "Qwen3", "Gemma 2"}
LISTS = {
    "anima_lora_kohya": {"lora_unet_": {"Cosmos 2 and Anima"}},
    "anima_lora_kohya_with_te": {"lora_unet_": {"Cosmos 2 and Anima"}, "lora_te_": DECODERS},
    "anima_lora_lokr": {"diffusion_model.": {"Cosmos 2 and Anima"}},
    "anima_lora_peft": {"diffusion_model.": {"Cosmos 2 and Anima"}},
    "flux_control_lora": {"": {"Flux.1"}},
    "flux_dora_onetrainer": {"lora_transformer_": FLUX, "lora_te2_": {"T5"}, "lora_te1_": {"CLIP"}},
    "flux_lokr_bfl": {"diffusion_model.": {*FLUX, "Flux.2"}},
    "flux_lora_aitoolkit": {"diffusion_model.": FLUX},
    "flux_lora_diffusers_base_model": {"": FLUX},
    "flux_lora_diffusers": {"transformer.": TWINS},
    "flux_lora_diffusers_no_proj_mlp": {"transformer.": FLUX},
    "flux_lora_kohya": {"lora_unet_": TWINS},
    "flux_lora_kohya_with_te1": {"lora_unet_": TWINS, "lora_te1_": {"CLIP"}},
    "krea2_lora_kohya": {"lora_unet_": {"Krea 2"}},
    "qwen_image_lora_kohya": {"lora_unet_": {"Qwen-Image"}},
}
"""The families that know every name of a real file, by what stands before the names."""


def names_of(name):
    keys = json.loads((real("invokeai-keyshapes") / f"{name}_format.json").read_text())
    found = {SUFFIX.sub("", key).removeprefix("base_model.model.") for key in keys}
    return [stem for stem in sorted(found) if stem not in keys]


@pytest.mark.parametrize("name", LISTS)
def test_real_files_are_of_their_family_or_of_one_that_maps_them_alike(name):
    names = names_of(name)
    found = detect(dict.fromkeys(names))
    assert {c.prefix: {x.family.name for x in c.candidates} for c in found} == LISTS[name]
    assert all(component.is_whole for component in found)
    assert sum(len(component.names) for component in found) == len(names)
    for component in found:  # the tie does not matter: dots come back the same
        paths = component.decide(lambda c, component=component: component.paths[c])
        assert len(set(paths.values())) == len(component.names)


def test_a_real_file_of_three_layers_leaves_its_family_open():
    """Qwen-Image's shortest list: the names of many transformers, which convert in two ways."""
    (found,) = detect(dict.fromkeys(names_of("qwen_image_lora_diffusers"), Dimensions(3072, 3072)))
    names = {candidate.family.name for candidate in found.candidates}
    assert {"Qwen-Image", "Flux.1", "Stable Diffusion 3"} <= names
    assert set(found.decide(lambda c: found.paths[c])) == set(found.names)

    def question(candidate):
        sizes = dict.fromkeys(found.names, Dimensions(3072, 3072))
        there = candidate.family.dialect("kohya")
        return [target.path for target in translate(sizes, candidate, there, {}).targets]

    with pytest.raises(UnsupportedError, match=r"Flux\.1 and of Flux\.2") as error:
        found.decide(question)
    assert "--base MODEL" in "".join(error.value.__notes__)
    assert found.decide(question, Hints("Qwen/Qwen-Image")) == [*found.names]
    fused = found.decide(question, Hints("black-forest-labs/FLUX.1-dev"))
    assert fused == ["double_blocks.0.img_attn.qkv", "double_blocks.1.img_attn.qkv"]


def test_xlabs_own_names_are_a_dialect():
    keys = json.loads((real("invokeai-keyshapes") / "flux_lora_xlabs_format.json").read_text())
    (found,) = detect({re.sub(r"\.(up|down)\.weight$", "", key): None for key in keys})
    assert [str(candidate) for candidate in found.candidates] == ["Flux.1 (xlabs)"]
    assert (found.is_whole, len(found.names)) == (True, 12)


def test_every_list_is_looked_at():
    every = {path.name for path in (REAL / "invokeai-keyshapes").glob("*.json")}
    here = {f"{name}_format.json" for name in (*LISTS, "flux_lora_xlabs")}
    assert every <= here | {"qwen_image_lora_diffusers_format.json"}


# Flux.2 shares Flux.1's original names. Its rows per column tell it apart.
ONLY = ["double_blocks.0.img_attn.qkv", "single_blocks.0.linear1", "single_blocks.0.linear2"]


@pytest.mark.parametrize(("ratio", "names"), [(7, FLUX), (9, {"Flux.2"})])
@pytest.mark.parametrize("before", ["", "diffusion_model.", "lora_unet_"])
def test_rows_per_column_tell_flux_2_from_flux_1(before, ratio, names):
    sizes = (Dimensions(36, 12), Dimensions(ratio * 12, 12), Dimensions(12, {7: 60, 9: 48}[ratio]))
    paths = [path.replace(".", "_") if before.endswith("_") else path for path in ONLY]
    modules = dict(zip((before + path for path in paths), sizes, strict=True))
    (found,) = detect(modules)
    assert {candidate.family.name for candidate in found.candidates} == names
    assert found.is_whole
    fluxes = [own for c, own in found.paths.items() if c.family.name.startswith("Flux")]
    assert fluxes
    assert all(list(own.values()) == ONLY for own in fluxes)


def test_rows_that_no_family_has_leave_a_module_unmatched():
    modules = {
        "double_blocks.0.img_attn.qkv": Dimensions(36, 12),
        "single_blocks.0.linear1": Dimensions(60, 12),
    }
    (found,) = detect(modules)
    assert found.unmatched == ("single_blocks.0.linear1",)
    assert not found.is_whole


@pytest.mark.parametrize(
    ("last", "names"),
    [(18, FLUX | {"Flux.1"}), (19, {"HunyuanVideo"}), (20, set())],
)
def test_a_family_has_no_more_blocks_than_its_largest_model(last, names):
    modules = dict.fromkeys(
        ["single_transformer_blocks.0.attn.to_q", f"transformer_blocks.{last}.norm1_context.linear"]
    )
    modules |= {"single_transformer_blocks.0.proj_mlp": None}
    (found,) = detect(modules)
    known = {c.family.name for c in found.candidates if found.is_whole}
    assert known == (names - {"Chroma"} if names else names)


def test_a_whole_number_of_blocks_makes_a_family_likely():
    def blocks(double, single):
        names = [f"transformer_blocks.{i}.attn.to_q" for i in range(double)]
        return dict.fromkeys(
            [*names, *(f"single_transformer_blocks.{i}.proj_mlp" for i in range(single))]
        )

    (flux,) = detect(blocks(19, 38))
    assert {c.family.name for c in flux.likely} == {"Flux.1", "Chroma"}
    (few,) = detect(blocks(2, 2))
    assert not few.likely
    assert few.decide(lambda c: "alike") == "alike"
    assert flux.decide(lambda c: c.family.name == "HunyuanVideo") is False


def flattened(double, single):
    names = [f"lora_unet_double_blocks_{i}_img_attn_qkv" for i in range(double)]
    return dict.fromkeys([*names, *(f"lora_unet_single_blocks_{i}_linear1" for i in range(single))])


def test_a_family_that_is_only_the_most_usual_is_said_and_so_are_the_others():
    (few,) = detect(flattened(2, 1))
    paths, note = few.decision(lambda candidate: few.paths[candidate])
    assert paths["lora_unet_double_blocks_0_img_attn_qkv"] == "double_blocks.0.img_attn.qkv"
    assert note.startswith("3 modules are taken for those of Flux.1 or Flux.2: HunyuanVideo would")
    assert "--base MODEL" in note
    name, note = few.decision(lambda c: c.family.name, Hints("tencent/HunyuanVideo"))
    assert (name, note) == ("HunyuanVideo", "")


@pytest.mark.parametrize(("double", "single", "video"), [(19, 38, False), (20, 40, True)])
def test_a_family_that_blocks_tell_needs_no_word(double, single, video):
    (whole,) = detect(flattened(double, single))
    answer, note = whole.decision(lambda candidate: candidate.family.name == "HunyuanVideo")
    assert (answer, note) == (video, "")


def test_alike_needs_no_word():
    (few,) = detect(flattened(2, 1))
    assert few.decision(lambda candidate: 1) == (1, "")


@pytest.mark.parametrize(("context", "name"), [(768, "1 and 2"), (2048, "XL"), (1280, "refiner")])
def test_the_width_of_the_text_tells_one_unet_from_another(context, name):
    path = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    (found,) = detect({path: Dimensions(640, context)})
    assert len(found.candidates) == 3
    (likely,) = found.likely
    assert likely.family.name.endswith(name)
    assert found.decide(lambda candidate: candidate.family.name) == likely.family.name


def test_components_are_decided_each_by_itself():
    modules = [
        "transformer.transformer_blocks.0.attn.add_q_proj",
        "transformer.single_transformer_blocks.0.norm.linear",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1",
        "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",
        "somebodys.own",
    ]
    found = {c.prefix: c for c in detect(dict.fromkeys(modules))}
    assert found.keys() == {"transformer.", "text_encoder.", "text_encoder_2.", ""}
    assert {c.family.name for c in found["text_encoder_2."].candidates} == {"T5"}
    assert found[""] == Component("", {}, unmatched=("somebodys.own",))


def test_what_a_family_lacks_behind_a_prefix_is_no_other_familys():
    modules = dict.fromkeys(f"transformer.transformer_blocks.{i}.attn1.to_q" for i in range(9))
    modules["transformer.blocks.0.attn1.to_q"] = None  # Wan's, but this is no Wan
    (found,) = detect(modules)
    assert found.unmatched == ("transformer.blocks.0.attn1.to_q",)


def test_language_models_that_begin_as_a_component_are_no_component():
    (found,) = detect({"transformer.h.0.attn.c_attn": None, "transformer.wte": None})
    assert [str(candidate) for candidate in found.candidates] == ["GPT-2 (transformers)"]
    assert found.prefix == ""


@pytest.mark.parametrize(("kind", "paired"), [("llama", True), ("qwen2", False)])
def test_the_type_of_the_base_decides_among_language_models(kind, paired):
    modules = {"model.layers.0.self_attn.q_proj": Dimensions(16, 16)}
    (found,) = detect(modules)

    def question(candidate):
        (target,) = translate(modules, candidate, "gguf", {"heads": 2, "kv_heads": 2}).targets
        return target.pieces[0].rows

    whole = (range(16),)
    assert (found.decide(question, Hints(types=(kind,))) != whole) is paired
    with pytest.raises(UnsupportedError, match="Llama and of Granite"):
        found.decide(question)


def test_a_number_that_only_some_candidates_need_is_asked_for():
    """Not being able to answer is no answer: the others' must not be taken for it."""
    modules = {"model.layers.0.self_attn.q_proj": Dimensions(16, 16)}
    (found,) = detect(modules)

    def question(candidate):
        return translate(modules, candidate, "gguf", {}).targets[0].path

    with pytest.raises(UnsupportedError, match="names are those of"):
        found.decide(question)
    with pytest.raises(UnsupportedError, match="depends on heads"):
        found.decide(question, Hints(types=("llama",)))
    assert found.decide(question, Hints(types=("qwen2",))) == "blk.0.attn_q"


def test_a_candidate_whose_rows_do_not_divide_is_none():
    found = Component("", {Candidate(f, f.hub): {"x": "x"} for f in FAMILIES[:3]})

    def question(candidate):
        if candidate.family is FAMILIES[0]:
            return "right"
        raise FormatError("rows")

    assert found.decide(question) == "right"


def test_each_candidate_has_its_own_dots():
    """HunyuanVideo's img_attn_qkv reads as Flux's img_attn.qkv where the dots are lost."""
    (found,) = detect({"lora_unet_double_blocks_0_img_attn_qkv": Dimensions(36, 12)})
    paths = {str(c): [*own.values()] for c, own in found.paths.items()}
    assert paths["HunyuanVideo (original)"] == ["double_blocks.0.img_attn_qkv"]
    assert paths["Flux.1 (original)"] == ["double_blocks.0.img_attn.qkv"]
    names = ["lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_double_blocks_0_img_mlp_fc1"]
    (found,) = detect(dict.fromkeys(names))
    assert {c.family.name for c in found.candidates} == {"HunyuanVideo"}


# A family of nobody's, in the words that every file of families/ has.
MADE_UP = Family(
    "Made-up",
    hub="fine",
    containers={**DIT, "diffusers": ContainerPrefix("transformer.", ("fine",))},
    dialects={
        "original": {
            "trunk.#.": (
                "branches.#.",
                {
                    "qkv": rows("to_{q,k,v}", groups="heads"),
                    "in_{a,b}": "enter.{0,1}",
                    "gate": one("router", role="router"),
                },
            ),
        }
    },
    blocks={"branches": (4,)},
    named="made-up",
)


def test_a_family_of_nobodys_has_everything_by_its_table():
    families = (*FAMILIES, MADE_UP)
    flat = {"lora_unet_trunk_3_qkv": Dimensions(24, 8), "lora_unet_trunk_3_in_b": Dimensions(8, 8)}
    assert not detect(flat)[0].candidates
    (found,) = detect(flat, families)
    assert [str(candidate) for candidate in found.candidates] == ["Made-up (original)"]
    (paths,) = found.paths.values()
    assert list(paths.values()) == ["trunk.3.qkv", "trunk.3.in_b"]  # dots come back
    sizes = {paths[name]: size for name, size in flat.items()}
    numbers = {"heads": 2}
    split = translate(sizes, found.candidates[0], MADE_UP.dialect("diffusers"), numbers)
    fine = {target.path: target.size for target in split.targets}
    assert fine == {
        **{f"branches.3.to_{part}": Dimensions(8, 8) for part in "qkv"},
        "branches.3.enter.1": Dimensions(8, 8),
    }
    assert split.targets[1].pieces[0].rows == (range(4, 8), range(16, 20))
    here = Candidate(MADE_UP, "fine")
    fused = translate(fine, here, MADE_UP.dialect("kohya"), numbers)
    assert {target.path: target.size for target in fused.targets} == sizes
    assert MADE_UP.role("branches.#.router") == "router"
    (found,) = detect(dict.fromkeys(["transformer.branches.4.to_q"]), families)
    assert not found.candidates  # it has four of them


def test_families_are_found_by_name_and_differ():
    names = [known.name for known in FAMILIES]
    assert len(set(names)) == len(names)
    assert family("Flux.2") is not family("Flux.1")
    with pytest.raises(KeyError):
        family("Flux.9")
    assert replace(MADE_UP, name="x") != MADE_UP


@pytest.mark.parametrize("known", FAMILIES, ids=lambda known: known.name)
def test_a_table_is_sound(known):
    """What is said of a family is about modules that it has, and its containers' dialects exist."""
    paths = {rule.path for rule in known.rules(known.hub)}
    for stack in known.blocks:
        assert any(path.startswith(f"{stack}.#") for path in paths), stack
    for ends in known.columns:
        assert any(path.endswith(expand(ends)) for path in paths), ends
    if known.tie:
        assert {known.tie.embedding, known.tie.head} <= paths
        assert known.role(known.tie.embedding) == "embedding"
        assert known.role(known.tie.head) == "head"
    for container in known.containers:
        assert known.dialect(container) in (known.hub, *known.dialects)
    assert not {*known.drops} - {*known.dialects}
    assert not {*known.ids} - {*known.dialects}
    for way in known.loaders.values():
        assert {*way.dialects} <= {known.hub, *known.dialects}
    assert {encoder.family for encoder in known.encoders} <= {each.name for each in FAMILIES}
    assert known.like in {"", *(each.name for each in FAMILIES)}
    for dialect in known.dialects:
        for rule in known.rules(dialect):
            numbers = rule.path.count("#")
            stars = int(rule.layout.stacked)
            for part in rule.layout.parts:
                assert part.path.count("#") == numbers, rule.path
                assert part.path.count("*") == stars, rule.path
