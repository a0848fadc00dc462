"""Addresses: what a job carries to another process instead of the things that it works on."""

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any, NamedTuple

KEPT = 8
"""Things that a process keeps open: those of the job before this one are nearly always enough."""


class Address(NamedTuple):
    """How any process comes by a thing: what opens it, and paths, names, options, addresses.

    A thing that pickles as ``reopened, (address,)`` costs its jobs a few hundred bytes, however
    many tensors it has. Where files may change meanwhile, their `state` is among the arguments.
    """

    open: Callable[..., Any]
    arguments: tuple[Hashable, ...]


@lru_cache(maxsize=KEPT)
def reopened(address: Address) -> Any:
    """Return the thing at an address, opened once per process; raises what opening it raises."""
    arguments = address.arguments
    return address.open(*(reopened(a) if isinstance(a, Address) else a for a in arguments))
