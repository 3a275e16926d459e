"""The proof that what was written is the same model."""

from __future__ import annotations

from torch import Tensor

from isoflop.errors import ModelError

IMAGES = 4
LIMIT = 1e-4  # of the largest output, in float32; two orders above what rounding makes of it


def difference(theirs: Tensor, ours: Tensor) -> float:
    """The largest difference, as a share of the largest output."""
    if theirs.shape != ours.shape:
        raise ModelError(f"outputs of shape {tuple(theirs.shape)}, not {tuple(ours.shape)}")
    largest = float(ours.abs().max())
    return float((theirs - ours).abs().max()) / max(largest, 1e-12)


def check(found: float, reader: str) -> float:
    """`found`, if it is rounding; ModelError if what `reader` loads is another model."""
    if not found <= LIMIT:
        raise ModelError(
            f"{reader} computes something else from these weights: outputs differ by {found:.1e} of the largest, "
            f"{LIMIT:.0e} is allowed"
        )
    return found
