"""The objects in one picture, and the pictures with their truth that every kind of dense data hands out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from isoflop.data.quarantine import Note
from isoflop.data.records import Encoded

IGNORED = 255
"""The class of a pixel that counts nowhere."""

Task = Literal["detect", "segment"]


@dataclass(frozen=True)
class Objects:
    """n objects: boxes float32 (n, 4) as left, top, right, bottom in pixels; classes int64 (n,); crowds bool (n,),
    which are groups that nothing is learnt from; areas float32 (n,) in pixels; masks bool (n, height, width) if any.
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]
    crowds: NDArray[np.bool_]
    areas: NDArray[np.float32]
    masks: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.classes)

    def where(self, chosen: NDArray[np.bool_]) -> Objects:
        """Those objects for which `chosen` (n,) is true."""
        masks = None if self.masks is None else self.masks[chosen]
        return Objects(self.boxes[chosen], self.classes[chosen], self.crowds[chosen], self.areas[chosen], masks)


class DenseRecords(Encoded, Protocol):
    """Pictures and their truth by number; pixels uint8 (height, width, 3), of any size."""

    uri: str
    task: Task
    class_names: tuple[str, ...]
    fingerprint: str
    has_masks: bool
    notes: tuple[Note, ...]
    """See `Records.notes`."""

    def __len__(self) -> int: ...

    def pixels(self, index: int) -> NDArray[np.uint8]:
        """The picture. Raises DamagedImage naming it where it is damaged or not of the size that was promised."""
        ...

    def truth(self, index: int) -> Objects | NDArray[np.uint8]:
        """Its objects; or for `task` "segment" the class of each pixel (height, width), 255 where it is ignored."""
        ...
