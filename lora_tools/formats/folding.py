"""The shapes in which factors are stored, and the matrices that they stand for.

Tensors pass through as values whose methods are enough: numpy's and torch's alike.
"""

from typing import TYPE_CHECKING, assert_never

from lora_tools.formats.sites import Convolution, Embedding, Experts, Linear

if TYPE_CHECKING:
    from lora_tools.formats.manifest import Module
    from lora_tools.update import Array


def factor_shapes(
    module: "Module", rank: int | None = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of B and A of a module as PEFT and kohya store them.

    ``rank`` stands in for the module's own.
    """
    rank, out, inp = rank or module.rank, module.out, module.inp
    match module.site:
        case Linear() | Embedding():
            return (out, rank), (rank, inp)
        case Convolution(channels=channels, kernel=kernel, groups=groups):
            ones = (1,) * len(kernel)
            return (out * groups, rank, *ones), (rank * groups, channels, *kernel)
        case Experts(count=count):
            return (out, rank * count), (rank * count, inp)
        case _:
            assert_never(module.site)


def unfold(module: "Module", b: "Array", a: "Array") -> tuple["Array", "Array"]:
    """View stored B and A as matrices, (stack, out, rank) and (stack, rank, in).

    The experts' A is expert-major and their B is rank-major (peft's ParamWrapper).
    """
    rank, out, inp = module.rank, module.out, module.inp
    match module.site:
        case Linear() | Embedding():
            return b, a
        case Convolution(groups=1):
            return b.reshape(out, rank), a.reshape(rank, inp)
        case Convolution(groups=groups):
            return b.reshape(groups, out, rank), a.reshape(groups, rank, inp)
        case Experts(count=count):
            stacked = b.reshape(out, rank, count).swapaxes(0, 2).swapaxes(1, 2)
            return stacked, a.reshape(count, rank, inp)
        case _:
            assert_never(module.site)


def fold(module: "Module", b: "Array", a: "Array") -> tuple["Array", "Array"]:
    """Bring matrices into the shapes in which they are stored: the inverse of `unfold`."""
    b_shape, a_shape = factor_shapes(module)
    if isinstance(module.site, Experts):
        b = b.reshape(module.site.count, module.out, module.rank).swapaxes(1, 2).swapaxes(0, 2)
    return b.reshape(b_shape), a.reshape(a_shape)
