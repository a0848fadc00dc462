from pathlib import Path

import pytest
from bases import BASES

from lora_tools.adapter import read
from lora_tools.errors import FormatError
from lora_tools.files.header import Spec, spec_of
from lora_tools.formats.sites import Convolution, Embedding, Experts, Linear
from lora_tools.matching import Site, match

PLAIN = Path(__file__).parents[2] / "fixtures" / "minilm-plain"


def specs_of(name: str) -> dict[str, Spec]:
    return {key: spec_of(tensor) for key, tensor in BASES[name]().state_dict().items()}


def found(folder: Path, specs: dict[str, Spec]) -> dict[str, Site | None]:
    adapter = read(folder)
    return match(adapter, specs, {}).sites(specs)


def keys(site: Site) -> list[str]:
    return [piece.key for piece in site.pieces]


def test_every_module_of_a_fixture_has_a_site(made):
    modules = read(made).manifest.modules
    specs = specs_of(made.name)
    result = found(made, specs)
    assert list(result) == [module.name for module in modules]
    for module in modules:
        site = result[module.name]
        grouped = isinstance(module.site, Convolution) and module.site.groups > 1
        assert site
        assert site.misfit is None
        flipped = isinstance(module.site, Embedding) or module.site == Linear(transposed=True)
        if not isinstance(module.site, Experts):
            assert {piece.transposed for piece in site.pieces} == {flipped}
        size = sum(specs[key].numel for key in dict.fromkeys(keys(site)))
        assert grouped or size == module.stack * module.out * module.inp


@pytest.mark.parametrize("prefix", ["", "model.", "base.model."])
def test_a_prefix_on_one_side_does_not_matter(made, prefix):
    specs = specs_of(made.name)
    moved = {prefix + key: spec for key, spec in specs.items()}
    plain, result = found(made, specs), found(made, moved)
    for name, site in plain.items():
        other = result[name]
        assert site
        assert other
        assert [prefix + key for key in keys(site)] == keys(other)


def test_modules_without_a_weight_and_of_another_shape_are_told_apart():
    modules = read(PLAIN).manifest.modules
    specs = specs_of("minilm-plain")
    first, second = (f"{module.name}.weight" for module in modules[:2])
    del specs[first]
    specs[second] = Spec("F32", (7, 7))
    result = found(PLAIN, specs)
    assert result[modules[0].name] is None
    assert result[modules[1].name] == Site((), second)
    assert all(result[module.name].pieces for module in modules[2:])


def test_a_base_with_two_towers_is_ambiguous():
    specs = specs_of("minilm-plain")
    towers = {f"{tower}.{key}": specs[key] for tower in ("text", "vision") for key in specs}
    with pytest.raises(FormatError, match=r"several places: text., vision."):
        found(PLAIN, towers)
