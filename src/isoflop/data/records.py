"""Records: encoded images with labels, as stored. Each storage format is a module in `sources/`."""

import errno
import hashlib
import json
import os
import re
import stat
import time
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from isoflop.data.cache import content_hash
from isoflop.data.decode import DamagedImage
from isoflop.data.order import derive_key, words
from isoflop.errors import DataError, did_you_mean
from isoflop.escapes import printable
from isoflop.runs.files import write_atomically

# Damaged samples: counted, listed with reasons, replaced by others, and too many of them stop the run.


REPLACEMENTS = 16
ALLOWED_SHARE = 0.001
"""Of a data set's samples, so many may be damaged before a run stops."""


class Damage(NamedTuple):
    """One sample that cannot be used."""

    sample: int
    """its number among the records, or -1 if it has none"""
    name: str
    reason: str

    @property
    def line(self) -> str:
        """Name and reason, on one line whatever the name is made of."""
        return f"{printable(self.name)}: {self.reason}"


class Note(NamedTuple):
    """What a data set holds and is not used, or what was guessed about it. It harms no run, but is never silent.

    `Records.notes` has them; `isoflop data check` prints each, a run prints all in one line.
    """

    what: str
    """"hidden files", "the column `label` is taken for the class" """
    names: tuple[str, ...] = ()
    """of what was left out, at least the first; none for a guess"""
    total: int = 0
    """how many were left out"""

    def line(self, most: int = 20) -> str:
        """The note on one line, with at most `most` names."""
        if not self.total:
            return printable(self.what)
        shown = [printable(name) for name in self.names[:most]] + ["…"] * (self.total > min(most, len(self.names)))
        return f"{printable(self.what)} left out: {self.total:,}" + (f" ({', '.join(shown)})" if most else "")


def why(error: Exception) -> str:
    """The reason that an error gives, without the name of the file, which the caller prints."""
    return str(getattr(error, "strerror", None) or error)


def replacements(index: int, num_samples: int) -> list[int]:
    """The samples that are tried in turn in the place of the damaged sample `index`: always the same."""
    return [
        int(word) % num_samples for word in words(derive_key("replacement"), 0, np.asarray([index]), REPLACEMENTS)[0]
    ]


class Quarantine:
    """The damaged samples that a run has met. Raises DataError when they are more than a share of the data."""

    def __init__(self, num_samples: int, allowed_share: float = ALLOWED_SHARE) -> None:
        self.num_samples, self.allowed_share = num_samples, allowed_share
        self.found: dict[str, Damage] = {}

    def save(self, path: Path) -> None:
        """Adds the list to a file of JSON lines {sample, name, reason}, in the order in which the samples were met.

        What an earlier attempt at the run has met stays there.
        """
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        lines += (json.dumps(damage._asdict()) for damage in self.found.values())
        write_atomically(path, "".join(f"{line}\n" for line in dict.fromkeys(lines)))

    def add(self, damages: tuple[Damage, ...]) -> None:
        """Takes in what a batch reports; a sample that is met again counts once."""
        for damage in damages:
            self.found.setdefault(damage.name, damage)
        if damages and len(self.found) > self.allowed_share * self.num_samples:
            first = next(iter(self.found.values()))
            raise DataError(
                f"{len(self.found)} of {self.num_samples} images are damaged, more than the allowed "
                f"{self.allowed_share:.1%}; the first: {first.line}; "
                "`isoflop data check` lists them all"
            )


Part = Literal["train", "test"]
"""The parts in which data sets are stored; what is held out is taken from the first."""

Labels = NDArray[np.int64] | NDArray[np.uint8]
"""int64 (N,), with -1 for unlabelled; or uint8 (N, classes) of zeros and ones where an image may have several classes
"""

TEST_NAMES = ("test", "val", "validation")
"""What the part for testing may be called in storage; the first that is there is taken."""

MOST_CLASSES = 10_000_000

_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENAMETOOLONG})
_WAITS = (0.1, 1.0, 5.0)  # seconds before a read that failed is tried again

_HASHED_WHOLE = 1 << 26  # bytes
_BLOCK = 1 << 16
_IMAGES_READ = 2048  # of a folder; of more, as many spread over them


class Encoded(Protocol):
    """Encoded images by index."""

    def read(self, index: int) -> bytes:
        """The encoded image of one record. Raises DamagedImage or OSError if it cannot be read."""
        ...

    def name(self, index: int) -> str:
        """What to call this record in a message: its path, or its place in a file."""
        ...


class Records(Encoded, Protocol):
    """Encoded images by index, in the order in which they are stored."""

    uri: str
    labels: Labels
    class_names: tuple[str, ...]
    fingerprint: str
    shard_sizes: NDArray[np.int64] | None
    """The numbers of records in consecutive shards, where whole shards are best read together; else None."""
    notes: tuple[Note, ...]
    """What was left out and what was guessed when the data were opened."""

    def __len__(self) -> int:
        """The number of records."""
        ...


class GoneImage(DamagedImage):
    """An image of the data set whose file is not there."""


def read_surely(records: Encoded, index: int) -> bytes:
    """The encoded image of one record; a read that fails is tried again.

    Only what was read can be damaged: when the storage fails (I/O errors, stale handles, timeouts, permissions), a
    DataError ends the run. Raises DamagedImage for a record without an image, and GoneImage where its file is missing.
    """
    for wait in (*_WAITS, None):
        try:
            return records.read(index)
        except OSError as error:
            if error.errno in _GONE:
                raise GoneImage(why(error)) from error
            if wait is None or error.errno in (errno.EACCES, errno.EPERM):
                raise DataError(
                    f"{Damage(index, records.name(index), why(error)).line}; the storage cannot be read, which is no "
                    "damage of the image: start again when it can"
                ) from error
            time.sleep(wait)
    raise AssertionError("unreachable")


def read_image_file(path: Path | str) -> bytes:
    """The bytes of a file. Raises DamagedImage for what is no file but a pipe, device or socket, which may never end,
    and is not opened; OSError for what cannot be read.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise DamagedImage("not a regular file")
    with open(path, "rb") as file:
        return file.read()


def no_labels(count: int) -> NDArray[np.int64]:
    """Labels of unlabelled data: -1 for all, in O(1) memory."""
    return np.broadcast_to(np.int64(-1), (count,))


def number_names(largest: int, where: str) -> tuple[str, ...]:
    """Names for classes that have only numbers, 0 … `largest`. Raises DataError if that is no number of a class."""
    if largest >= MOST_CLASSES:
        raise DataError(f"{where}: label {largest} is no class number; they are below {MOST_CLASSES:,}")
    return tuple(str(c) for c in range(largest + 1))


def class_lines(names: Iterable[str], where: Path | str) -> str:
    """The content of a `classes.txt`, a name a line. Raises DataError for a name that would come back as another."""
    for name in names:
        if name != name.strip() or not name or re.search(r"[\n\r]", name):
            raise DataError(
                f"{where}: the class `{printable(name)}` cannot be stored in classes.txt, which has one name per line: "
                "rename it (no line break, no blank at an end, not empty)"
            )
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: the class `{printable(name)}` is no Unicode text: rename it") from error
    return "".join(f"{name}\n" for name in names)


def read_class_lines(text: str, where: Path | str) -> tuple[str, ...]:
    """The names in a `classes.txt`. Raises DataError for a line without a name: all after it would be numbered anew."""
    names = [line.strip() for line in re.split(r"\r\n|\n|\r", text.removeprefix("\ufeff"))]
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise DataError(f"{where}: line {names.index('') + 1} has no name; classes are numbered by their lines")
    return tuple(names)


def are_numbers(names: tuple[str, ...]) -> bool:
    """Whether classes have no names but their numbers."""
    return all(name == str(k) for k, name in enumerate(names))


def notes_on_names(names: Iterable[str]) -> tuple[Note, ...]:
    """What to say of classes whose names differ in nothing that a person would mean."""
    first: dict[str, str] = {}
    pairs = [(first.setdefault(folded(name), name), name) for name in names]
    told = "classes `{}` and `{}` differ in case, spaces or accents alone"
    return tuple(Note(told.format(one, other)) for one, other in pairs if one != other)


def folded(name: str) -> str:
    """A name without what a person would not tell apart."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


def renumbered(labels: Labels, own: tuple[str, ...], names: tuple[str, ...], where: str, known: str) -> Labels:
    """`labels` of the classes `own`, numbered as the same classes among `names`.

    Raises DataError for an image of a class that is not among them; `known` says whose they are.
    """
    number = {name: k for k, name in enumerate(names)}
    places = np.asarray([number.get(name, -1) for name in own], dtype=np.int64)
    found = np.unique(labels[labels >= 0]) if labels.ndim == 1 else np.flatnonzero(labels.any(axis=0))
    if len(unknown := found[places[found] < 0]):
        name = own[unknown[0]]
        meant = did_you_mean(name, names, written=printable)
        raise DataError(f"{where}: class `{printable(name)}` is not among the {len(names)} classes {known}{meant}")
    if labels.ndim == 1:
        return labels if (places[found] == found).all() else np.where(labels < 0, -1, places[labels])
    several = np.zeros((len(labels), len(names)), dtype=np.uint8)
    several[:, places[found]] = labels[:, found]
    return several


def as_in_training(
    labels: Labels, own: tuple[str, ...], training: tuple[str, ...], where: str, *, by_number: bool
) -> Labels:
    """The labels of a test part whose classes are called `own`, numbered as the training part numbers its own.

    A part that has numbers without names agrees by number where `by_number`: names were listed, not found in labels.
    """
    if own == training or not own:
        return labels
    if are_numbers(own) == are_numbers(training):
        return renumbered(labels, own, training, where, "of the training part")
    if not by_number:
        raise DataError(f"{where}: one part has numbers for labels, the other one names; list the names of the classes")
    numbers = tuple(map(str, range(max(len(own), len(training)))))
    return renumbered(labels, numbers[: len(own)], numbers[: len(training)], where, "of the training part")


def check_labels(labels: NDArray[np.int64], num_classes: int, where: str) -> None:
    """Raises DataError unless all labels lie in 0 … num_classes-1 (or all are -1: unlabelled)."""
    if len(labels) == 0:
        raise DataError(f"{where}: no samples")
    low, high = int(labels.min()), int(labels.max())
    if low == high == -1:
        return
    if low < 0 or high >= num_classes:
        missing = int((labels < 0).sum())
        detail = f"{missing} samples have no label" if missing else f"label {high}, but {num_classes} classes"
        raise DataError(f"{where}: {detail}")


def fingerprint_files(files: Iterable[Path]) -> str:
    """A hash of the files' contents.

    Files beyond 64 MB count by their size and 64 blocks in its first part, as they alone did once, and as a whole in a
    second part: runs of then have the first part as their data's fingerprint (`is_fingerprint_of`).
    """
    digest, whole = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    has_large = False
    for file in files:
        size = file.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with file.open("rb") as stream:
            if size <= _HASHED_WHOLE:
                digest.update(hashlib.file_digest(stream, "blake2b").digest())
                continue
            for k in range(64):
                stream.seek((size - _BLOCK) * k // 63)
                digest.update(stream.read(_BLOCK))
        has_large = True
        whole.update(content_hash(file).encode())
    return f"{digest.hexdigest()}-{whole.hexdigest()}" if has_large else digest.hexdigest()


def is_fingerprint_of(found: str, fingerprint: str) -> bool:
    """Whether `found`, which may be of an earlier version, is that of the data with this fingerprint."""
    return found == fingerprint or fingerprint.startswith(f"{found}-")


def fingerprint_images(names: Sequence[str], folder: Path) -> str:
    """A hash of the names, sizes and contents of image files below `folder`.

    Names and sizes alone do not tell data sets apart whose images are numbered and uncompressed. Of more than 2,048
    files, the contents of as many are read, spread over all; of each its first and its last 64 KiB.
    """
    digest = hashlib.blake2b(digest_size=16)
    read = set(range(len(names)))
    if len(names) > _IMAGES_READ:
        read = {k * (len(names) - 1) // (_IMAGES_READ - 1) for k in range(_IMAGES_READ)}
    for number, name in enumerate(names):
        path = folder / name
        try:
            status = path.stat()
            size = status.st_size
            content = _ends(path, size) if number in read and stat.S_ISREG(status.st_mode) else b""
        except OSError:  # a link that leads nowhere: found damaged when it is read
            size, content = -1, b""
        digest.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
        digest.update(content)
    return digest.hexdigest()


def _ends(path: Path, size: int) -> bytes:
    with path.open("rb") as stream:
        head = stream.read(_BLOCK)
        stream.seek(max(_BLOCK, size - _BLOCK))
        return head + stream.read(_BLOCK)
