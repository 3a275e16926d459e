"""What every law asks of its columns before it looks at them: equal length, positive, finite, of a credible size."""

import numpy as np
from numpy.typing import ArrayLike

from isoflop.errors import LawError
from isoflop.laws.solve import Array

LARGEST = 1e100
"""Beyond it (and below its inverse) nothing is measured, and powers of it leave the floating-point range."""

CANNOT_TELL = 10.0
"""An interval of a loss whose ends differ by this factor is no answer."""


def tells_nothing(lo: float, hi: float) -> bool:
    """Whether (lo, hi) is no answer to what a loss will be."""
    return not hi <= CANNOT_TELL * lo


def fault(value: float) -> str:
    """What is wrong with a value of a column, "" if nothing: completes the sentence "`loss` must be …"."""
    if not (np.isfinite(value) and value > 0):
        return "positive and finite"
    return "" if 1 / LARGEST < value < LARGEST else f"between {1 / LARGEST:g} and {LARGEST:g}"


def positive_columns(**columns: ArrayLike) -> list[Array]:
    """The named columns as arrays of one length (m,), in their order.

    Raises:
        LawError: columns of different lengths, or a value that is not positive, finite and below `LARGEST`.
    """
    arrays = {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()}
    if len({a.shape for a in arrays.values()}) != 1 or next(iter(arrays.values())).ndim != 1:
        shapes = ", ".join(f"`{name}` {a.shape}" for name, a in arrays.items())
        raise LawError(f"columns must be of equal length: {shapes}")
    for name, array in arrays.items():
        for row in np.flatnonzero(~((array > 1 / LARGEST) & (array < LARGEST)))[:1]:
            raise LawError(f"`{name}` must be {fault(float(array[row]))}, but row {row + 1} has {array[row]}")
    return list(arrays.values())
