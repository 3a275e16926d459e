"""What a run knows of its data: `data.json`, so that its weights can be used where the data are not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from isoflop.data import Source
from isoflop.data.records import are_numbers
from isoflop.errors import CheckpointError, DataError
from isoflop.escapes import printable
from isoflop.models.saved import read_description
from isoflop.runs.files import read_json

FILE = "data.json"


class Shape(Protocol):
    """What of the data decides a backbone's shape."""

    @property
    def num_classes(self) -> int:
        """0 where the images are unlabelled."""

    @property
    def channels(self) -> int:
        """Of the images."""


@dataclass(frozen=True)
class DataFacts:
    """Of the training images: their classes, and mean and deviation of pixels in 0 … 1, by which they were normalised.

    `images` is their number, or None where they never repeat.
    """

    uri: str
    num_classes: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    images: int | None
    fingerprint: str


def facts_of(source: Source) -> DataFacts:
    """What there is to know of `source`."""
    return DataFacts(
        uri=source.uri,
        num_classes=source.num_classes,
        channels=source.channels,
        mean=tuple(map(float, source.mean)),
        std=tuple(map(float, source.std)),
        class_names=tuple(source.class_names),
        images=source.unique_images,
        fingerprint=source.fingerprint,
    )


def read_facts(directory: Path) -> DataFacts | None:
    """What `data.json` says; None where there is none, CheckpointError where it is damaged."""
    path = directory / FILE
    if not path.is_file():
        return None
    kinds: dict[str, Any] = {"uri": str, "num_classes": int, "channels": int, "fingerprint": str, "images": int | None}
    kinds |= dict.fromkeys(("mean", "std", "class_names"), list)
    found = read_json(path, kinds)
    values: dict[str, Any] = {name: tuple(found[name]) if kind is list else found[name] for name, kind in kinds.items()}
    return DataFacts(**values)


def learnt_classes(weights: str) -> tuple[str, ...]:
    """The classes that trained weights tell apart, in the order of their logits, as the folder that holds them says;
    () where it does not."""
    path = Path(weights).expanduser()
    folder = path if path.is_dir() else path.parent
    if not path.is_dir() and path.name != "model.safetensors":
        return ()
    if (folder / FILE).is_file() and (folder / "identity.json").is_file():
        facts = read_facts(folder)
        return facts.class_names if facts else ()
    try:
        described = read_description(read_json(folder / "config.json"), folder)
    except CheckpointError:
        return ()
    return described.class_names if described else ()


def check_classes(what: str, learnt: tuple[str, ...], source: Source) -> None:
    """Raises DataError where `what` learnt other classes than `source` has, or the same in another order.

    Classes that have numbers for names agree by their number.
    """
    ours = tuple(source.class_names)
    if not learnt or not ours or learnt == ours or are_numbers(learnt) or are_numbers(ours):
        return
    theirs, own = next((p for p in zip(learnt, ours, strict=False) if p[0] != p[1]), (len(learnt), len(ours)))
    order = "the same classes in another order" if set(learnt) == set(ours) else "other classes"
    raise DataError(f"{what}: learnt {order} ({printable(str(theirs))}) than {source.uri} has ({printable(str(own))})")
