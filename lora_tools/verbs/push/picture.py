"""The picture on a card: what the spectra look like, if there is something to draw with."""

from pathlib import Path

from lora_tools.adapter import Adapter
from lora_tools.errors import PackageError
from lora_tools.plot.figure import draw
from lora_tools.verbs.inspect import inspect

NAME = "lora_tools_spectra.png"


def picture(adapter: Adapter, repo: str, place: Path) -> Path | None:
    """Draw an adapter into an empty folder; None without ``lora-tools[report]``.

    Reads every factor once. The same adapter and matplotlib make the same bytes.
    """
    file = place / NAME
    document = inspect(adapter, spectrum=True).to_dict()
    try:
        draw({**document, "source": repo}, file)
    except PackageError:
        return None
    return file
