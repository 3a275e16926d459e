"""The objects of a picture, and the base of all sources of dense data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.data.records import Encoded, Note
from isoflop.data.source import Task

IGNORED = 255
"""The class of a pixel that counts nowhere."""


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


# The objects of a batch as one tensor, so that workers, ranks and feeds pass them on as they pass on any labels.
#
# A row of bytes for each object, as many rows for each picture as the fullest one needs, and one where none has any:
#
#     24 bytes   six float32: class (-1 in rows without an object), left, top, right, bottom, crowd (0 or 1)
#     the rest   its mask, eight pixels a byte, or nothing


_HEAD = 24


def pack_objects(batch: Sequence[Objects], size: int) -> Tensor:
    """Labels uint8 (n, most, 24 or 24 + size·⌈size/8⌉) of n pictures of `size` × `size` pixels."""
    most = max((1, *(len(objects) for objects in batch)))
    with_masks = any(objects.masks is not None for objects in batch)
    row_bytes = -(-size // 8)
    packed = np.zeros((len(batch), most, _HEAD + (size * row_bytes if with_masks else 0)), dtype=np.uint8)
    heads = np.zeros((len(batch), most, 6), dtype=np.float32)
    heads[..., 0] = -1
    for k, objects in enumerate(batch):
        n = len(objects)
        heads[k, :n, 0], heads[k, :n, 1:5], heads[k, :n, 5] = objects.classes, objects.boxes, objects.crowds
        if with_masks and objects.masks is not None:
            packed[k, :n, _HEAD:] = np.packbits(objects.masks, axis=2, bitorder="little").reshape(n, size * row_bytes)
    packed[..., :_HEAD] = heads.view(np.uint8)
    return torch.from_numpy(packed)


def unpack_objects(labels: Tensor, size: int) -> list[dict[str, Tensor]]:
    """For each picture, on the device of `labels`: `boxes` float32 (n, 4), `labels` int64 (n,) and, where they were
    packed, `masks` uint8 (n, size, size). Crowds are left out: nothing is learnt from them."""
    heads = labels[..., :_HEAD].contiguous().view(torch.float32)
    targets = []
    for head, row in zip(heads, labels, strict=True):
        kept = (head[:, 0] >= 0) & (head[:, 5] == 0)
        target = {"boxes": head[kept, 1:5], "labels": head[kept, 0].long()}
        if labels.shape[-1] > _HEAD:
            bits = row[kept, _HEAD:]
            bits = bits.view(len(bits), size, -(-size // 8), 1)
            places = torch.arange(8, device=labels.device, dtype=torch.uint8)
            target["masks"] = ((bits >> places) & 1).flatten(2)[..., :size].contiguous()
        targets.append(target)
    return targets
