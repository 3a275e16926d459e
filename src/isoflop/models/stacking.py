"""Several models of one kind computed as one: their weights stacked, each matrix product a batch of products.

`torch.func.vmap` does the stacking. Operators that it cannot take apart, or only slowly, have a plain form of the same
value for as long as this lasts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# Not a context variable: one thread computes for several others, which wait meanwhile.
_stacked = False


@contextmanager
def stacked() -> Iterator[None]:
    """Within, models are computed with stacked weights."""
    global _stacked
    _stacked = True
    try:
        yield
    finally:
        _stacked = False


def is_stacked() -> bool:
    """Whether the models that are being computed have stacked weights."""
    return _stacked
