"""What a source of labelled images is, and how its samples are split so that held-out ones are never trained on."""

from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.data.order import Order, derive_key, permute

Split = Literal["train", "heldout", "test"]

_ROWS = 1 << 14  # of the permutation at a time
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
    sequential. Images that are `equal` (M, 2), numbers and groups as `equal_images` has them, fall on one side: where
    the split would part some, whole groups are held out in the same random order, as far as there is room for them.
    """

    def __init__(
        self, num_samples: int, split: Split, heldout: int, seed: int, equal: NDArray[np.int64] | None = None
    ) -> None:
        heldout = min(heldout, num_samples // _LARGEST_HELDOUT_SHARE)
        key = derive_key("held-out part", seed)
        chosen = permute(np.arange(heldout, dtype=np.int64), num_samples, key)
        self.regrouped: NDArray[np.int64] | None = None
        """the held-out numbers, where equal images have changed them"""
        if equal is not None and _parts_a_group(chosen, equal):
            chosen = self.regrouped = np.sort(_whole_groups(heldout, num_samples, key, equal))
        self._heldout = np.sort(chosen)
        self._is_train = split == "train"
        self._length = num_samples - len(chosen) if self._is_train else len(chosen)

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

    def fingerprint(self, content: str) -> str:
        """That of data with the fingerprint `content` divided so: another one where equal images changed the split."""
        return content if self.regrouped is None else f"{derive_key(content, self.regrouped.tobytes().hex()):016x}"

    def sizes_of(self, shard_sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many samples of this split each of consecutive shards holds."""
        ends = np.cumsum(shard_sizes)
        held = np.diff(np.searchsorted(self._heldout, ends), prepend=0)
        return np.asarray(shard_sizes - held if self._is_train else held)

    def all(self) -> NDArray[np.int64]:
        """The numbers of all of this split's samples, ascending."""
        return self[np.arange(len(self), dtype=np.int64)]


def _parts_a_group(chosen: NDArray[np.int64], equal: NDArray[np.int64]) -> bool:
    is_held = np.isin(equal[:, 0], chosen)
    return bool(np.isin(equal[is_held, 1], equal[~is_held, 1]).any())


def _whole_groups(room: int, num_samples: int, key: int, equal: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most `room` numbers, in the order of the keyed permutation, each with those of its group.

    Where no group is small enough, the smallest that leaves something to train on.
    """
    group_of: dict[int, int] = dict(equal.tolist())
    members: dict[int, list[int]] = {}
    for number, group in group_of.items():
        members.setdefault(group, []).append(number)
    smallest = min(members.values(), key=len)
    found: list[int] = []
    for start in range(0, num_samples, _ROWS):
        positions = np.arange(start, min(start + _ROWS, num_samples), dtype=np.int64)
        for number in permute(positions, num_samples, key).tolist():
            of = group_of.get(number)
            together = [number] if of is None else members.pop(of, [])
            if 0 < len(together) <= room - len(found):
                found += together
            if len(found) == room:
                return np.asarray(found, dtype=np.int64)
    if not found and room:
        found = smallest if len(smallest) < num_samples else []
    return np.asarray(found, dtype=np.int64)


def mean_and_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel mean and standard deviation, in units of 0 … 1, of uint8 images (n, c, h, w); exact in any order."""
    # Counts of the 256 values take a thousandth of the memory of sums over int64 pixels.
    counts = torch.stack([torch.bincount(channel.reshape(-1), minlength=256) for channel in images.unbind(1)])
    values, count = torch.arange(256), images.numel() // images.shape[1]
    total, squares = (counts * values).sum(dim=1), (counts * values * values).sum(dim=1)
    mean = [int(t) / count for t in total]
    variance = [max(int(s) / count - m * m, 1.0) for s, m in zip(squares, mean, strict=True)]
    return tuple(round(m / 255, 5) for m in mean), tuple(round(v**0.5 / 255, 5) for v in variance)
