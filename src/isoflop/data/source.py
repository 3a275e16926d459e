"""What a source of labelled images is, and how its samples are split so that held-out ones are never trained on."""

from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.data.keyed import derive_key
from isoflop.data.order import permute
from isoflop.data.orders import Order

Split = Literal["train", "heldout", "test"]

_LARGEST_HELDOUT_SHARE = 5  # at most a fifth of the training split is held out, however small the data


class Source(Protocol):
    """Labelled images of one size, read by index. Everything that trains or evaluates reads its data through this."""

    uri: str
    num_classes: int
    """0 where the images are unlabelled."""
    class_names: tuple[str, ...]
    has_several_labels: bool
    """Whether an image may belong to several classes, or to none."""
    channels: int
    image_size: int
    mean: tuple[float, ...]
    """Per channel, of pixels in 0 … 1, over the training split."""
    std: tuple[float, ...]
    fingerprint: str
    """Changes when the content changes; a run that resumes checks it."""
    unique_images: int | None
    """The number of different training images, or None where they never repeat."""
    order: Order
    """The order in which a run visits this split."""

    def __len__(self) -> int:
        """The number of samples in this split."""
        ...

    def read(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images uint8 (n, channels, image_size, image_size) and labels of the samples `indices` (n,).

        Labels are int64 (n,), -1 where the data has none; or float32 (n, num_classes) of zeros and ones where an image
        may belong to several classes.
        """
        ...


class SplitIndices:
    """The sample numbers of one split of N samples: a keyed random part is held out, the rest is for training.

    Only the held-out numbers are stored; both splits keep the samples in their stored order, so that reads stay
    sequential.
    """

    def __init__(self, num_samples: int, split: Split, heldout: int, seed: int) -> None:
        heldout = min(heldout, num_samples // _LARGEST_HELDOUT_SHARE)
        chosen = permute(np.arange(heldout, dtype=np.int64), num_samples, derive_key("held-out part", seed))
        self._heldout = np.sort(chosen)
        self._is_train = split == "train"
        self._length = num_samples - heldout if self._is_train else heldout

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers among all N samples of this split's samples `indices`."""
        if not self._is_train:
            return self._heldout[indices]
        # The number of held-out samples before the i-th training sample: those with at most i training samples before
        # them.
        training_before = self._heldout - np.arange(len(self._heldout))
        return indices + np.searchsorted(training_before, indices, side="right")

    def sizes_of(self, shard_sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many samples of this split each of consecutive shards holds."""
        ends = np.cumsum(shard_sizes)
        held = np.diff(np.searchsorted(self._heldout, ends), prepend=0)
        return np.asarray(shard_sizes - held if self._is_train else held)

    def all(self) -> NDArray[np.int64]:
        """The numbers of all of this split's samples, ascending."""
        return self[np.arange(len(self), dtype=np.int64)]


def mean_and_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation, in units of 0 … 1, of uint8 images (n, c, h, w); exact in any order."""
    # Counts of the 256 values take a thousandth of the memory of sums over int64 pixels.
    counts = torch.stack([torch.bincount(channel.reshape(-1), minlength=256) for channel in images.unbind(1)])
    values, count = torch.arange(256), images.numel() // images.shape[1]
    total, squares = (counts * values).sum(dim=1), (counts * values * values).sum(dim=1)
    mean = [int(t) / count for t in total]
    variance = [max(int(s) / count - m * m, 1.0) for s, m in zip(squares, mean, strict=True)]
    return tuple(round(m / 255, 5) for m in mean), tuple(round(v**0.5 / 255, 5) for v in variance)
