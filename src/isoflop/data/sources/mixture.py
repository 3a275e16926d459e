"""`mixture:3*parquet:A + 1*folder:B`: several sources in exact proportions."""

import copy
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.data.order import MixtureOrder, derive_key
from isoflop.data.records import Damage, are_numbers
from isoflop.data.source import Source
from isoflop.data.transforms import Augmentation, Uniforms
from isoflop.errors import DataError

Views = tuple[Tensor, Tensor, tuple[Damage, ...]]


class Mixture(Source):
    """Sources one after another, visited in the proportion of their integer `weights`.

    Classes of the same name are one class; the others are numbered one source after another. Classes that have numbers
    for names are shared by sources with equally many of them. If one has several labels an image, the mixture has; if
    one is unlabelled, the mixture is.
    """

    def __init__(self, uri: str, sources: list[Source], weights: list[int]) -> None:
        if any(source.task for source in sources):
            raise DataError(f"`{uri}`: what is mixed are images with classes, not with objects or maps")
        if len({source.channels for source in sources}) > 1:
            raise DataError(f"`{uri}`: the sources have different numbers of channels")
        self._sources = sources
        lengths = [len(source) for source in sources]
        self._ends = np.cumsum(lengths)
        offsets = [int(end) - length for end, length in zip(self._ends, lengths, strict=True)]
        class_names, self._classes = _joined([source.class_names for source in sources])
        if not all(source.num_classes for source in sources):
            class_names = ()
        share = np.asarray(weights) / sum(weights)
        mean = share @ np.asarray([source.mean for source in sources])
        square = share @ np.asarray([np.square(s.std) + np.square(s.mean) for s in sources])
        moments = (
            tuple(round(float(m), 5) for m in mean),
            tuple(round(float(s), 5) for s in np.sqrt(square - mean**2)),
        )
        super().__init__(
            uri,
            int(self._ends[-1]),
            image_size=sources[0].image_size,
            fingerprint=f"{derive_key(*(s.fingerprint for s in sources), *weights):016x}",
            class_names=class_names,
            has_several_labels=bool(class_names) and any(source.has_several_labels for source in sources),
            channels=sources[0].channels,
            moments=moments,
            order=MixtureOrder([source.order for source in sources], weights, offsets),
        )
        self.damages = tuple(damage for source in sources for damage in source.damages)
        unique = [source.unique_images for source in sources]
        self.unique_images = None if None in unique else sum(u for u in unique if u is not None)

    @property
    def interpolation(self) -> str:
        return self._sources[0].interpolation

    def read(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        images, labels, _ = self._collected(indices, lambda source, own, _: (*source.read(own), ()))
        return images, labels

    def read_views(self, indices: NDArray[np.int64], augmentation: Augmentation, u: Uniforms) -> Views:
        return self._collected(indices, lambda source, own, mine: source.read_views(own, augmentation, u[mine]))

    def labels(self, indices: NDArray[np.int64] | None = None) -> Tensor:
        chosen = np.arange(len(self), dtype=np.int64) if indices is None else indices
        labels = self._no_labels(len(chosen))
        for owner, mine, own in self._owned(chosen):
            self._place(labels, torch.from_numpy(mine), self._sources[owner].labels(own), self._classes[owner])
        return labels

    def stretched(self) -> Source:
        sources = [source.stretched() for source in self._sources]
        if all(new is own for new, own in zip(sources, self._sources, strict=True)):
            return self
        twin = copy.copy(self)
        twin._sources, twin.fingerprint = sources, f"{self.fingerprint}-stretched"
        return twin

    def _collected(
        self, indices: NDArray[np.int64], read: Callable[[Source, NDArray[np.int64], NDArray[np.int64]], Views]
    ) -> Views:
        """What `read` gives of each source, its own indices among `indices` and their places, put together."""
        images = torch.empty((len(indices), self.channels, self.image_size, self.image_size), dtype=torch.uint8)
        labels = self._no_labels(len(indices))
        damages: tuple[Damage, ...] = ()
        for owner, mine, own in self._owned(indices):
            part, own_labels, found = read(self._sources[owner], own, mine)
            damages += found
            images[torch.from_numpy(mine)] = part
            self._place(labels, torch.from_numpy(mine), own_labels, self._classes[owner])
        return images, labels, damages

    def _owned(self, indices: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Each source that has some of the samples `indices`: its number, their places, and their numbers in it."""
        owners = np.searchsorted(self._ends, indices, side="right")
        for owner in np.unique(owners).tolist():
            mine = np.flatnonzero(owners == owner)
            yield owner, mine, indices[mine] - (int(self._ends[owner]) - len(self._sources[owner]))

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
