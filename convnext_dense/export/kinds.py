"""Whether a part of a model does what a graph repeats: a class may inherit from a known one, and do something else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def deviations(part: Any, bases: Sequence[type], *methods: str) -> list[str]:
    """Return why a part cannot be exported: methods that it has from none of the known classes.

    Args:
        part: Such as a head.
        bases: The known classes.
        *methods: Their names.

    >>> deviations(True, [int], '__add__')
    []
    >>> deviations(True, [int], '__add__', '__or__')
    ['bool has a way of its own to its results (__or__)']
    """
    known = [getattr(base, name) for base in bases for name in methods if hasattr(base, name)]
    own = [name for name in methods if hasattr(type(part), name) and getattr(type(part), name) not in known]
    return [f'{type(part).__name__} has a way of its own to its results ({", ".join(own)})'] if own else []
