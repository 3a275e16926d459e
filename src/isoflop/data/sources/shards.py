"""`shards:PATH/{000..127}.tar`: tar files in WebDataset's layout, local or remote (`shards:s3://…`, `https://…`).

PATH may use braces ({000..127}, {a,b}) and *; or be a folder with `train*.tar` and `test*.tar` (or `val*.tar`), or with
`train/*.tar` and `test/*.tar`, as on the Hugging Face Hub. An index of offsets gives random access. It is built on
first use and stored in the cache, or next to the shards (`isoflop data index`) in a folder `isoflop-index` or
`isoflop-index-test`. `classes.txt` next to the shards has the names of the classes, one per line. Records are read by
`pread`: about 5 µs each from the page cache, from any number of processes.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import secrets
import shutil
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fsspec  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from isoflop.data.cache import content_hash, is_whole, kept, opened, publish, signature
from isoflop.data.order import derive_key
from isoflop.data.records import (
    ALLOWED_SHARE,
    TEST_NAMES,
    Damage,
    Labels,
    Note,
    Part,
    as_in_training,
    fingerprint_files,
    read_class_lines,
)
from isoflop.data.tar import RECORD, ShardCache, index_tar, reaching, remote_sign, resolve_labels
from isoflop.errors import DataError
from isoflop.runs.files import cache_directory, private_path

INDEX_FOLDER = "isoflop-index"
_CACHE_BYTES = 50 << 30
_OPEN_FILES = 64
_MOST_SHARDS = 1_000_000
_FORMAT = 2


class _State(NamedTuple):
    """What tells a shard from another one."""

    name: str
    size: int
    sign: str
    """changes with the content"""
    is_known: bool = True
    """whether `sign` is of the shard; else it is drawn, and nothing fits it"""


def _local_state(path: str) -> _State:
    try:
        size, *rest = signature(path)
    except OSError as error:
        raise DataError(f"shards: {error.filename}: {error.strerror}") from error
    return _State(os.path.basename(path), size, " ".join(map(str, rest)))


def _remote_state(url: str) -> _State:
    size, sign = remote_sign(url)
    return _State(os.path.basename(url), size, sign or secrets.token_hex(8), sign is not None)


class _Index:
    """Where the samples of all shards lie, their labels, and of what shards they are; pickled by its place on disk."""

    FILES = ("records.npy", "labels.npy", "shards.json")

    def __init__(self, records: NDArray[Any], labels: Labels, description: dict[str, Any]) -> None:
        self.records, self.labels, self.description = records, labels, description
        self._folder: Path | None = None

    @classmethod
    def read(cls, folder: Path) -> _Index:
        records, labels = (np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in cls.FILES[:2])
        index = cls(records, labels, json.loads((folder / cls.FILES[2]).read_text()))
        if records.dtype != RECORD or len(records) != len(labels):
            raise ValueError(folder)
        index._folder = folder
        return index

    def write(self, folder: Path) -> None:
        np.save(folder / self.FILES[0], self.records)
        np.save(folder / self.FILES[1], self.labels)
        (folder / self.FILES[2]).write_text(json.dumps(self.description))

    def __reduce__(self) -> tuple[Any, ...]:
        if self._folder is not None:
            return _reopened, (self._folder, self.description["sha256"])
        return _Index, (self.records, self.labels, self.description)


def _reopened(folder: Path, sha256: list[str]) -> _Index:
    index = opened(folder, _Index.read)
    if index is None or index.description["sha256"] != sha256:
        raise DataError(f"{folder}: the index of the shards was replaced while it was in use; start again")
    return index


class ShardRecords:
    """The samples of a list of tar shards, one shard after the other."""

    notes: tuple[Note, ...] = ()

    def __init__(
        self,
        pattern: str,
        part: Part,
        *,
        cache_bytes: int = _CACHE_BYTES,
        allowed_share: float = ALLOWED_SHARE,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.uri = f"shards:{pattern}"
        if cache_bytes <= 0:
            raise DataError(f"{self.uri}: a cache of shards needs some space, not cache_gb={cache_bytes / 2**30:g}")
        self.is_remote = "://" in pattern
        self._urls = list_shards(pattern, part)
        self._index_name = INDEX_FOLDER if part == "train" else f"{INDEX_FOLDER}-{part}"
        self._cache = ShardCache(cache_directory() / "shards", cache_bytes)
        self._listed_names = self._read_class_names()
        self._states = [_remote_state(url) if self.is_remote else _local_state(url) for url in self._urls]
        self._index = self._find_index() or self._make_index(progress)
        description = self._index.description
        self._sha256: list[str] = description["sha256"]
        self.class_names = self._own_names = tuple(description["class_names"])
        self._by_number = bool(self.class_names and self._listed_names)
        if part == "test" and self.class_names and (training := self._training(pattern, cache_bytes)):
            self._by_number |= training._by_number
            self.class_names = training.class_names
        self._map_index()
        self.shard_sizes: NDArray[np.int64] | None = np.asarray(description["counts"], dtype=np.int64)
        self.fingerprint = str(description["fingerprint"])
        if self._own_names != self.class_names[: len(self._own_names)]:
            self.fingerprint = f"{derive_key(self.fingerprint, *self.class_names):016x}"  # of other labels
        self.problems = [Damage(*row) for row in description["problems"]]
        self._ends: list[int] = np.cumsum(self.shard_sizes).tolist()
        if len(self.problems) > allowed_share * (len(self) + len(self.problems)):
            first = self.problems[0]
            raise DataError(
                f"{self.uri}: {len(self.problems)} samples cannot be used, more than the allowed {allowed_share:.1%}; "
                f"the first: {first.line}; `isoflop data check` lists them all"
            )

    def __len__(self) -> int:
        return len(self._places)

    @property
    def num_shards(self) -> int:
        """The number of tar files."""
        return len(self._urls)

    def _map_index(self) -> None:
        self._files: dict[int, int] = {}
        # A plain array of (offset, size): memory-mapped still, but indexed three times as fast as a memmap of records.
        self._places: NDArray[np.int64] = np.asarray(self._index.records).view(np.int64).reshape(-1, 2)
        labels, where, by_number = self._index.labels, self.uri, self._by_number
        self.labels = as_in_training(labels, self._own_names, self.class_names, where, by_number=by_number)

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: not the open files, and the index by its place."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_files", "_places", "labels")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map_index()

    def __del__(self) -> None:
        for file in getattr(self, "_files", {}).values():
            os.close(file)

    def read(self, index: int) -> bytes:
        """See `Records.read`."""
        offset, size = self._places[index].tolist()
        encoded = os.pread(self._open(bisect_right(self._ends, index)), size, offset)
        if len(encoded) != size:  # what was cut short before it was indexed is not among the samples
            raise OSError(errno.ESTALE, "the shard has become shorter since it was indexed")
        return encoded

    def tail(self, index: int, length: int) -> tuple[int, bytes]:
        """The size of one encoded image in bytes, and the last `length` of them."""
        offset, size = self._places[index].tolist()
        length = min(length, size)
        return size, os.pread(self._open(bisect_right(self._ends, index)), length, offset + size - length)

    def name(self, index: int) -> str:
        """See `Records.name`: the shard and the name of the member, read from its header."""
        shard = bisect_right(self._ends, index)
        at = int(self._places[index, 0])
        try:
            block = os.pread(self._open(shard), 512, at - 512)
        except (OSError, DataError):
            return f"{self._urls[shard]} at byte {at}"
        return f"{self._urls[shard]}/{block[:100].rstrip(bytes(1)).decode(errors='replace')}"

    def write_index(self) -> Path:
        """Writes the index beside the (local) shards, from where later openings take it; the folder it is in."""
        if self.is_remote:
            raise DataError(f"{self.uri} is remote: index a local copy and upload its folder {self._index_name}, too")
        folder = Path(self._urls[0]).parent / self._index_name
        if opened(folder, self._load) is not None:
            return folder
        partial = private_path(folder)
        try:
            partial.mkdir()
            self._index.write(partial)
            publish(partial, folder, self._load)
        except OSError as error:
            raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder

    def _open(self, shard: int) -> int:
        file = self._files.get(shard)
        if file is None:
            while len(self._files) >= _OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            file = self._files[shard] = os.open(self._local(shard, self._sha256[shard]), os.O_RDONLY)
        return file

    def _local(self, shard: int, sha256: str | None = None) -> Path:
        url = self._urls[shard]
        return self._cache.fetch(url, self._states[shard].sign, sha256) if self.is_remote else Path(url)

    def _training(self, pattern: str, cache_bytes: int) -> ShardRecords | None:
        """The training part, whose classes number those of the test part; None where it is not there, has no labels,
        or the same list of classes lies beside both."""
        try:
            urls = list_shards(pattern, "train")
        except DataError:
            return None
        if self._by_number and os.path.dirname(urls[0]) == os.path.dirname(self._urls[0]):
            return None
        records = ShardRecords(pattern, "train", cache_bytes=cache_bytes, allowed_share=1.0)
        return records if records.class_names else None

    def _find_index(self) -> _Index | None:
        """An index that fits the shards: beside them, or in the cache."""
        beside = os.path.join(os.path.dirname(self._urls[0]), self._index_name)
        if self.is_remote:
            return self._download_index(beside) or opened(self._index_cache(), self._load)
        return opened(Path(beside), self._load) or opened(self._index_cache(), self._load)

    def _read_index(self, folder: Path) -> _Index | None:
        """The index in a folder, if it is of shards with these names and sizes and of these names of classes."""
        index = _Index.read(folder)
        said = index.description
        if said["format"] != _FORMAT or tuple(said["listed"]) != self._listed_names:
            return None
        sizes = [(name, size) for name, size, _ in said["states"]]
        return index if sizes == [(state.name, state.size) for state in self._states] else None

    def _load(self, folder: Path) -> _Index | None:
        """The index in a folder, if it is of shards with this content, too."""
        if (index := self._read_index(folder)) is None:
            return None
        said = index.description
        for number, (_, _, sign) in enumerate(said["states"]):
            if sign != self._states[number].sign and (
                self.is_remote or content_hash(Path(self._urls[number])) != said["sha256"][number]
            ):
                return None
        return index

    def _make_index(self, progress: Callable[[int, int], None] | None) -> _Index:
        index = self._build_index(progress)
        if self.is_remote and not all(state.is_known for state in self._states):
            warnings.warn(
                f"{self.uri}: the storage does not report changes of shards, so no index is stored", stacklevel=3
            )
            return index
        return kept(self._index_cache(), self._load, index.write) or index

    def _index_cache(self) -> Path:
        places = self._urls if self.is_remote else [os.path.abspath(url) for url in self._urls]
        return cache_directory() / "indexes" / f"{derive_key(*places):016x}"

    def _download_index(self, url: str) -> _Index | None:
        """The index beside remote shards, if there is one; whether a shard is what it says is seen on fetching."""
        try:
            system, path = fsspec.core.url_to_fs(url)
            text = system.cat_file(f"{path}/shards.json")
        except Exception:  # each kind of storage raises its own; without an index, one is made
            return None

        def download(folder: Path) -> None:
            for name in ("manifest.json", *_Index.FILES):
                system.get_file(f"{path}/{name}", str(folder / name))
            if not is_whole(folder):
                raise DataError(f"{url}: damaged; make it again")

        entry = cache_directory() / "indexes" / f"{derive_key(url, text.hex()):016x}"
        try:
            index = kept(entry, self._read_index, download)
        except Exception as error:
            warnings.warn(f"{url}: an index that cannot be used ({error}), so one is made", stacklevel=4)
            return None
        if index is None:
            warnings.warn(f"{url}: the index is of other shards or of an earlier version, so one is made", stacklevel=4)
        return index

    def _build_index(self, progress: Callable[[int, int], None] | None) -> _Index:
        """Scans all shards."""
        records, texts, problems, counts, hashes = [], [], _duplicate_names(self._urls), [], []

        def indexed() -> Iterator[Path]:
            for number, url in enumerate(self._urls):
                path = self._local(number)
                shard = index_tar(path, name=url)
                records.append(shard.records)
                texts.extend(shard.labels)
                problems.extend(shard.problems)
                counts.append(len(shard.records))
                hashes.append(content_hash(path))
                if not self.is_remote and _local_state(url) != self._states[number]:
                    raise DataError(f"{url}: changes while it is indexed; start again when it is complete")
                if progress:
                    progress(number + 1, len(self._urls))
                yield path

        fingerprint = fingerprint_files(indexed())
        labels, class_names = resolve_labels(texts, self._listed_names, self.uri)
        together = np.concatenate(records) if records else np.empty(0, dtype=RECORD)
        if labels.ndim == 1 and class_names and (labels < 0).any():
            together, labels, counts = self._without_unlabelled(together, labels, counts, problems)
        if not len(together):
            reason = f" ({problems[0].line})" if problems else ""
            raise DataError(f"{self.uri}: no images in these shards{reason}")
        description = {
            "format": _FORMAT,
            "states": [[state.name, state.size, state.sign] for state in self._states],
            "sha256": hashes,
            "listed": self._listed_names,
            "fingerprint": fingerprint,
            "class_names": class_names,
            "counts": counts,
            "problems": problems,
        }
        return _Index(together, labels, description)

    def _without_unlabelled(
        self, records: NDArray[Any], labels: Labels, counts: list[int], problems: list[Damage]
    ) -> tuple[NDArray[Any], Labels, list[int]]:
        """The samples that have a label; the others are reported."""
        has_label = labels >= 0
        shard = np.repeat(np.arange(len(counts)), counts)
        problems += [
            Damage(-1, f"{self._urls[shard[k]]} at byte {records['offset'][k]}", "the label is missing")
            for k in np.flatnonzero(~has_label)
        ]
        kept = np.bincount(shard[has_label], minlength=len(counts)).tolist()
        return records[has_label], labels[has_label], kept

    def _read_class_names(self) -> tuple[str, ...]:
        url = os.path.join(os.path.dirname(self._urls[0]), "classes.txt")
        try:
            with fsspec.open(url, "rt", encoding="utf-8") as file:
                return read_class_lines(file.read(), url)
        except OSError:
            return ()
        except UnicodeDecodeError as error:
            raise DataError(f"{url}: not UTF-8 text ({error})") from error


def list_shards(pattern: str, part: Part) -> list[str]:
    """The paths or URLs of the shards that `pattern` names, sorted. Raises DataError if there is none."""
    remote = "://" in pattern
    with reaching(pattern):
        system, _ = fsspec.core.url_to_fs(pattern)
    is_folder = not pattern.endswith(".tar") and ("*" not in pattern or system.isdir(pattern))
    if part == "test" and not is_folder:
        raise DataError(
            f"shards:{pattern} names its shards, and none as test part; name their folder instead", missing_part=True
        )
    names = ("train",) if part == "train" else TEST_NAMES
    folder = pattern.rstrip("/")
    if is_folder:
        globs = [[f"{_as_name(folder, '*?[')}/{name}{rest}"] for name in names for rest in ("*.tar", "/*.tar")]
    else:
        globs = [[_as_name(url, "?[") for url in _expand(pattern)]]
    for tried in globs:
        found = [re.sub(r"\[(.)\]", r"\1", url) for url in tried]
        if any("*" in url for url in tried):
            with reaching(pattern):
                matched = [path for url in tried for path in sorted(system.glob(url))]
            found = [system.unstrip_protocol(path) for path in matched] if remote else matched
        if found:
            return found
    wanted = " or ".join(f"{name}*.tar" for name in names) if is_folder else "file"
    raise DataError(f"shards:{pattern}: no {wanted} there", missing_part=is_folder)


def _as_name(path: str, special: str) -> str:
    """`path` for a glob in which the `special` characters stand for themselves."""
    return re.sub(f"[{re.escape(special)}]", r"[\g<0>]", path)


def _expand(pattern: str) -> Iterator[str]:
    """Braces as in a shell: {000..127} and {a,b}; others are parts of names."""
    pieces = re.split(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}", pattern)
    choices: list[list[str]] = []
    for k, piece in enumerate(pieces):
        if k % 2 == 0:
            choices.append([piece])
        elif match := re.fullmatch(r"(\d+)\.\.(\d+)", piece):
            low, high = match.groups()
            if int(high) - int(low) >= _MOST_SHARDS:
                raise DataError(f"shards:{pattern}: {{{piece}}} are more than {_MOST_SHARDS:,} shards")
            choices.append([str(n).zfill(len(low)) for n in range(int(low), int(high) + 1)])
        else:
            choices.append(piece.split(","))
    return ("".join(choice) for choice in itertools.product(*choices))


def _duplicate_names(urls: list[str]) -> list[Damage]:
    seen: set[str] = set()
    problems = []
    for url in urls:
        name = os.path.basename(url)
        if name in seen:
            problems.append(Damage(-1, url, "another shard has the same name"))
        seen.add(name)
    return problems
