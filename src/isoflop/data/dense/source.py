"""A source of pictures with objects or maps of classes, for everything that trains and evaluates."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.data.decode import DamagedImage
from isoflop.data.dense.canvas import JITTERS, Jitter, find_jitter, place, put_map, put_objects, put_pixels
from isoflop.data.dense.objects import DenseRecords, Objects, pack_objects
from isoflop.data.order import GlobalOrder, Order
from isoflop.data.records import REPLACEMENTS, Damage, replacements
from isoflop.data.source import SplitIndices
from isoflop.data.subset import Moments
from isoflop.errors import DataError

IMAGENET: Moments = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # as for all stored images


class DenseSource:
    """One split of `records`, or `most` of it, evenly spaced, on square canvases of `image_size` pixels.

    `moments` are the mean and standard deviation by which a backbone's images are normalised, if not ImageNet's.
    Labels are uint8: packed objects (see `packing`), or maps (n, image_size, image_size) with 255 where nothing counts.
    """

    def __init__(
        self,
        records: DenseRecords,
        subset: SplitIndices | None,
        *,
        image_size: int,
        most: int | None = None,
        moments: Moments = IMAGENET,
    ) -> None:
        self._total = len(records) if subset is None else len(subset)
        self._length = self._total if most is None else min(most, self._total)
        self.records, self._subset = records, subset
        self.uri, self.class_names = records.uri, records.class_names
        self.num_classes = len(records.class_names)
        self.has_several_labels = False
        self.channels, self.image_size = 3, image_size
        self.mean, self.std = moments
        self.fingerprint = records.fingerprint if subset is None else subset.fingerprint(records.fingerprint)
        self.unique_images: int | None = len(self)
        self.order: Order = GlobalOrder(len(self))

    def __len__(self) -> int:
        return self._length

    def some(self, most: int) -> DenseSource:
        """At most `most` of the samples, evenly spaced."""
        moments, most = (self.mean, self.std), min(most, len(self))
        return DenseSource(self.records, self._subset, image_size=self.image_size, most=most, moments=moments)

    def normalised_by(self, moments: Moments) -> DenseSource:
        """The same samples for a backbone whose images are normalised by `moments`."""
        most = self._length if self._length < self._total else None
        return DenseSource(self.records, self._subset, image_size=self.image_size, most=most, moments=moments)

    def record(self, index: int) -> int:
        """The number among the records of this split's sample `index`."""
        index = index * self._total // max(1, self._length)
        return index if self._subset is None else int(self._subset[np.array([index])][0])

    def read(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """See `Source.read`: as they are looked at in evaluation."""
        images, labels, _ = self._canvases(indices, JITTERS["none"], None)
        return images, labels

    def read_augmented(
        self, indices: NDArray[np.int64], augment: str, u: NDArray[np.float64]
    ) -> tuple[Tensor, Tensor, tuple[Damage, ...]]:
        """As `read`, scaled, placed and turned over as `augment` says, by the numbers `u` (n, 4 or more) in [0, 1); and
        the damaged samples, in whose places are others, always the same."""
        jitter = find_jitter(augment)
        return self._canvases(indices, jitter, None if augment == "none" else u)

    def _canvases(
        self, indices: NDArray[np.int64], jitter: Jitter, u: NDArray[np.float64] | None
    ) -> tuple[Tensor, Tensor, tuple[Damage, ...]]:
        size, records = self.image_size, self.records
        fill = tuple(round(255 * mean) for mean in self.mean)  # zero, once it is normalised
        images, objects, maps = [], [], []
        damages: list[Damage] = []
        for k, index in enumerate(indices):
            pixels, truth = self._whole(int(index), damages)
            height, width = pixels.shape[:2]
            at = place(height, width, size, records.task, jitter, None if u is None else u[k])
            images.append(put_pixels(pixels, at, size, fill))
            if isinstance(truth, Objects):
                objects.append(put_objects(truth, at, size))
            else:
                maps.append(put_map(truth, at, size))
        labels = torch.from_numpy(np.stack(maps)) if maps else pack_objects(objects, size)
        return torch.stack(images), labels, tuple(damages)

    def _whole(self, index: int, damages: list[Damage]) -> tuple[NDArray[np.uint8], Objects | NDArray[np.uint8]]:
        """The sample `index`, or the first of its replacements that is not damaged."""
        for candidate in (index, *replacements(index, len(self))):
            row = self.record(candidate)
            try:
                return picture_with_truth(self.records, row)
            except DamagedImage as error:
                name = self.records.name(row)
                damages.append(Damage(row, name, str(error).removeprefix(f"{name}: ")))
        raise DataError(f"{damages[-1].line}; its {REPLACEMENTS} replacements are damaged too")


def picture_with_truth(records: DenseRecords, row: int) -> tuple[NDArray[np.uint8], Objects | NDArray[np.uint8]]:
    """The pixels of a record and what is in them. Raises DamagedImage where one is, or they are of other sizes."""
    pixels, truth = records.pixels(row), records.truth(row)
    if isinstance(truth, np.ndarray) and truth.shape != pixels.shape[:2]:
        raise DamagedImage(
            f"{records.name(row)}: {pixels.shape[1]}×{pixels.shape[0]} pixels, but its map of classes has "
            f"{truth.shape[1]}×{truth.shape[0]}"
        )
    return pixels, truth
