"""The card of what is published."""

from dataclasses import replace

import pytest
from conftest import FIXTURES

from lora_tools.adapter import read
from lora_tools.verbs.push.package import _library


@pytest.mark.parametrize(
    ("format", "library"),
    [("peft", "peft"), ("mlx", "mlx"), ("gguf", "gguf"), ("kohya", "diffusers")],
)
def test_the_library_of_an_adapter_is_that_of_its_format(format, library):
    adapter = read(FIXTURES / "minilm-plain")
    assert _library(replace(adapter, manifest=replace(adapter.manifest, format=format))) == library
