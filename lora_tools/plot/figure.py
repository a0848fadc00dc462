"""A picture of an inspection: a heat map of its modules, their spectra and the shrink curve."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_tools.errors import PackageError
from lora_tools.grid import grid
from lora_tools.plot import FORMATS
from lora_tools.plot.curves import shrinking, spectra
from lora_tools.plot.heat import heat, height
from lora_tools.plot.style import SETTINGS, printable
from lora_tools.report import size
from lora_tools.text import label

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw an inspection (`lora-tools/inspect/2`) into a png, svg or pdf file.

    The same document makes the same bytes: no date is written. Settings and backend of a matplotlib
    that the caller uses stay as they are.

    Raises `PackageError` where the extra ``lora-tools[report]`` is not installed, and ValueError
    where the path ends in something else.
    """
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise PackageError("a picture needs matplotlib, which is not installed").hint(
            "Install it with: pip install 'lora-tools[report]'"
        ) from error
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise ValueError(f"{path}: the name of a picture ends in {', '.join(FORMATS)}")
    undated = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with rc_context(SETTINGS):
        _figure(document).savefig(path, format=kind[1:], dpi=160, metadata=undated[kind])


def _figure(document: Mapping[str, Any]) -> "Figure":
    """Return the picture: the heat map above, spectra and the shrink curve below."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    modules, curve = document["modules"], document.get("ranks")
    found = grid([label(module["module"]) for module in modules])
    spectrum = any(module.get("spectrum") for module in modules)
    upper, lower = height(found), 3.6 if spectrum else 0.0
    figure = Figure(
        figsize=(11, 0.9 + upper + lower),
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12),
        facecolor="white",
    )
    figure.suptitle(_title(document), x=0.012, ha="left", fontsize=10, linespacing=1.5)
    if not spectrum:
        heat(figure.subplots(), modules, found)
        return figure
    (above,), (below,) = figure.subfigures(2, 1, squeeze=False, height_ratios=(upper, lower))
    heat(above.subplots(), modules, found)
    if curve:
        left, right = below.subplots(1, 2, width_ratios=(3, 2))
        shrinking(right, curve)
    else:
        left = below.subplots()
    spectra(left, modules, found)
    return figure


def _title(document: Mapping[str, Any]) -> str:
    totals, source = document["totals"], str(document["source"])
    count = totals["modules"]
    parts = [
        f"{document['format']} adapter of {label(document['base_model'] or 'an unnamed base')}",
        f"{count:,} module{'' if count == 1 else 's'}",
        size(totals["bytes"]),
    ]
    if totals.get("norm") is not None:
        parts.append(f"‖ΔW‖ {totals['norm']:.4g}")
    if not any(module.get("spectrum") for module in document["modules"]):
        parts.append("norms and spectra come with --spectrum")
    name = source.rstrip("/").rpartition("/")[2] or source
    return printable(label(name)) + "\n" + printable(" · ".join(parts))
