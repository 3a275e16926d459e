"""A source whose images are already decoded: an array in memory, or mapped from the cache of decoded images."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.data.cache import cache_directory, kept
from isoflop.data.decode import DECODING, DamagedImage
from isoflop.data.keyed import derive_key, words
from isoflop.data.orders import GlobalOrder, Order
from isoflop.data.quarantine import Damage, Quarantine
from isoflop.data.records import GoneImage, Labels, Records, read_surely
from isoflop.data.source import mean_and_std
from isoflop.data.transforms import evaluation_view

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
