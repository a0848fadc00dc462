"""Numbers that are none: which tensors of a module hold NaN or Inf, said by name."""

from collections.abc import Iterator, Sequence

from lora_tools.errors import NonFiniteError
from lora_tools.files.location import Location
from lora_tools.formats.manifest import BESIDE, Module
from lora_tools.linalg.factors import as_factor
from lora_tools.update import Array, Biased, DoRA, Update, factors


def sound(update: Update) -> bool:
    """Whether what an update has beside its factors, which no product shows, is finite."""
    return all(_finite(array) for _, array in _beside(update))


def broken(module: Module, update: Update) -> list[str]:
    """Return the tensors of a module that hold NaN or Inf."""
    low, keys = factors(update), {str(role): part.key for role, part in module.parts.items()}
    arrays = [("b", low.b), ("a", low.a)]
    bad = [role for role, array in arrays if not _finite(array)]
    if bad and not module.is_pair:  # its factors are made of other tensors
        bad = [str(role) for role in module.parts if role not in BESIDE]
    bad += [role for role, array in _beside(update) if not _finite(array)]
    return [keys.get(role, module.key_prefix) for role in bad]


def not_finite(path: Location, module: Module, update: Update, why: object) -> NonFiniteError:
    """Return the error that names what holds NaN or Inf, or says ``why`` if nothing does."""
    if keys := broken(module, update):
        return damaged([f"{path}: {' and '.join(keys)}"])
    return NonFiniteError(f"{path}: {module.name}: {why}")


def damaged(tensors: Sequence[str]) -> NonFiniteError:
    """Return the error that names tensors, each with its file."""
    return NonFiniteError(f"{' and '.join(tensors)}: NaN or Inf").hint(
        "Training has diverged, or the file is damaged; an earlier checkpoint may be sound."
    )


def _beside(update: Update) -> Iterator[tuple[str, Array]]:
    match update:
        case DoRA(magnitude=magnitude, axis=axis):
            yield "magnitude" if axis == "out" else "columns", magnitude
        case Biased(bias=bias):
            yield "bias", bias


def _finite(array: Array) -> bool:
    return as_factor(array.reshape(-1, 1)).is_finite()
