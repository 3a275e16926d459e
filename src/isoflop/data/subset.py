"""Some samples of a source, as a source: the shots of a few-shot task, the 1,000 images of a VTAB task."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from isoflop.data.keyed import derive_key
from isoflop.data.orders import GlobalOrder, Order
from isoflop.data.quarantine import Damage
from isoflop.data.source import Source
from isoflop.data.sources.images import ImageSource
from isoflop.data.sources.mixture import Mixture
from isoflop.data.transforms import Augmentation, Uniforms, augment_batch

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
