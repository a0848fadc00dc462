"""What became of one module that was written anew, and what it cost."""

from dataclasses import dataclass

OUTCOMES = (
    "kept",
    "padded",
    "rescaled",
    "refactored",
    "stacked",
    "reduced",
    "shrunk",
    "removed",
    "zero",
)
"""``kept``, bit for bit; ``padded`` with zeros; ``rescaled`` to another scale or dtype;
``refactored``, if the source has no pair of factors; ``stacked``, if it is a sum, the factors of
the summands side by side; ``reduced`` to the rank that the update has,
less than that of its factors; ``shrunk``, if it was asked for; ``removed``, if the policy has
chosen rank 0; ``zero``, if all of it is."""


@dataclass(frozen=True, slots=True)
class Row:
    """One module: its ranks and errors. Errors are relative Frobenius norms."""

    module: str
    key_prefix: str
    """What its tensors' names begin with in the file."""
    shape: tuple[int, ...]
    rank_before: int
    rank_after: int
    rank_stored: int
    """The rank of the factors in the file: larger than ``rank_after`` where zeros fill them up."""
    scale_before: float
    scale: float
    """The factor of ``B @ A`` in the file."""
    alpha: float | None
    dtype: str
    norm: float
    """``||dW||_F``, with the scale."""
    energy: float
    """Share of ``||dW||_F ** 2`` in the singular values kept."""
    error: float
    """``||dW - dW'||_F / ||dW||_F``, of the factors as they are stored."""
    optimal_error: float
    """The least error that any update of this rank can have (Eckart and Young 1936)."""
    sigma_max: float | None
    """The largest singular value; None where none had to be computed."""
    sigma_discarded: float
    """The largest singular value that was given up; 0 if none."""
    outcome: str
    """One of `OUTCOMES`."""
    optimal_error_lower_bound: float | None = None
    """Certified: no update of this rank has a smaller error. None where `optimal_error` is exact,
    and not what a sketch has reached."""
