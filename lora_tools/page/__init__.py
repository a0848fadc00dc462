"""A page that shows an inspection: one file, which opens offline and asks nobody for anything."""

from collections.abc import Mapping
from typing import Any

from lora_tools.page.assets import policy, script, style, template
from lora_tools.page.charts import charts
from lora_tools.page.view import view


def render(document: Mapping[str, Any]) -> str:
    """Return the page of an inspection (`lora-tools/inspect/1`) as HTML.

    It holds all that it needs, plotly's code included (about 5 MB), and forbids itself any request.
    What stands in the document is text, whatever it looks like.

    Raises `PackageError` where the extra ``lora-tools[report]`` is not installed.
    """
    scripts = script()
    html = template().render(
        policy=policy(scripts),
        style=style(),
        scripts=scripts,
        data=charts(document),
        **view(document),
    )
    # Names may hold halves of surrogate pairs, which no encoding has.
    return html.encode("utf-8", "replace").decode("utf-8")
