"""A page that shows an inspection: one file, which opens offline and asks nobody for anything."""

from collections.abc import Mapping
from typing import Any

from lora_tools.page.assets import policy, script, style, template
from lora_tools.page.charts import charts
from lora_tools.page.view import view
from lora_tools.text import PATH, cut, visible


def render(document: Mapping[str, Any]) -> str:
    """Return the page of an inspection (`lora-tools/inspect/2`) as HTML.

    It holds all that it needs, plotly's code included (about 5 MB), and forbids itself any request.
    What stands in the document is text, whatever it looks like.

    Raises `PackageError` where the extra ``lora-tools[report]`` is not installed.
    """
    scripts, document = script(), _shown(document)
    return template().render(
        policy=policy(scripts),
        style=style(),
        scripts=scripts,
        data=charts(document),
        **view(document),
    )


def _shown(value: Any) -> Any:
    """Return data with every text as it can be shown, of a length that a page can hold."""
    match value:
        case str():
            return visible(cut(value, PATH))
        case Mapping():
            return {_shown(key): _shown(item) for key, item in value.items()}
        case list() | tuple():
            return [_shown(item) for item in value]
    return value
