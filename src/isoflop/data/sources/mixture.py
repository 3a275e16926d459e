"""`mixture:3*parquet:A + 1*folder:B`: several sources at once, in exact proportions."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.data.order import MixtureOrder, Order, derive_key
from isoflop.data.records import Damage, are_numbers
from isoflop.data.source import Source
from isoflop.data.sources.arrays import ArraySource, ImageSource
from isoflop.data.transforms import Augmentation, Uniforms, augment_batch
from isoflop.errors import DataError


class Mixture:
    """Sources one after another, visited in the proportion of their integer `weights`.

    Classes of the same name are one class; the others are numbered one source after another. Classes that have numbers
    for names are shared by sources with equally many of them. If one has several labels an image, the mixture has; if
    one is unlabelled, the mixture is.
    """

    def __init__(self, uri: str, sources: list[Source], weights: list[int]) -> None:
        if len({source.channels for source in sources}) > 1:
            raise DataError(f"`{uri}`: the sources have different numbers of channels")
        self.uri = uri
        self._sources = sources
        self.damages = tuple(d for source in sources if isinstance(source, ArraySource) for d in source.damages)
        lengths = [len(source) for source in sources]
        self._ends = np.cumsum(lengths)
        offsets = [int(end) - length for end, length in zip(self._ends, lengths, strict=True)]
        self.order: Order = MixtureOrder([source.order for source in sources], weights, offsets)
        self.class_names, self._classes = _joined([tuple(source.class_names) for source in sources])
        if not all(source.num_classes for source in sources):
            self.class_names = ()
        self.num_classes = len(self.class_names)
        self.has_several_labels = self.num_classes > 0 and any(source.has_several_labels for source in sources)
        self.channels, self.image_size = sources[0].channels, sources[0].image_size
        share = np.asarray(weights) / sum(weights)
        mean = share @ np.asarray([source.mean for source in sources])
        square = share @ np.asarray([np.square(s.std) + np.square(s.mean) for s in sources])
        self.mean = tuple(round(float(m), 5) for m in mean)
        self.std = tuple(round(float(s), 5) for s in np.sqrt(square - mean**2))
        self.fingerprint = f"{derive_key(*(s.fingerprint for s in sources), *weights):016x}"
        unique = [source.unique_images for source in sources]
        self.unique_images: int | None = None if None in unique else sum(u for u in unique if u is not None)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """See `Source.read`."""
        images, labels, _ = self.read_views(indices, Augmentation(), np.zeros((len(indices), 64)))
        return images, labels

    def read_views(
        self, indices: NDArray[np.int64], augmentation: Augmentation, u: Uniforms
    ) -> tuple[Tensor, Tensor, tuple[Damage, ...]]:
        """See `ImageSource.read_views`."""
        owners = np.searchsorted(self._ends, indices, side="right")
        images = torch.empty((len(indices), self.channels, self.image_size, self.image_size), dtype=torch.uint8)
        labels = self._no_labels(len(indices))
        damages: tuple[Damage, ...] = ()
        for owner in np.unique(owners):
            source = self._sources[owner]
            mine = np.flatnonzero(owners == owner)
            own = indices[mine] - (int(self._ends[owner]) - len(source))
            if isinstance(source, ImageSource):
                part, own_labels, found = source.read_views(own, augmentation, u[mine])
                damages += found
            else:
                part, own_labels = source.read(own)
                part = augment_batch(augmentation, part, u[mine])
            images[torch.from_numpy(mine)] = part
            self._place(labels, torch.from_numpy(mine), own_labels, self._classes[owner])
        return images, labels, damages

    def _no_labels(self, count: int) -> Tensor:
        if self.has_several_labels:
            return torch.zeros((count, self.num_classes))
        return torch.full((count,), -1, dtype=torch.int64)

    def _place(self, labels: Tensor, rows: Tensor, own: Tensor, classes: Tensor) -> None:
        """Puts one source's labels into those of the batch, numbered anew by `classes`."""
        if self.num_classes == 0:
            return
        if not self.has_several_labels:
            labels[rows] = classes[own]
        elif own.ndim == 1:
            labels[rows, classes[own]] = 1.0
        else:
            labels[rows[:, None], classes] = own


def _joined(names: list[tuple[str, ...]]) -> tuple[tuple[str, ...], list[Tensor]]:
    """The classes of all sources, and of each source the number of each of its classes among them."""
    joined: list[str] = []
    number: dict[tuple[int, str], int] = {}
    classes = []
    for own in names:
        group = len(own) if are_numbers(own) else 0  # 3 of ten digits is not 3 of a hundred species
        for name in own:
            if number.setdefault((group, name), len(joined)) == len(joined):
                joined.append(name)
        classes.append(torch.tensor([number[group, name] for name in own], dtype=torch.int64))
    return tuple(joined), classes
