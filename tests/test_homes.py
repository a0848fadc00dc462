from pathlib import Path

import pytest
from bases import BASES

from lora_tools.adapter import read
from lora_tools.errors import FormatError
from lora_tools.formats.base import Convolution, Embedding, Linear
from lora_tools.homes import homes
from lora_tools.storage.header import Spec, spec_of

PLAIN = Path(__file__).parents[1] / "fixtures" / "minilm-plain"


def specs_of(name: str) -> dict[str, Spec]:
    return {key: spec_of(tensor) for key, tensor in BASES[name]().state_dict().items()}


def test_every_module_of_a_fixture_has_a_home(made):
    modules = [
        module
        for module in read(made).manifest.modules
        if not (isinstance(module.site, Convolution) and module.site.groups > 1)
    ]
    result = homes(modules, specs_of(made.name))
    assert (result.missing, result.misshapen) == ((), {})
    assert list(result.found) == [module.name for module in modules]
    for module in modules:
        home = result.found[module.name]
        flipped = isinstance(module.site, Embedding) or module.site == Linear(transposed=True)
        assert home.transposed == flipped
        assert home.spec.numel == module.stack * module.out * module.inp


@pytest.mark.parametrize("prefix", ["", "model.", "base.model."])
def test_a_prefix_on_one_side_does_not_matter(made, prefix):
    modules = [m for m in read(made).manifest.modules if not isinstance(m.site, Convolution)]
    if not modules:
        return
    specs = specs_of(made.name)
    moved = {prefix + key: spec for key, spec in specs.items()}
    plain, result = homes(modules, specs), homes(modules, moved)
    assert {name: prefix + home.key for name, home in plain.found.items()} == {
        name: home.key for name, home in result.found.items()
    }


def test_modules_without_a_home_and_of_another_shape_are_named():
    modules = read(PLAIN).manifest.modules
    specs = specs_of("minilm-plain")
    first, second = (f"{module.name}.weight" for module in modules[:2])
    del specs[first]
    specs[second] = Spec("F32", (7, 7))
    result = homes(modules, specs)
    assert result.missing == (modules[0].name,)
    assert list(result.misshapen) == [modules[1].name]
    assert len(result.found) == len(modules) - 2


def test_a_base_with_two_towers_is_ambiguous():
    modules = read(PLAIN).manifest.modules
    specs = specs_of("minilm-plain")
    towers = {f"{tower}.{key}": specs[key] for tower in ("text", "vision") for key in specs}
    with pytest.raises(FormatError, match=r"several places: text., vision."):
        homes(modules, towers)
