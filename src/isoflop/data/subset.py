"""Some samples of a source, as a source: the shots of a few-shot task, the 1,000 images of a VTAB task. And labels."""

import copy
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.data.order import GlobalOrder, Order, derive_key
from isoflop.data.records import Damage
from isoflop.data.source import Source
from isoflop.data.sources.arrays import ArraySource, ImageSource, label_tensor
from isoflop.data.sources.mixture import Mixture
from isoflop.data.transforms import Augmentation, Uniforms, augment_batch

_ROWS = 1 << 12  # samples read at a time where labels are not stored apart

Moments = tuple[tuple[float, ...], tuple[float, ...]]


class Subset:
    """The samples `indices` of `source`, or all of them; with the mean and standard deviation `moments` of another
    data set where a backbone was trained on that one."""

    def __init__(
        self, source: Source, indices: NDArray[np.int64] | None = None, *, moments: Moments | None = None
    ) -> None:
        self._source = source
        self._indices = np.arange(len(source), dtype=np.int64) if indices is None else indices
        self.uri = source.uri
        self.num_classes, self.class_names = source.num_classes, source.class_names
        self.has_several_labels = source.has_several_labels
        self.channels, self.image_size = source.channels, source.image_size
        self.mean, self.std = moments or (source.mean, source.std)
        self.fingerprint = f"{derive_key(source.fingerprint, self._indices.tobytes().hex()):016x}"
        self.unique_images: int | None = len(self._indices)
        self.order: Order = GlobalOrder(len(self._indices))

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """See `Source.read`."""
        return self._source.read(self._indices[indices])

    def read_views(
        self, indices: NDArray[np.int64], augmentation: Augmentation, u: Uniforms
    ) -> tuple[Tensor, Tensor, tuple[Damage, ...]]:
        """See `ImageSource.read_views`."""
        rows = self._indices[indices]
        if isinstance(self._source, ImageSource | Mixture | Subset):
            return self._source.read_views(rows, augmentation, u)
        images, labels = self._source.read(rows)
        return augment_batch(augmentation, images, u), labels, ()


def stretched(source: Source) -> Source:
    """`source` as few-shot evaluation sees it (arXiv 2106.04560, authors' code): the whole picture is resized to a
    square, whatever its aspect ratio, before the centre is cut out. Itself where images are squares already."""
    if isinstance(source, ImageSource):
        twin: Any = copy.copy(source)
        twin.shown = replace(source.shown, crop="stretch")
    elif isinstance(source, Subset):
        inner = stretched(source._source)
        if inner is source._source:
            return source
        twin = copy.copy(source)
        twin._source = inner
    elif isinstance(source, Mixture):
        parts = [stretched(part) for part in source._sources]
        if all(part is own for part, own in zip(parts, source._sources, strict=True)):
            return source
        twin = copy.copy(source)
        twin._sources = parts
    else:
        return source
    twin.fingerprint = f"{source.fingerprint}-stretched"
    return cast(Source, twin)


def labels_of(source: Source) -> Tensor:
    """The labels of all samples, as `Source.read` gives them; no image is decoded where labels are stored apart."""
    if isinstance(source, Subset):
        return labels_of(source._source)[torch.from_numpy(source._indices)]
    if isinstance(source, ArraySource):
        return label_tensor(source._labels, source._rows)
    if isinstance(source, ImageSource):
        every = np.arange(len(source._records), dtype=np.int64)
        return label_tensor(
            source._records.labels, every if source._subset is None else source._subset[every[: len(source)]]
        )
    starts = range(0, len(source), _ROWS)
    return torch.cat([source.read(np.arange(s, min(s + _ROWS, len(source)), dtype=np.int64))[1] for s in starts])
