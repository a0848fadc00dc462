"""The options that say which modules stay, and what their updates are multiplied by."""

from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from lora_tools.cli.options import Command, together

if TYPE_CHECKING:
    from lora_tools.selection import ModuleWeight, Selection


class PatternWeight(click.ParamType["tuple[int | None, str, float]"]):
    """A pattern of module names and a factor: ``q_proj=0.5``; of one adapter: ``2:q_proj=0.5``."""

    name = "pattern=w"

    def __init__(self, *, numbered: bool = False) -> None:
        self._numbered = numbered

    def convert(self, value: Any, param: Any, context: Any) -> tuple[int | None, str, float]:
        """Return the number of the adapter, if there is one, the pattern and the factor."""
        if isinstance(value, tuple):
            return value
        pattern, _, weight = value.rpartition("=")
        number, colon, rest = pattern.partition(":")
        first = self._numbered and colon and number.isdigit()
        try:
            if not (rest if first else pattern):
                raise ValueError
            return (int(number), rest, float(weight)) if first else (None, pattern, float(weight))
        except ValueError:
            form = "[N:]PATTERN=W" if self._numbered else "PATTERN=W"
            self.fail(f"{value!r} is not {form} with a number W.", param, context)


class ModuleChoice(NamedTuple):
    """Which modules were asked for, before the library is imported."""

    only: tuple[str, ...]
    drop: tuple[str, ...]
    weights: tuple[tuple[int | None, str, float], ...]
    text_encoder: bool

    def selection(self, *, weighted: bool = True) -> "Selection":
        """Return it as the library has it; imports numpy. Not ``weighted``: patterns alone."""
        from lora_tools.selection import Selection

        weights = self.module_weights() if weighted else ()
        return Selection(self.only, self.drop, weights, self.text_encoder)

    def module_weights(self) -> "tuple[ModuleWeight, ...]":
        """Return the factors as the library has them; imports numpy."""
        from lora_tools.selection import ModuleWeight

        return tuple(ModuleWeight(pattern, w, number) for number, pattern, w in self.weights)


def selection_options(*, numbered: bool = False) -> Command:
    """Return the options that select and weigh modules; they are passed on as ``modules``.

    ``numbered``: a factor may be for one of several adapters.
    """
    form, more = (
        ("[N:]PATTERN=W", ", with N: of adapter N alone") if numbered else ("PATTERN=W", "")
    )
    options = together(
        click.option(
            "--only", metavar="PATTERN", multiple=True, help="Keep matching modules. Repeatable."
        ),
        click.option(
            "--drop-modules",
            metavar="PATTERN",
            multiple=True,
            help="Remove matching modules, and list their share of ||ΔW||. Repeatable.",
        ),
        click.option(
            "--module-weight",
            "module_weights",
            type=PatternWeight(numbered=numbered),
            metavar=form,
            multiple=True,
            help=f"Multiply the update of matching modules by W{more}; at 0 they are removed."
            " Repeatable, the last match wins.",
        ),
        click.option(
            "--text-encoder",
            type=click.Choice(["keep", "drop"]),
            default="keep",
            show_default=True,
            help="Keep or remove the modules of text encoders.",
        ),
    )

    def add(function: Command) -> Command:
        @wraps(function)
        def command(*arguments: Any, text_encoder: str, **given: Any) -> Any:
            modules = ModuleChoice(
                given.pop("only"),
                given.pop("drop_modules"),
                given.pop("module_weights"),
                text_encoder == "keep",
            )
            return function(*arguments, modules=modules, **given)

        return options(command)

    return add
