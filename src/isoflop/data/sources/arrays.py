"""A source of decoded images: an array in memory, or memory-mapped from the cache."""

import contextlib
import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from isoflop.data.cache import kept
from isoflop.data.decode import DECODING, DamagedImage, decode_crop, read_header
from isoflop.data.order import Order, derive_key, permute, words
from isoflop.data.records import REPLACEMENTS, Damage, GoneImage, Labels, Quarantine, Records, read_surely, replacements
from isoflop.data.source import Moments, Source, Split, SplitIndices, mean_and_std
from isoflop.data.transforms import (
    AUGMENTATIONS,
    Augmentation,
    Uniforms,
    after_crop,
    crop_box,
    evaluation_view,
    finish_batch,
    interpolation_of,
)
from isoflop.errors import DataError
from isoflop.runs.files import cache_directory

_STATISTICS_SAMPLES = 4096


class ArraySource(Source):
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
        statistics: Moments,
        damages: Sequence[Damage] = (),
        order: Order | None = None,
    ) -> None:
        super().__init__(
            uri,
            len(rows),
            image_size=images.shape[3],
            fingerprint=fingerprint,
            class_names=class_names,
            has_several_labels=labels.ndim == 2,
            channels=images.shape[1],
            moments=statistics,
            order=order,
        )
        self._images, self._labels = images, labels
        Quarantine(len(images)).add(tuple(damages))
        self.damages = tuple(damage for damage in damages if damage.sample in rows)
        self._rows = _without_damaged(rows, np.asarray([damage.sample for damage in damages], dtype=np.int64))

    def read(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        rows = self._rows[indices]
        return torch.from_numpy(self._images[rows]), label_tensor(self._labels, rows)

    def labels(self, indices: NDArray[np.int64] | None = None) -> Tensor:
        return label_tensor(self._labels, self._rows if indices is None else self._rows[indices])


def decoded_images(records: Records, image_size: int, channels: int) -> tuple[NDArray[np.uint8], list[Damage]]:
    """Every record's evaluation crop, uint8 (N, channels, s, s), and the damaged ones, which are black.

    Decoded once and mapped from the cache afterwards; kept in memory where the cache cannot be written. An image whose
    file was gone is looked for again. Raises DataError where the storage fails: that is no damage of an image.
    """
    shape = (len(records), channels, image_size, image_size)
    key = f"{records.fingerprint}-{image_size}px-{channels}c-v{DECODING}"

    def make(folder: Path) -> None:
        damages: list[Damage] = []
        gone: list[int] = []
        with (folder / "images.npy").open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for image in _decoded(records, image_size, channels, damages, gone):
                file.write(image.tobytes())
        (folder / "damaged.json").write_text(json.dumps({"damages": damages, "gone": gone}))

    def load(folder: Path) -> tuple[NDArray[np.uint8], list[Damage]] | None:
        images = np.asarray(np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False))
        listed = json.loads((folder / "damaged.json").read_text())
        if images.shape != shape or images.dtype != np.uint8 or any(_is_back(records, k) for k in listed["gone"]):
            return None
        return images, [Damage(*row) for row in listed["damages"]]

    if (found := kept(cache_directory() / "decoded" / key, load, make)) is not None:
        return found
    damages: list[Damage] = []
    images = np.zeros(shape, dtype=np.uint8)
    for index, image in enumerate(_decoded(records, image_size, channels, damages, [])):
        images[index] = image
    return images, damages


def _decoded(
    records: Records, image_size: int, channels: int, damages: list[Damage], gone: list[int]
) -> Iterator[NDArray[np.uint8]]:
    black = np.zeros((channels, image_size, image_size), dtype=np.uint8)
    for index in range(len(records)):
        image = black
        try:
            image = evaluation_view(read_surely(records, index), image_size, channels).numpy()
        except DamagedImage as error:
            damages.append(Damage(index, records.name(index), str(error)))
            if isinstance(error, GoneImage):
                gone.append(index)
        yield image


def _is_back(records: Records, index: int) -> bool:
    with contextlib.suppress(DamagedImage):
        read_surely(records, index)
        return True
    return False


def array_statistics(images: NDArray[np.uint8]) -> Moments:
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


# A source of stored images that are decoded each time they are read, so that each time another part can be shown.


class ImageSource(Source):
    """One split of `records`, at `image_size`. A damaged sample is replaced by another one of the split, always the
    same.
    """

    def __init__(
        self, records: Records, subset: SplitIndices | None, *, image_size: int, channels: int, order: Order
    ) -> None:
        super().__init__(
            records.uri,
            len(records) if subset is None else len(subset),
            image_size=image_size,
            fingerprint=records.fingerprint if subset is None else subset.fingerprint(records.fingerprint),
            class_names=records.class_names,
            has_several_labels=records.labels.ndim == 2,
            channels=channels,
            order=order,
        )
        self.shown = AUGMENTATIONS["none"]
        """how evaluation sees the images: its crop and interpolation"""
        self._records, self._subset = records, subset

    @property
    def interpolation(self) -> str:
        return self.shown.interpolation

    def read(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """See `Source.read`. Raises DataError for a sample that cannot be used or replaced."""
        images, labels, _ = self.read_views(indices, self.shown, np.zeros((len(indices), 64)))
        return images, labels

    def read_views(
        self, indices: NDArray[np.int64], augmentation: Augmentation, u: Uniforms
    ) -> tuple[Tensor, Tensor, tuple[Damage, ...]]:
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
        images = finish_batch(augmentation, images, u)
        return images, label_tensor(self._records.labels, used), tuple(damages)

    def labels(self, indices: NDArray[np.int64] | None = None) -> Tensor:
        rows = np.arange(len(self), dtype=np.int64) if indices is None else indices
        return label_tensor(self._records.labels, rows if self._subset is None else self._subset[rows])

    def stretched(self) -> Source:
        twin = copy.copy(self)
        twin.shown, twin.fingerprint = replace(self.shown, crop="stretch"), f"{self.fingerprint}-stretched"
        return twin

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


# `digits`: scikit-learn's 1,797 real handwritten digits of 8×8 pixels (UCI Optical Recognition, 1998), enlarged.


_TEST_SHARE = 5  # a fifth of the digits is the test split


def digits(*, split: Split, image_size: int, heldout: int, seed: int, channels: int = 1) -> ArraySource:
    """The digits as a source: four fifths for training (with a held-out part), one fifth for the test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.from_numpy(np.asarray(bunch.images, dtype=np.float32))[:, None] * (255 / 16)
    large = F.interpolate(small, size=(image_size, image_size), mode="bilinear", align_corners=False)
    images = large.round_().clamp_(0, 255).to(torch.uint8).expand(-1, channels, -1, -1).contiguous().numpy()
    labels = np.asarray(bunch.target, dtype=np.int64)
    shuffled = permute(np.arange(len(labels)), len(labels), derive_key("digits test split"))
    test, train = np.sort(shuffled[: len(labels) // _TEST_SHARE]), np.sort(shuffled[len(labels) // _TEST_SHARE :])
    rows = test if split == "test" else train[SplitIndices(len(train), split, heldout, seed).all()]
    return ArraySource(
        images,
        labels,
        uri="digits",
        class_names=tuple("0123456789"),
        fingerprint=f"{derive_key('digits-v1', image_size, channels, int(labels.sum())):016x}",
        rows=rows,
        statistics=array_statistics(images[train]),
    )
