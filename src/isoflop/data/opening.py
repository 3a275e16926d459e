"""From a URI to a source: `fractals?classes=1000`, `digits`, `parquet:PATH`, `folder:PATH`."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import parse_qsl

from isoflop.data.cache import cached_array
from isoflop.data.records import Records, decode_all
from isoflop.data.source import Source, Split, SplitIndices
from isoflop.data.sources.arrays import ArraySource, array_statistics
from isoflop.data.sources.digits import digits
from isoflop.data.sources.folder import FolderRecords
from isoflop.data.sources.fractals import Fractals
from isoflop.data.sources.parquet import ParquetRecords
from isoflop.errors import DataError

_GENERATED: dict[str, tuple[Callable[..., Source], dict[str, type]]] = {
    "fractals": (Fractals, {"classes": int, "zipf": float, "turn": float, "zoom": float, "images": int}),
    "digits": (digits, {}),
}
_STORED: dict[str, Callable[[Path, Literal["train", "test"]], Records]] = {
    "folder": FolderRecords,
    "parquet": ParquetRecords,
}


def open_source(
    uri: str, *, split: Split, image_size: int, heldout: int = 8192, seed: int = 0, channels: int | None = None
) -> Source:
    """The source that `uri` names.

    "train" and "heldout" never share a sample: of stored data, a part keyed by `seed` is held out from the training
    files, `heldout` samples but at most a fifth. "test" is the data set's own test split. `seed` also chooses the
    fractals; it is the data's, not the run's. `channels` is 1 or 3; by default 1 for fractals and digits, 3 for
    stored images.

    Raises DataError for an unknown kind, a bad option, or data that cannot be read.
    """
    if split not in get_args(Split):
        raise DataError(f"unknown split `{split}`; the splits are {', '.join(get_args(Split))}")
    if channels not in (None, 1, 3):
        raise DataError(f"images have 1 or 3 channels, not {channels}")
    head, _, query = uri.partition("?")
    kind, _, path = head.partition(":")
    if kind in _GENERATED:
        make, types = _GENERATED[kind]
        options = _options(uri, query, types)
        return make(split=split, image_size=image_size, heldout=heldout, seed=seed, channels=channels or 1, **options)
    if kind in _STORED:
        _options(uri, query, {})
        if not path:
            raise DataError(f"`{uri}` needs a path: {kind}:PATH")
        root = Path(path).expanduser()
        train = _Decoded(_STORED[kind](root, "train"), image_size, channels or 3)
        if split == "test":
            return _Decoded(_STORED[kind](root, "test"), image_size, channels or 3).source(None, train)
        return train.source(SplitIndices(len(train.images), split, heldout, seed), train)
    raise DataError(f"unknown data source `{uri}`{_did_you_mean(kind, [*_GENERATED, *_STORED])}")


class _Decoded:
    """All images of `records` at `image_size`, decoded once and kept on disk."""

    def __init__(self, records: Records, image_size: int, channels: int) -> None:
        key = f"{records.fingerprint}-{image_size}px-{channels}c"
        self.records = records
        self.images = cached_array(key, lambda: decode_all(records, image_size, channels))

    def source(self, subset: SplitIndices | None, train: "_Decoded") -> ArraySource:
        return ArraySource(
            self.images,
            self.records.labels,
            uri=self.records.uri,
            class_names=self.records.class_names,
            fingerprint=self.records.fingerprint,
            subset=subset,
            statistics=array_statistics(train.images),
        )


def _options(uri: str, query: str, types: dict[str, type]) -> dict[str, Any]:
    """The options after the question mark, converted to their types."""
    options = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in types:
            raise DataError(f"unknown option `{name}` in `{uri}`{_did_you_mean(name, list(types))}")
        try:
            options[name] = types[name](text)
        except ValueError:
            raise DataError(f"`{name}={text}` in `{uri}` must be {types[name].__name__}") from None
    return options


def _did_you_mean(word: str, known: list[str]) -> str:
    if close := difflib.get_close_matches(word, known, n=1):
        return f" - did you mean `{close[0]}`?"
    return f"; there is {', '.join(sorted(known))}" if known else "; there are none"
