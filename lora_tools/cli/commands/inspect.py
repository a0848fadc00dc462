"""lora-tools inspect: show what is in an adapter."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_tools.adapter import Adapter
from lora_tools.cli.console import Visible, complain, say, show, show_json
from lora_tools.cli.options import (
    alpha_option,
    base_option,
    executor_options,
    force_option,
    format_option,
    full_option,
    json_option,
    make_executor,
    source_argument,
)
from lora_tools.cli.types import POSITIVE
from lora_tools.errors import UnsupportedError
from lora_tools.files.disk import naming, write_text
from lora_tools.files.location import Location
from lora_tools.files.ours import Force
from lora_tools.files.writer import check_file, staged_file
from lora_tools.model import open_model
from lora_tools.plot import FORMATS
from lora_tools.verbs.inspect import Listing, inspect, read_or_list
from lora_tools.verbs.inspect.text import listing_text, to_text

if TYPE_CHECKING:
    from lora_tools.runtimes import Judgement, Runtime


class Picture(click.Path):
    """A file whose ending says what kind of picture it is."""

    def convert(self, value: Any, param: Any, context: Any) -> Any:
        """Return the path."""
        path = Path(str(super().convert(value, param, context)))
        if path.suffix.lower() not in FORMATS:
            self.fail(f"{path}: the name of a picture ends in {', '.join(FORMATS)}", param, context)
        return path


@click.command(short_help="Show what is in an adapter.")
@source_argument
@click.option(
    "--spectrum",
    is_flag=True,
    help="Read the factors: norms, singular values, ranks that are enough, what each rank costs.",
)
@alpha_option
@base_option("Compare with the base model: a folder, an index or a file. Implies --spectrum.")
@click.option(
    "--for",
    "asked",
    metavar="RUNTIME",
    multiple=True,
    help="Say what a runtime makes of it: peft, vllm, sglang, llama.cpp, diffusers, comfyui, mlx,"
    " or all; RUNTIME@VERSION for an older one. Repeatable.",
)
@click.option(
    "--max-lora-rank",
    type=POSITIVE,
    default=16,
    show_default=True,
    metavar="N",
    help="What the vLLM server is started with, for --for vllm.",
)
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write a page that opens offline: tables, heat map, spectra. Needs lora-tools[report].",
)
@click.option(
    "--plot",
    type=Picture(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Draw heat map and spectra: .png, .svg or .pdf. Needs lora-tools[report].",
)
@format_option()
@force_option("a FILE")
@full_option("A line for each module, not for each pattern.")
@executor_options
@json_option
def command(
    source: Location,
    spectrum: bool,
    alpha: float | None,
    base: Location | None,
    asked: tuple[str, ...],
    max_lora_rank: int,
    html: Path | None,
    plot: Path | None,
    own: str | None,
    force: Force,
    full: bool,
    device: str,
    jobs: int | None,
    as_json: bool,
) -> int:
    """Show what is in the adapter SOURCE, a folder or a file.

    Reads only the header and the configuration, unless asked for more: format, base model, what
    trained it, and for each pattern of modules shape, rank, alpha, scale and dtype. A
    checkpoint that is no adapter is listed by its tensors.

    Exit status: 1 if the adapter has problems or is not understood; 4 if a runtime asked for with
    --for would refuse it, load it at the wrong strength, or load it to no effect.
    """
    for file in filter(None, (html, plot)):
        check_file(file, force=force)
    runtimes = _runtimes(asked, max_lora_rank)
    model = open_model(base) if base else None
    found = read_or_list(source, runtimes, own, model.config if model else None, alpha)
    if isinstance(found, Listing):
        if html or plot:
            raise _nothing_to_draw(found)
        status = _list(found, as_json=as_json)
        return _verdict(found.judgements) or status
    wanted = spectrum or base is not None
    result = inspect(
        found,
        spectrum=spectrum,
        base=model,
        runtimes=runtimes,
        executor=Visible(make_executor(device, jobs)) if wanted else None,
        device=device,
    )
    document = result.to_dict()
    if html:
        _write_page(document, html, found, force=force)
    if plot:
        _draw(document, plot, found, force=force)
    _show(document, partial(to_text, full=full), result.judgements, as_json=as_json)
    return _verdict(result.judgements) or (1 if document["problems"] else 0)


def _runtimes(asked: Sequence[str], max_lora_rank: int) -> "Sequence[Runtime]":
    if not asked:
        return ()
    from lora_tools.runtimes import named  # with the rules of all, which few ask for

    return named(asked, max_lora_rank=max_lora_rank)


def _write_page(document: dict[str, Any], file: Path, of: Adapter, *, force: Force) -> None:
    from lora_tools.page import render  # which few ask for

    page = render(document)
    with staged_file(file, force=force, sources=of.files) as place:
        write_text(place, page)


def _draw(document: dict[str, Any], file: Path, of: Adapter, *, force: Force) -> None:
    from lora_tools.plot.figure import draw  # brings statistics, which take as long as a header

    with staged_file(file, force=force, sources=of.files) as place, naming(place):
        draw(document, place)


def _nothing_to_draw(listing: Listing) -> UnsupportedError:
    return UnsupportedError(
        f"{listing.model.path}: not understood as an adapter, so there is nothing to draw"
    ).hint("Without --html and --plot its tensors are listed.")


def _show(
    document: dict[str, Any],
    text_of: Callable[[dict[str, Any]], str],
    judgements: "Sequence[Judgement]",
    *,
    as_json: bool,
) -> None:
    if as_json:
        show_json(document)
        return
    text = text_of(document)
    if judgements:
        from lora_tools.runtimes import to_text as verdicts_text  # as above

        text = "\n\n".join(filter(None, [text, verdicts_text(judgements)]))
    show(text)


def _verdict(judgements: "Sequence[Judgement]") -> int:
    """Return the status of what the runtimes make of it: 4 if one does not load it as it is."""
    return 0 if all(judgement.loads for judgement in judgements) else 4


def _list(listing: Listing, *, as_json: bool) -> int:
    document = listing.to_dict()
    _show(document, listing_text, listing.judgements, as_json=as_json)
    if not listing.is_adapter:
        return 0
    if listing.unreadable:
        say(f"not understood: {listing.unreadable}", "error")
    else:
        complain(listing.reason, "not understood: ")
    return 1
