"""A source whose images are already decoded: an array in memory, or mapped from a file."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.data.source import SplitIndices, mean_and_std

_STATISTICS_SAMPLES = 4096


class ArraySource:
    """Images uint8 (N, C, S, S) and labels int64 (N,), of which a split shows a part.

    `subset` gives the numbers of the split's samples among the N (all of them if None), `statistics` the mean and
    standard deviation to report: those of the training images, whichever split is read.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        *,
        uri: str,
        class_names: tuple[str, ...],
        fingerprint: str,
        subset: SplitIndices | NDArray[np.int64] | None = None,
        statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    ) -> None:
        self._images, self._labels = images, labels
        self._subset = np.arange(len(labels)) if subset is None else subset
        self.uri = uri
        self.class_names = class_names
        self.num_classes = len(class_names)
        self.channels, self.image_size = images.shape[1], images.shape[3]
        self.fingerprint = fingerprint
        self.unique_images: int | None = len(self._subset)
        self.mean, self.std = statistics or array_statistics(images)

    def __len__(self) -> int:
        return len(self._subset)

    def read(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """See `Source.read`."""
        rows = self._subset[indices]
        return torch.from_numpy(self._images[rows]), torch.from_numpy(self._labels[rows])


def array_statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """`mean_and_std` of up to 4,096 images, evenly spread over the array (N, C, S, S)."""
    step = max(1, len(images) // _STATISTICS_SAMPLES)
    return mean_and_std(torch.from_numpy(np.array(images[::step])))
