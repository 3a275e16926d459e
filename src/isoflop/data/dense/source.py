"""A source of pictures with objects or maps of classes, for training and evaluation."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.data.decode import DamagedImage
from isoflop.data.dense.canvas import JITTERS, find_jitter, place, put_map, put_objects, put_pixels
from isoflop.data.dense.objects import DenseRecords, Objects, pack_objects
from isoflop.data.records import REPLACEMENTS, Damage, replacements
from isoflop.data.source import IMAGENET, Moments, Source, SplitIndices
from isoflop.data.transforms import Augmentation, Uniforms
from isoflop.errors import DataError


class DenseSource(Source):
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
        super().__init__(
            records.uri,
            self._total if most is None else min(most, self._total),
            image_size=image_size,
            fingerprint=records.fingerprint if subset is None else subset.fingerprint(records.fingerprint),
            class_names=records.class_names,
            moments=moments,
        )
        self.records, self._subset = records, subset
        self.task, self.has_masks = records.task, records.has_masks

    def some(self, most: int) -> DenseSource:
        """At most `most` of the samples, evenly spaced."""
        moments, most = (self.mean, self.std), min(most, len(self))
        return DenseSource(self.records, self._subset, image_size=self.image_size, most=most, moments=moments)

    def normalized_by(self, moments: Moments | None) -> DenseSource:
        if moments is None:
            return self
        most = self._length if self._length < self._total else None
        return DenseSource(self.records, self._subset, image_size=self.image_size, most=most, moments=moments)

    def record(self, index: int) -> int:
        """The number among the records of this split's sample `index`."""
        index = index * self._total // max(1, self._length)
        return index if self._subset is None else int(self._subset[np.array([index])][0])

    def read(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        images, labels, _ = self.read_views(indices, JITTERS["none"], np.empty((len(indices), 0)))
        return images, labels

    def find_augmentation(self, name: str, randaugment: str | None, interpolation: str) -> Augmentation:
        return find_jitter(name)

    def read_views(
        self, indices: NDArray[np.int64], augmentation: Augmentation, u: Uniforms
    ) -> tuple[Tensor, Tensor, tuple[Damage, ...]]:
        """See `Source.read_views`: scaled, placed and turned over."""
        is_plain = augmentation == JITTERS["none"]
        size, records = self.image_size, self.records
        fill = tuple(round(255 * mean) for mean in self.mean)  # zero, once it is normalised
        images, objects, maps = [], [], []
        damages: list[Damage] = []
        for k, index in enumerate(indices):
            pixels, truth = self._whole(int(index), damages)
            height, width = pixels.shape[:2]
            at = place(height, width, size, records.task, augmentation, None if is_plain else u[k])
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
