"""Masks as COCO's files keep them: polygons, and run lengths in numbers or in letters.

The coding is COCO's own algorithm, as faster-coco-eval has it, so that a mask has the bits that it has in pycocotools.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.data.decode import DamagedImage
from isoflop.errors import DataError


def mask_of(segmentation: Any, size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """The mask (height, width) of one object; DamagedImage beginning with `where` if it is none, or of another size."""
    api = _api()
    if isinstance(segmentation, dict):
        sides = segmentation.get("size")
        if not isinstance(sides, list) or tuple(sides) != size:
            told = "×".join(map(str, reversed(sides))) if isinstance(sides, list) else sides
            raise DamagedImage(f"{where} has a mask of {told} pixels, but its image has {size[1]}×{size[0]}")
    elif not isinstance(segmentation, list) or any(not isinstance(p, list) or len(p) < 6 for p in segmentation):
        raise DamagedImage(f"{where} has a mask that is neither run lengths nor polygons of three points or more")
    try:
        coded = api.frPyObjects(segmentation, *size) if not _is_compressed(segmentation) else segmentation
        coded = api.merge(coded) if isinstance(coded, list) else coded
        return np.asarray(api.decode(coded), dtype=bool)
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise DamagedImage(f"{where} has a damaged mask: {' '.join(str(error).split())}") from error


def run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask (height, width) as COCO's compressed run lengths, ready for JSON."""
    coded = _api().encode(np.asfortranarray(mask, dtype=np.uint8))
    counts = coded["counts"]
    return {
        "size": [int(side) for side in coded["size"]],
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }


def _is_compressed(segmentation: Any) -> bool:
    return isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), str | bytes)


def _api() -> Any:
    try:
        from faster_coco_eval.core import mask
    except ImportError as error:
        raise DataError("masks need the extra `dense`: pip install isoflop[dense]") from error
    return mask
