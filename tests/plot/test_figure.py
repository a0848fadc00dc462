import copy
import re
import sys
from pathlib import Path

import documents
import matplotlib as mpl
import pytest
from PIL import Image

from lora_tools.errors import PackageError
from lora_tools.plot import FORMATS
from lora_tools.plot.figure import draw

CASES = {
    "one": documents.document(["encoder.layer.0.attention.self.query"]),
    "language": documents.full(documents.language(), rank=64),
    "diffusion": documents.full(documents.diffusion()),
    "header": documents.document(documents.language(), spectrum=False),
    "rank-1": documents.document(documents.language(2), rank=1),
    "hostile": documents.full([documents.HOSTILE, "$x^{2$.0.q", "\ud800.1.q", "a\nb\x00.2.模"]),
    "empty": documents.document([], spectrum=False),
}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_the_same_document_makes_the_same_bytes(case: str, suffix: str, tmp_path: Path) -> None:
    before = copy.deepcopy(CASES[case])
    for name in ("x", "y"):
        draw(CASES[case], tmp_path / f"{name}{suffix}")
    first, second = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("x", "y"))
    assert first == second
    assert first.startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix])
    assert not re.search(rb"CreationDate|<dc:date>|tIME", first)
    assert before == CASES[case]


def test_a_picture_shows_what_is_in_the_document(tmp_path: Path) -> None:
    draw(CASES["language"], tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        colours = picture.convert("RGB").getcolors(1 << 24)
    # Viridis has a colour for each norm, and the largest norm has its last.
    assert colours is not None
    found = {colour for _, colour in colours}
    assert (253, 231, 36) in found or (253, 231, 37) in found
    assert len(found) > 224


def test_modules_that_are_zero_or_not_finite_are_marked(tmp_path: Path) -> None:
    plain, odd = tmp_path / "plain.svg", tmp_path / "odd.svg"
    draw(documents.document(documents.language(4)), plain)
    draw(documents.document(documents.language(4), odd=True), odd)
    marks = [path.read_text(encoding="utf-8").count("fill: #d55e00") for path in (plain, odd)]
    assert marks[1] == marks[0] + 2


def test_all_modules_may_be_spoiled(tmp_path: Path) -> None:
    document = documents.document(documents.language(1))
    for module in document["modules"]:
        module["spectrum"] |= {
            "state": "not finite",
            "norm": None,
            "sigma": None,
            "energy_ranks": None,
        }
    document["totals"]["norm"] = None
    document["ranks"] = None
    draw(document, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5000


def test_the_settings_of_the_caller_stay(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    backend = mpl.get_backend(auto_select=False)
    loaded = "matplotlib.pyplot" in sys.modules
    draw(CASES["one"], tmp_path / "x.svg")
    assert dict(mpl.rcParams) == before
    assert mpl.get_backend(auto_select=False) == backend
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_without_matplotlib_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PackageError, match="matplotlib") as caught:
        draw(CASES["one"], tmp_path / "x.png")
    assert "pip install 'lora-tools[report]'" in caught.value.__notes__[0]
    assert not list(tmp_path.iterdir())


def test_another_kind_of_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.png, \.svg, \.pdf"):
        draw(CASES["one"], tmp_path / "x.jpg")
