"""`fractals?classes=1000&zipf=1.5&turn=1&zoom=0.5&images=N`: generated pictures, without limit unless `images` is
given.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.data.fractals import draw, orbits, zipf_probabilities
from isoflop.data.keyed import derive_key
from isoflop.data.orders import GlobalOrder, Order
from isoflop.data.source import Split, mean_and_std
from isoflop.errors import DataError

_UNLIMITED = 1 << 40
_FIRST_INSTANCE: dict[Split, int] = {"train": 0, "heldout": 1 << 61, "test": 1 << 62}  # no split reaches the next one
_TEST_IMAGES = 8192
_VERSION = "fractals-v1"


class Fractals:
    """Generated fractals with Zipf-distributed labels (see `isoflop.data.fractals`)."""

    def __init__(
        self,
        *,
        split: Split,
        image_size: int,
        heldout: int,
        seed: int,
        channels: int = 1,
        classes: int = 1000,
        zipf: float = 1.5,
        turn: float = 1.0,
        zoom: float = 0.5,
        images: int | None = None,
    ) -> None:
        if not 8 <= image_size <= 256:
            raise DataError(f"fractals are drawn at 8 to 256 px, not {image_size}")
        if images is not None and not 1 <= images <= _UNLIMITED:
            raise DataError(f"fractals?images={images}: must lie between 1 and 2^40")
        if not 0 <= turn <= 1:
            raise DataError(f"fractals?turn={turn:g}: a share of the full circle lies between 0 and 1")
        if not 0.1 <= zoom <= 0.95:
            raise DataError(f"fractals?zoom={zoom:g}: the smallest size lies between 0.1 and 0.95 of the picture")
        options = f"classes={classes}&zipf={zipf:g}&turn={turn:g}&zoom={zoom:g}" + (
            f"&images={images}" if images else ""
        )
        self.uri = f"fractals?{options}"
        self.num_classes = classes
        self.has_several_labels = False
        self.class_names = tuple(f"fractal {c}" for c in range(classes))
        self.channels = channels
        self.image_size = image_size
        self.unique_images = images
        self.fingerprint = f"{derive_key(_VERSION, self.uri, image_size, channels, seed):016x}"
        self._length: int = {"train": images or _UNLIMITED, "heldout": heldout, "test": _TEST_IMAGES}[split]
        self.order: Order = GlobalOrder(self._length)
        self._first = _FIRST_INSTANCE[split]
        self._seed = seed
        self._turn, self._zoom = turn, zoom
        self._shares = zipf_probabilities(classes, zipf)
        orbits(classes, seed)  # computed here, so that forked workers share it
        sample, _ = self._draw(np.arange(2048, dtype=np.int64))
        self.mean, self.std = mean_and_std(torch.from_numpy(sample))

    def __len__(self) -> int:
        return self._length

    def read(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """See `Source.read`."""
        pictures, categories = self._draw(indices + self._first)
        return torch.from_numpy(pictures), torch.from_numpy(categories)

    def _draw(self, instances: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        return draw(
            instances,
            size=self.image_size,
            shares=self._shares,
            channels=self.channels,
            seed=self._seed,
            turn=self._turn,
            zoom=self._zoom,
        )
