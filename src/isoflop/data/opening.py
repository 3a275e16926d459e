"""Opening of a source by its URI.

    fractals?classes=1000&zipf=1.5&images=N     digits
    folder:PATH     table:FILE.csv     parquet:PATH     hf:NAME     torchvision:NAME
    shards:PATH/{000..127}.tar         shards:s3://bucket/{000..127}.tar?cache_gb=50&window=16
    mixture:3*parquet:A + 1*folder:B
    pets:PATH     flowers:PATH     …: published data sets as unpacked (sources/published.py)
    coco:PATH     ade20k:PATH     scenes?classes=10     objects and maps of classes (dense/)

Stored data have four more options: `balance=1` uses every class equally often, `repeat=K` uses each sample K times
close together with different augmentation, `decode=once` or `decode=each` decodes images once, at the size of the
model, or each time (default: once up to 64 px and 200,000 images), and `test=N` makes a test part of N training images
where there is none.
"""

import math
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction
from math import lcm
from pathlib import Path
from typing import Any, get_args
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from isoflop.config import DataConfig
from isoflop.data.dense import CocoRecords, DenseSource, MapRecords, SceneRecords
from isoflop.data.dense.objects import DenseRecords
from isoflop.data.duplicates import equal_images
from isoflop.data.order import (
    BalancedOrder,
    GlobalOrder,
    Order,
    RepeatedOrder,
    WindowedOrder,
    derive_key,
    permute,
)
from isoflop.data.records import Labels, Note, Part, Records, why
from isoflop.data.source import Source, Split, SplitIndices
from isoflop.data.sources.arrays import ArraySource, ImageSource, array_statistics, decoded_images, digits
from isoflop.data.sources.datasets import hugging_face_records, torchvision_records
from isoflop.data.sources.folder import FolderRecords
from isoflop.data.sources.fractals import Fractals
from isoflop.data.sources.mixture import Mixture
from isoflop.data.sources.parquet import ParquetRecords
from isoflop.data.sources.published import PUBLISHED
from isoflop.data.sources.shards import ShardRecords
from isoflop.data.sources.table import TableRecords
from isoflop.errors import DataError, DataNotice, did_you_mean
from isoflop.escapes import printable

_LARGEST_DECODED_ONCE = 64  # px
_LARGEST_SHARE = 1.25  # of all images to those for training: a fifth at most is held out
_MOST_DECODED_ONCE = 200_000  # images: more would take hours at the start, and gigabytes
_WINDOW = 16  # remote shards at hand at a time

Options = dict[str, Any]


def _published(kind: str) -> Callable[[str, Part, Options], Records]:
    def opened(path: str, part: Part, _: Options) -> Records:
        records: Records = PUBLISHED[kind](_local(path), part)
        return records

    return opened


_COLUMNS: dict[str, type] = {"image": str, "label": str, "config": str}  # of Parquet


def _of(options: Options, names: Iterable[str]) -> Options:
    return {name: value for name, value in options.items() if name in names}


_GENERATED: dict[str, tuple[Callable[..., Source], dict[str, type]]] = {
    "fractals": (Fractals, {"classes": int, "zipf": float, "turn": float, "zoom": float, "images": int}),
    "digits": (digits, {}),
}
_STORED: dict[str, tuple[Callable[[str, Part, Options], Records], dict[str, type]]] = {
    "folder": (lambda path, part, _: FolderRecords(_local(path), part), {}),
    "table": (lambda path, part, _: TableRecords(_local(path), part), {}),
    "parquet": (lambda path, part, o: ParquetRecords(_local(path), part, **_of(o, _COLUMNS)), _COLUMNS),
    "shards": (
        lambda path, part, o: ShardRecords(_tilde(path), part, cache_bytes=int(o.get("cache_gb", 50) * 2**30)),
        {"cache_gb": float, "window": int},
    ),
    "hf": (lambda name, part, o: hugging_face_records(name, part, **_of(o, _COLUMNS)), _COLUMNS),
    "torchvision": (lambda name, part, o: torchvision_records(name, part, root=o.get("root")), {"root": str}),
    **{kind: (_published(kind), {}) for kind in PUBLISHED},
}
_DENSE: dict[str, dict[str, type]] = {
    "coco": {"masks": int},
    "ade20k": {"classes": int, "ignore": int, "first": int},
    "scenes": {"classes": int, "images": int, "task": str},
}
_SCENES = 1000  # of training, where it is not said how many
_TEST_SCENES = 200
_TYPES = {int: "a whole number", float: "a number", str: "text"}
_COMMON: dict[str, type] = {"balance": int, "repeat": int, "decode": str, "test": int}
_MIXTURE = "mixture"
DENSE = frozenset(_DENSE)
"""Kinds of data with objects or maps of classes."""


def open_split(data: DataConfig, split: Split, *, may_fetch: bool = True) -> Source:
    """One split of the data of a run or a study. Raises DataError as `open_source`, and if there is nothing in it.

    Data that lie elsewhere are refused unless `may_fetch`: the configuration of a checkpoint may be a stranger's.
    """
    if not may_fetch and _is_remote(data.source):
        raise DataError(
            f"{data.source}: a checkpoint's configuration alone is no reason to fetch data: who trusts it names them "
            "(`isoflop inspect --data`, say), or gives a run that has its data.json"
        )
    source = open_source(
        data.source,
        split=split,
        image_size=data.image_size,
        heldout=data.heldout,
        seed=data.seed,
        interpolation="bilinear" if data.interpolation == "bilinear" else "bicubic",
    )
    if data.mean or data.std:
        _normalize(source, data)
    if not len(source):
        raise DataError(f"{data.source}: too few different images to keep some for evaluation; it takes at least five")
    if data.images is None or split != "train":
        return source
    if data.images > len(source):
        raise DataError(f"{data.source}: `data.images` = {data.images:,}, but there are {len(source):,} to train on")
    if not isinstance(source.order, GlobalOrder):
        raise DataError(f"{data.source}: `data.images` does not go with an order of its own (balance, window, mixture)")
    return part_of(source, data.images, data.seed)


def part_of(source: Source, images: int, seed: int) -> Source:
    """So many images of `source`, drawn by `seed`: those that `data.images` takes; fewer are a part of more."""
    chosen = permute(np.arange(images, dtype=np.int64), len(source), derive_key("part of the images", seed))
    return source.subset(np.sort(chosen))


def _normalize(source: Source, data: DataConfig) -> None:
    """Has `source`, which nobody else holds yet, normalized by `data.mean` and `data.std`."""
    for key, values in (("mean", data.mean), ("std", data.std)):
        if len(values or ()) != source.channels:
            raise DataError(
                f"{data.source}: `data.{key}` has {len(values or ())} numbers, but images of {source.channels} "
                "channels are normalized by as many, with both `data.mean` and `data.std`"
            )
    if min(data.std or ()) <= 0:
        raise DataError(f"{data.source}: `data.std` = {data.std}: a standard deviation is above 0")
    source.mean, source.std = data.mean or (), data.std or ()


def _is_remote(uri: str) -> bool:
    """Whether opening `uri` may ask another machine for it."""
    kind, path, _ = parse_uri(uri)
    if kind == _MIXTURE:
        return any(_is_remote(part) for part, _ in _mixture_parts(uri, path))
    return kind in ("hf", "torchvision") or "://" in path


def open_source(
    uri: str,
    *,
    split: Split,
    image_size: int,
    heldout: int = 8192,
    seed: int = 0,
    channels: int | None = None,
    interpolation: str = "bilinear",
) -> Source:
    """The source that `uri` names (see this module's first lines).

    "train" and "heldout" never share a sample: of stored data, a part keyed by `seed` is held out from the training
    files, `heldout` samples but at most a fifth. "test" is the data set's own test part. `seed` also chooses the
    fractals; it is the data's, not the run's. `channels` is 1 or 3; by default 1 for fractals and digits, 3 for stored
    images. `interpolation` is how evaluation resizes images that are decoded each time they are read.

    Raises DataError for an unknown kind, a bad option, or data that cannot be read.
    """
    if split not in get_args(Split):
        raise DataError(f"unknown split `{split}`; the splits are {', '.join(get_args(Split))}")
    if channels not in (None, 1, 3):
        raise DataError(f"images have 1 or 3 channels, not {channels}")
    kind, path, options = parse_uri(uri)
    if kind == _MIXTURE:
        parts = _mixture_parts(uri, path)
        stored = any(parse_uri(part)[0] in _STORED for part, _ in parts)
        own_channels = channels or (3 if stored else 1)
        sources = [
            open_source(
                part,
                split=split,
                image_size=image_size,
                heldout=heldout,
                seed=seed,
                channels=own_channels,
                interpolation=interpolation,
            )
            for part, _ in parts
        ]
        return Mixture(uri, sources, [weight for _, weight in parts])
    if kind in _DENSE:
        return _open_dense(uri, split, image_size, heldout, seed)
    if kind in _GENERATED:
        make, _ = _GENERATED[kind]
        return make(split=split, image_size=image_size, heldout=heldout, seed=seed, channels=channels or 1, **options)
    records = open_records(uri, "test" if split == "test" else "train")
    subset = _split(records, uri, split, heldout, seed)
    order = _order(records, subset, options)
    is_small = image_size <= _LARGEST_DECODED_ONCE and len(records) <= _MOST_DECODED_ONCE
    usual = "once" if is_small else "each"
    decode = options.get("decode", usual)
    # Evaluation sees the same pixels either way; crops in training and the normalization differ.
    unusual = "" if decode == usual else f"-{decode}"
    if decode == "each":
        source = ImageSource(records, subset, image_size=image_size, channels=channels or 3, order=order)
        source.fingerprint += unusual
        source.shown = replace(source.shown, interpolation=interpolation)
        return source
    images, damages = decoded_images(records, image_size, channels or 3)
    train = records if split != "test" else open_records(uri, "train")
    train_images, _ = decoded_images(train, image_size, channels or 3)
    return ArraySource(
        images,
        records.labels,
        uri=uri,
        class_names=records.class_names,
        fingerprint=(records.fingerprint if subset is None else subset.fingerprint(records.fingerprint)) + unusual,
        rows=np.arange(len(records)) if subset is None else subset.all(),
        statistics=array_statistics(train_images),
        damages=damages,
        order=order,
    )


def _open_dense(uri: str, split: Split, image_size: int, heldout: int, seed: int) -> DenseSource:
    records = open_dense_records(uri, split, image_size=image_size, heldout=heldout, seed=seed)
    if isinstance(records, SceneRecords):
        return DenseSource(records, None, image_size=image_size)
    return DenseSource(records, _split(records, uri, split, heldout, seed), image_size=image_size)


def _split(records: Records | DenseRecords, uri: str, split: Split, heldout: int, seed: int) -> SplitIndices | None:
    """Which of the records are of `split`; None for all of a test part."""
    equal = equal_images(records) if heldout and split != "test" else None
    _tell(records, uri, equal)
    return None if split == "test" else SplitIndices(len(records), split, heldout, seed, equal)


def open_dense_records(
    uri: str, split: Split, *, image_size: int = 128, heldout: int = 0, seed: int = 0
) -> DenseRecords:
    """The pictures with objects or maps of classes of stored data, of which what is held out is a part of "train"; or
    the scenes of `split`, drawn at `image_size`. Raises DataError."""
    kind, path, options = parse_uri(uri)
    if kind == "scenes":
        task = options.get("task", "detect")
        if task not in ("detect", "segment"):
            raise DataError(f"`task={task}` in `{uri}` must be detect or segment")
        counts = {"train": options.get("images", _SCENES), "heldout": heldout, "test": _TEST_SCENES}
        classes = options.get("classes", 10)
        return SceneRecords(split, size=image_size, classes=classes, images=counts[split], task=task, seed=seed)
    part: Part = "test" if split == "test" else "train"
    try:
        if kind == "coco":
            return CocoRecords(_local(path), part, masks=bool(options.get("masks", 0)))
        return MapRecords(_local(path), part, **options)
    except OSError as error:
        raise DataError(f"{uri}: {why(error)} ({error.filename})") from error


def open_records(uri: str, part: Part) -> Records:
    """The encoded images of one part of stored data. Raises DataError for generated data and bad URIs."""
    kind, path, options = parse_uri(uri)
    if kind not in _STORED:
        raise DataError(f"`{uri}` is not stored data; that is {', '.join(f'{k}:…' for k in _STORED)}")
    try:
        if "test" not in options:
            return _STORED[kind][0](path, part, options)
        try:
            _STORED[kind][0](path, "test", options)
        except DataError as error:
            if not error.missing_part:
                raise
        else:
            raise DataError(f"{uri}: the data have a test part already: take `test={options['test']}` away")
        return PartRecords(_STORED[kind][0](path, "train", options), part, options["test"], uri)
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        raise DataError(f"{uri}: {why(error)}{place}") from error


class PartRecords:
    """The training or the test part of `records` that have no parts: `count` of them, at most a fifth, are for testing,
    the same ones each time. Equal images are on one side."""

    def __init__(self, records: Records, part: Part, count: int, uri: str) -> None:
        side: Split = "train" if part == "train" else "heldout"
        split = SplitIndices(len(records), side, count, _SEED_OF_TEST, equal_images(records))
        self._records, self.numbers = records, split.all()
        if not len(self.numbers):
            raise DataError(f"{uri}: too few different images to keep some for testing; it takes at least five")
        self.uri, self.class_names, self.notes = uri, records.class_names, records.notes
        self.labels: Labels = records.labels[self.numbers]
        self.fingerprint = f"{derive_key(split.fingerprint(records.fingerprint), part, count):016x}"
        self.shard_sizes = None if records.shard_sizes is None else split.sizes_of(records.shard_sizes)
        self.is_remote: bool = getattr(records, "is_remote", False)

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, index: int) -> bytes:
        """See `Records.read`."""
        return self._records.read(int(self.numbers[index]))

    def name(self, index: int) -> str:
        """See `Records.name`."""
        return self._records.name(int(self.numbers[index]))


_SEED_OF_TEST = 1  # fixed: who names the data names the test part


GENERATED = frozenset((*_GENERATED, "scenes"))
"""Kinds of data that are drawn, not read."""
STORED = frozenset(_STORED)
"""Kinds of data with encoded images and classes: those that `open_records` opens."""


def open_to_judge(
    uri: str, part: Part | None, trained_on: tuple[DataConfig, str, int | None] | None = None
) -> tuple[Records, NDArray[np.int64], str]:
    """Stored images to evaluate a classifier on: the records, the numbers of those to take, and which these are.

    Args:
        part: by default the test part; without one, that which the run made (`test=N`), or what it held out, if it was
            trained on these images; else all.
        trained_on: the data of the run, with the fingerprint and the number of its training images.

    Raises DataError. Warns where the run was trained on the images.
    """
    try:
        records = open_records(uri, part or "test")
        what = f"the {part or 'test'} part"
    except DataError as error:
        if part or not error.missing_part:
            raise
        records, what = open_records(uri, "train"), "all images"
    _tell(records, uri, None)
    everything = np.arange(len(records), dtype=np.int64)
    if part is None and what == "all images" and trained_on is not None:
        data, fingerprint, images = trained_on
        if (count := parse_uri(data.source)[2].get("test")) and _held_out(
            PartRecords(records, "train", count, uri), data, fingerprint, images
        ) is not None:
            return records, PartRecords(records, "test", count, uri).numbers, "the test part"
    held = None if what == "the test part" or trained_on is None else _held_out(records, *trained_on)
    if held is None:
        return records, everything, what
    if part is None and len(held):
        return records, held, "the held-out part"
    warnings.warn(
        f"{printable(uri)}: the run was trained on these images, so its accuracy on others is lower",
        DataNotice,
        stacklevel=1,
    )
    return records, everything, what


def _held_out(records: Records, data: DataConfig, fingerprint: str, images: int | None) -> NDArray[np.int64] | None:
    """The records that a run held out, if its training images, of that `fingerprint`, are some of these."""
    if images is None or not images <= len(records) <= images * _LARGEST_SHARE + 1:
        return None
    equal = equal_images(records) if data.heldout else None
    split = SplitIndices(len(records), "heldout", data.heldout, data.seed, equal)
    own = split.fingerprint(records.fingerprint)
    return split.all() if fingerprint in (own, f"{own}-once", f"{own}-each") else None


def _tell(records: Records | DenseRecords, uri: str, equal: NDArray[np.int64] | None) -> None:
    """One line on what was left out and guessed, and on images that equal others; said once a process."""
    notes = records.notes
    if equal is not None and len(equal):
        told = f"{len(equal):,} images are duplicates: copies are together, in training or held out"
        notes = (*notes, Note(told))
    if notes:
        said = "; ".join(note.line(3) for note in notes)
        more = " (`isoflop data check` lists all)" if any(note.total > 3 for note in notes) else ""
        warnings.warn(f"{printable(uri)}: {said}{more}", DataNotice, stacklevel=1)


def parse_uri(uri: str) -> tuple[str, str, Options]:
    """Kind, path and options of a URI, whose names and types are checked."""
    kind = re.split(r"[:?]", uri, maxsplit=1)[0]
    if kind == _MIXTURE:
        return kind, uri.partition(":")[2], {}
    if kind not in _GENERATED and kind not in _STORED and kind not in _DENSE:
        if Path(uri).expanduser().exists():
            raise DataError(f"`{uri}` needs its kind before it, as in `folder:{uri}`")
        raise DataError(f"unknown data source `{uri}`{_known(kind, [*_GENERATED, *_STORED, *_DENSE, _MIXTURE])}")
    head, _, query = uri.partition("?")
    path = head.partition(":")[2]
    if (kind in _STORED or kind in ("coco", "ade20k")) and not path:
        raise DataError(f"`{uri}` needs a path or a name: {kind}:{'NAME' if kind in ('hf', 'torchvision') else 'PATH'}")
    if (kind in _GENERATED or kind == "scenes") and path:
        raise DataError(f"`{uri}`: {kind} have no path; options follow a question mark")
    types = _DENSE.get(kind) or (_GENERATED[kind][1] if kind in _GENERATED else _STORED[kind][1] | _COMMON)
    options = _options(uri, query, types)
    if options.get("decode", "once") not in ("once", "each"):
        raise DataError(f"`decode={options['decode']}` in `{uri}` must be once or each")
    if options.get("balance", 1) not in (0, 1):
        raise DataError(f"`balance={options['balance']}` in `{uri}` must be 0 or 1")
    if options.get("test", 1) < 1:
        raise DataError(f"`test={options['test']}` in `{uri}` must be 1 or more")
    return kind, path, options


def _order(records: Records, subset: SplitIndices | None, options: Options) -> Order:
    """The order that suits the storage, changed as the options say."""
    num_samples = len(records) if subset is None else len(subset)
    order: Order = GlobalOrder(num_samples)
    if records.shard_sizes is not None and ("window" in options or getattr(records, "is_remote", False)):
        sizes = records.shard_sizes if subset is None else subset.sizes_of(records.shard_sizes)
        order = WindowedOrder(sizes, options.get("window", _WINDOW))
    if options.get("balance"):
        labels: NDArray[Any] = np.asarray(records.labels)
        labels = labels if subset is None else labels[subset.all()]
        if labels.ndim > 1 or (labels < 0).any():
            raise DataError(f"{records.uri}: balance=1 needs one class per image")
        order = BalancedOrder(labels.astype(np.int64))
    return RepeatedOrder(order, options["repeat"]) if "repeat" in options else order


def _mixture_parts(uri: str, text: str) -> list[tuple[str, int]]:
    """The URIs and integer weights in `3*parquet:A + 0.5*folder:B`; a part without a weight counts once."""
    parts: list[tuple[str, Fraction]] = []
    for piece in re.split(r"\s+\+\s+", text.strip()):
        match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)\s*\*\s*)?(.+)", piece)
        if match is None or parse_uri(match.group(2))[0] == _MIXTURE:
            raise DataError(f"`{uri}` must read like mixture:3*parquet:A + 1*folder:B")
        parts.append((match.group(2), Fraction(match.group(1) or 1)))
    if any(weight <= 0 or weight.denominator > 1000 for _, weight in parts):
        raise DataError(f"`{uri}`: weights are positive, with at most three decimals")
    common = lcm(*(weight.denominator for _, weight in parts))
    return [(part, int(weight * common)) for part, weight in parts]


def _options(uri: str, query: str, types: dict[str, type]) -> Options:
    """The options after the question mark, converted to their types."""
    options = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in types:
            raise DataError(f"unknown option `{name}` in `{uri}`{_known(name, list(types))}")
        try:
            options[name] = types[name](text)
            if not math.isfinite(options[name] if types[name] is float else 0):
                raise ValueError
        except ValueError:
            raise DataError(f"`{name}={text}` in `{uri}` must be {_TYPES[types[name]]}") from None
    return options


def _known(word: str, known: list[str]) -> str:
    if meant := did_you_mean(word, known):
        return meant
    return f"; there is {', '.join(sorted(known))}" if known else "; there are none"


def _tilde(path: str) -> str:
    return str(Path(path).expanduser()) if path.startswith("~") else path


def _local(path: str) -> Path:
    return Path(path).expanduser()
