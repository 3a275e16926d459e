"""A source whose images are already decoded: an array in memory, or mapped from a file."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.data.keyed import derive_key, words
from isoflop.data.orders import GlobalOrder, Order
from isoflop.data.quarantine import Damage, Quarantine
from isoflop.data.records import Labels
from isoflop.data.source import mean_and_std

_STATISTICS_SAMPLES = 4096


class ArraySource:
    """Images uint8 (N, C, S, S) and labels (N,) or (N, classes), of which a split shows the rows `rows`.

    `statistics` are the mean and standard deviation to report: those of the training images, whichever split is read.
    Damaged images are replaced by others of the split, always the same; `damages` are those of the split. Raises
    DataError if too many are damaged.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: Labels,
        *,
        uri: str,
        class_names: tuple[str, ...],
        fingerprint: str,
        rows: NDArray[np.int64],
        statistics: tuple[tuple[float, ...], tuple[float, ...]],
        damages: Sequence[Damage] = (),
    ) -> None:
        self._images, self._labels = images, labels
        Quarantine(len(images)).add(tuple(damages))
        self.damages = tuple(damage for damage in damages if damage.sample in rows)
        self._rows = _without_damaged(rows, np.asarray([damage.sample for damage in damages], dtype=np.int64))
        self.uri = uri
        self.class_names = class_names
        self.num_classes = len(class_names)
        self.has_several_labels = labels.ndim == 2
        self.channels, self.image_size = images.shape[1], images.shape[3]
        self.fingerprint = fingerprint
        self.unique_images: int | None = len(rows)
        self.mean, self.std = statistics
        self.order: Order = GlobalOrder(len(rows))

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """See `Source.read`."""
        rows = self._rows[indices]
        return torch.from_numpy(self._images[rows]), label_tensor(self._labels, rows)


def array_statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """`mean_and_std` of up to 4,096 images, evenly spread over the array (N, C, S, S)."""
    step = max(1, len(images) // _STATISTICS_SAMPLES)
    return mean_and_std(torch.from_numpy(np.array(images[::step])))


def label_tensor(labels: Labels, rows: NDArray[np.int64]) -> Tensor:
    """int64 (n,), or float32 (n, classes) of zeros and ones where images may have several classes."""
    chosen = torch.from_numpy(np.ascontiguousarray(labels[rows]))
    return chosen if labels.ndim == 1 else chosen.to(torch.float32)


def _without_damaged(rows: NDArray[np.int64], damaged: NDArray[np.int64]) -> NDArray[np.int64]:
    """`rows` with each damaged one replaced by a sound one, drawn by the hash of its number."""
    places = np.flatnonzero(np.isin(rows, damaged))
    if not len(places):
        return rows
    sound = np.delete(rows, places)
    drawn = words(derive_key("replacement"), 0, rows[places], 1)[:, 0]
    replaced = rows.copy()
    replaced[places] = sound[(drawn % np.uint64(len(sound))).astype(np.int64)]
    return replaced
