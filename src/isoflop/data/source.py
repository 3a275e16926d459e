"""The interface of a source of labelled images, subsets, and the split into training and held-out samples."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.data.order import GlobalOrder, Order, derive_key, permute
from isoflop.data.records import Damage
from isoflop.data.transforms import Augmentation, Uniforms, augment_batch, find_augmentation
from isoflop.errors import DataError

Split = Literal["train", "heldout", "test"]
Task = Literal["detect", "segment"]
Moments = tuple[tuple[float, ...], tuple[float, ...]]
"""mean and standard deviation, per channel"""

IMAGENET: Moments = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # as for all stored images
_GREY: Moments = ((0.45,), (0.25,))
_LABELS_AT_A_TIME = 1 << 12  # samples read where labels are not stored apart

_ROWS = 1 << 14  # of the permutation at a time
_LARGEST_HELDOUT_SHARE = 5  # at most a fifth of the training split is held out, however small the data


class Source(ABC):
    """Labelled images of one size, read by index. Everything that trains or evaluates reads its data through this.

    A source calls `__init__` and defines `read`; the other methods follow from it, and are defined again where the
    storage allows more (docs/data.md, "Add a source").

    Attributes:
        mean, std: per channel, of pixels in 0 … 1, over the training split.
        unique_images: the number of different training images, or None where they never repeat.
        order: in which a run visits this split.
        damages: what was found and replaced when the source was opened.
        task: what the labels are where they are not classes; has_masks: whether the objects have masks.
    """

    task: Task | None = None
    has_masks: bool = False

    def __init__(
        self,
        uri: str,
        length: int,
        *,
        image_size: int,
        fingerprint: str,
        class_names: Sequence[str] = (),
        has_several_labels: bool = False,
        channels: int = 3,
        moments: Moments | None = None,
        order: Order | None = None,
    ) -> None:
        """`length` samples of images (channels, image_size, image_size), unlabelled without `class_names`.

        With `has_several_labels`, an image may belong to several classes, or to none. `fingerprint` changes when the
        content changes: a run that resumes checks it. `moments` are those of ImageNet or of grey images when left out.
        """
        if channels not in (1, 3) and moments is None:
            raise DataError(f"{uri}: the mean and deviation of {channels} channels have to be given")
        self.uri, self.fingerprint, self._length = uri, fingerprint, length
        self.class_names = tuple(class_names)
        self.num_classes = len(self.class_names)
        self.has_several_labels = has_several_labels
        self.channels, self.image_size = channels, image_size
        self.mean, self.std = moments or (IMAGENET if channels == 3 else _GREY)
        self.unique_images: int | None = length
        self.order: Order = order or GlobalOrder(length)
        self.damages: tuple[Damage, ...] = ()

    def __len__(self) -> int:
        """The number of samples in this split."""
        return self._length

    @property
    def interpolation(self) -> str:
        """How evaluation resizes the images, "bilinear" or "bicubic": what uses the weights later does it, too."""
        return "bilinear"

    @abstractmethod
    def read(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Images uint8 (n, channels, image_size, image_size) and labels of the samples `indices` (n,), as evaluation
        sees them.

        Labels are int64 (n,), -1 where the data has none; or float32 (n, num_classes) of zeros and ones where an image
        may belong to several classes; or uint8, see `DenseSource`.
        """

    def find_augmentation(self, name: str, randaugment: str | None, interpolation: str) -> Augmentation:
        """What `data.augment` and the others say is done to a training image; DataError where it cannot be."""
        return find_augmentation(name, randaugment, interpolation)

    def read_views(
        self, indices: NDArray[np.int64], augmentation: Augmentation, u: Uniforms
    ) -> tuple[Tensor, Tensor, tuple[Damage, ...]]:
        """As `read`, augmented by the numbers `u` (n, 64) in [0, 1); and the damaged samples, in whose places are
        others, always the same."""
        images, labels = self.read(indices)
        return augment_batch(augmentation, images, u), labels, ()

    def labels(self, indices: NDArray[np.int64] | None = None) -> Tensor:
        """The labels of the samples `indices`, or of all, as `read` gives them."""
        chosen = np.arange(len(self), dtype=np.int64) if indices is None else indices
        parts = range(0, len(chosen), _LABELS_AT_A_TIME)
        return torch.cat([self.read(chosen[start : start + _LABELS_AT_A_TIME])[1] for start in parts])

    def subset(self, indices: NDArray[np.int64]) -> "Source":
        """The samples `indices`, as a source."""
        return Subset(self, indices)

    def normalized_by(self, moments: Moments | None) -> "Source":
        """The same samples for a backbone that was trained on images of other `moments`, unless these are None."""
        return Subset(self, moments=moments) if moments else self

    def stretched(self) -> "Source":
        """The same samples as few-shot evaluation sees them (arXiv 2106.04560, authors' code): the whole picture is
        resized to a square, whatever its aspect ratio, before the centre is cut out. Itself where images are squares
        already."""
        return self


class Subset(Source):
    """The samples `indices` of `source`, or all of them; with the mean and standard deviation `moments` of another
    data set where a backbone was trained on that one."""

    def __init__(
        self, source: Source, indices: NDArray[np.int64] | None = None, *, moments: Moments | None = None
    ) -> None:
        self._source = source
        self._indices = np.arange(len(source), dtype=np.int64) if indices is None else indices
        super().__init__(
            source.uri,
            len(self._indices),
            image_size=source.image_size,
            fingerprint=f"{derive_key(source.fingerprint, self._indices.tobytes().hex()):016x}",
            class_names=source.class_names,
            has_several_labels=source.has_several_labels,
            channels=source.channels,
            moments=moments or (source.mean, source.std),
        )
        self.task, self.has_masks = source.task, source.has_masks

    @property
    def interpolation(self) -> str:
        return self._source.interpolation

    def read(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        return self._source.read(self._indices[indices])

    def find_augmentation(self, name: str, randaugment: str | None, interpolation: str) -> Augmentation:
        return self._source.find_augmentation(name, randaugment, interpolation)

    def read_views(
        self, indices: NDArray[np.int64], augmentation: Augmentation, u: Uniforms
    ) -> tuple[Tensor, Tensor, tuple[Damage, ...]]:
        return self._source.read_views(self._indices[indices], augmentation, u)

    def labels(self, indices: NDArray[np.int64] | None = None) -> Tensor:
        return self._source.labels(self._indices if indices is None else self._indices[indices])

    def stretched(self) -> Source:
        inner = self._source.stretched()
        if inner is self._source:
            return self
        twin = copy.copy(self)
        twin._source, twin.fingerprint = inner, f"{self.fingerprint}-stretched"
        return twin


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
