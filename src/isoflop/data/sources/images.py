"""A source of stored images that are decoded each time they are read, so that each time another part can be shown."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.data.decode import DamagedImage, decode_crop, read_header
from isoflop.data.orders import Order
from isoflop.data.quarantine import REPLACEMENTS, Damage, replacements
from isoflop.data.records import Records, read_surely
from isoflop.data.source import SplitIndices
from isoflop.data.sources.arrays import label_tensor
from isoflop.data.transforms import (
    AUGMENTATIONS,
    Augmentation,
    Uniforms,
    after_crop,
    crop_box,
    interpolation_of,
    shift_flip,
)
from isoflop.errors import DataError

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_GREY_MEAN, _GREY_STD = (0.45,), (0.25,)


class ImageSource:
    """One split of `records`, at `image_size`. A damaged sample is replaced by another one of the split, always the
    same.
    """

    def __init__(
        self, records: Records, subset: SplitIndices | None, *, image_size: int, channels: int, order: Order
    ) -> None:
        self.uri = records.uri
        self.class_names = records.class_names
        self.num_classes = len(records.class_names)
        self.has_several_labels = records.labels.ndim == 2
        self.channels, self.image_size = channels, image_size
        self.mean: tuple[float, ...] = _IMAGENET_MEAN if channels == 3 else _GREY_MEAN
        self.std: tuple[float, ...] = _IMAGENET_STD if channels == 3 else _GREY_STD
        self.fingerprint = records.fingerprint if subset is None else subset.fingerprint(records.fingerprint)
        self.order = order
        self.shown = AUGMENTATIONS["none"]
        """how evaluation sees the images: its crop and interpolation"""
        self._records, self._subset = records, subset
        self.unique_images: int | None = len(self)

    def __len__(self) -> int:
        return len(self._records) if self._subset is None else len(self._subset)

    def read(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """See `Source.read`: centre crops. Raises DataError for a sample that cannot be used or replaced."""
        images, labels, _ = self.read_views(indices, self.shown, np.zeros((len(indices), 64)))
        return images, labels

    def read_views(
        self, indices: NDArray[np.int64], augmentation: Augmentation, u: Uniforms
    ) -> tuple[Tensor, Tensor, tuple[Damage, ...]]:
        """Augmented images and labels, as `read`, and the damaged samples that were replaced. `u` is (n, 64)."""
        rows = indices if self._subset is None else self._subset[indices]
        images = torch.empty((len(rows), self.channels, self.image_size, self.image_size), dtype=torch.uint8)
        damages: list[Damage] = []
        used = rows.copy()
        for k, row in enumerate(rows):
            for candidate in (int(row), *self._replacements(int(indices[k]))):
                try:
                    images[k] = self._view(candidate, augmentation, u[k])
                except DamagedImage as error:
                    damages.append(Damage(candidate, self._records.name(candidate), str(error)))
                    continue
                used[k] = candidate
                break
            else:
                raise DataError(f"{damages[-1].line}; its {REPLACEMENTS} replacements are damaged too")
        if augmentation.crop == "shift":
            images = shift_flip(images, u[:, 0:3])
        return images, label_tensor(self._records.labels, used), tuple(damages)

    def _view(self, row: int, augmentation: Augmentation, u: Uniforms) -> Tensor:
        try:
            encoded = read_surely(self._records, row)
            header = read_header(encoded)
            box = crop_box(augmentation, header.height, header.width, self.image_size, u)
            image = decode_crop(
                encoded,
                header,
                box,
                size=self.image_size,
                channels=self.channels,
                interpolation=interpolation_of(augmentation, u),
            )
            return after_crop(augmentation, image, u)
        except DataError:
            raise
        except Exception as error:  # a fault of ours: say at which sample
            raise DataError(f"{self._records.name(row)}: {type(error).__name__}: {error}") from error

    def _replacements(self, index: int) -> list[int]:
        chosen = np.asarray(replacements(index, len(self)))
        return [int(row) for row in (chosen if self._subset is None else self._subset[chosen])]
