"""The positions of samples in tar shards of the WebDataset layout, for random access without unpacking.

A sample is a run of members with the same name up to the first dot: an image (`0001.jpg`) and, if it is labelled,
`0001.cls` (a class number or name; several, separated by spaces, for multi-label) or `0001.json` with a key `label`.
Nothing is extracted: members are read by offset. Members with `..` in the name and links are skipped and reported.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import fsspec  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from isoflop.data.cache import remove_abandoned
from isoflop.data.order import derive_key
from isoflop.data.records import Damage, Labels, no_labels, number_names
from isoflop.data.sources.folder import IMAGE_SUFFIXES
from isoflop.errors import DataError, stand_in
from isoflop.runs.files import replacing, sha256_of

# The members of a tar file: only names and places, by reading headers; several times as fast as `tarfile`.
#
# POSIX ustar and pax, and GNU long names (IEEE Std 1003.1, "pax interchange format"). Nothing is extracted.


_BLOCK = 512
_MOST_EXTENSION_BYTES = 1 << 20
_REGULAR = frozenset(b"0\x007")
_DIRECTORY, _GNU_NAME, _GNU_LINK, _PAX, _PAX_GLOBAL = b"5LKxg"


class TarMember(NamedTuple):
    """A member of a tar file."""

    name: str
    kind: str
    """ "file", "directory", "link" or "other" """
    offset: int
    """where its content starts, in bytes"""
    size: int


class DamagedTar(ValueError):
    """A file that is no tar, or a damaged or truncated one."""


def tar_members(file: int) -> Iterator[TarMember]:
    """The members of the tar file that is open as the descriptor `file`, in their order. Raises DamagedTar."""
    at, name, size = 0, "", -1  # a name and a size that an extension gave for the next member
    while True:
        header = os.pread(file, _BLOCK, at)
        if len(header) < _BLOCK:
            if at == 0 and (told := stand_in(header)):
                raise DamagedTar(told)
            raise DamagedTar("truncated: the end of the archive is missing")
        if header[0] == 0 and not any(header):
            return
        if at == 0 and not re.fullmatch(rb"[ 0-7]{0,7}[0-7][ \x00]{0,7}", header[148:156]):
            packed = ", but packed with gzip: unpack it" if header.startswith(b"\x1f\x8b") else ""
            raise DamagedTar(stand_in(header) or f"not a tar file{packed}")
        own_size, type_flag = _number(header[124:136]), header[156]
        if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * 32:
            raise DamagedTar(f"the header at byte {at} is damaged")
        content, at = at + _BLOCK, at + _BLOCK + -(-own_size // _BLOCK) * _BLOCK
        if type_flag in (_GNU_NAME, _PAX):
            extension = _read(file, content, own_size)
            if type_flag == _GNU_NAME:
                name = _text(extension)
            else:
                fields = _pax_fields(extension)
                name = fields.get("path", name)
                size = int(fields.get("size", size))
            continue
        if type_flag in (_GNU_LINK, _PAX_GLOBAL):
            continue
        if size >= 0:
            at, own_size = content + -(-size // _BLOCK) * _BLOCK, size
        yield TarMember(name or _name(header), _kind(type_flag, header), content, own_size)
        name, size = "", -1


def _read(file: int, offset: int, size: int) -> bytes:
    if size > _MOST_EXTENSION_BYTES:
        raise DamagedTar(f"an extended header of {size} bytes")
    content = os.pread(file, size, offset)
    if len(content) < size:
        raise DamagedTar("truncated: the end of the archive is missing")
    return content


def _number(field: bytes) -> int:
    """Octal digits, or (GNU) a binary number after a byte of 0x80."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    try:
        return int(field.strip(b" \x00") or b"0", 8)
    except ValueError:
        raise DamagedTar(f"{field!r} is not a number") from None


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\x00" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.partition(b"\x00")[0].decode(errors="surrogateescape")


def _kind(type_flag: int, header: bytes) -> str:
    if type_flag == _DIRECTORY or (type_flag in _REGULAR and _text(header[:100]).endswith("/")):
        return "directory"
    return "file" if type_flag in _REGULAR else "link" if type_flag in b"12" else "other"


def _pax_fields(content: bytes) -> dict[str, str]:
    """Records of the form "<length> <key>=<value>\\n", whose length counts all of it."""
    fields: dict[str, str] = {}
    while content.strip(b"\x00"):
        digits, _, _ = content.partition(b" ")
        if not digits.isdigit() or not len(digits) + 2 < int(digits) <= len(content):
            raise DamagedTar("a damaged extended header")
        record, content = content[len(digits) + 1 : int(digits) - 1], content[int(digits) :]
        key, _, value = record.partition(b"=")
        fields[key.decode(errors="replace")] = value.decode(errors="surrogateescape")
    if not fields.get("size", "0").isdecimal():
        raise DamagedTar("a damaged extended header")
    return fields


RECORD = np.dtype([("offset", "<i8"), ("size", "<i8")])
"""Where the encoded image of a sample lies in its shard, in bytes."""

_MOST_LABEL_BYTES = 1 << 20


class ShardIndex(NamedTuple):
    """The samples of one shard."""

    records: NDArray[np.void]
    """(n,) of `RECORD`"""
    labels: list[str | None]
    """the text of each sample's label"""
    problems: list[Damage]
    """what was left out; these samples have no number"""


class _SamplePlace:
    """The members of one sample, as they come."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.image: TarMember | None = None
        self.label: str | None = None
        self.problem: str | None = None


def index_tar(path: Path, *, name: str) -> ShardIndex:
    """The samples of the tar file at `path`, in its order; `name` is what to call the shard in messages."""
    places: list[tuple[int, int]] = []
    labels: list[str | None] = []
    problems: list[Damage] = []
    file = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(file).st_size
        for sample in _samples(file, name, problems):
            image = sample.image
            if image is not None and image.offset + image.size > size:
                sample.problem = "truncated: the shard ends within the image"
            if image is None or sample.problem:
                problems.append(Damage(-1, f"{name}/{sample.key}", sample.problem or "no image with this name"))
                continue
            places.append((image.offset, image.size))
            labels.append(sample.label)
    finally:
        os.close(file)
    return ShardIndex(np.asarray(places, dtype=RECORD), labels, problems)


def _samples(file: int, name: str, problems: list[Damage]) -> Iterator[_SamplePlace]:
    current: _SamplePlace | None = None
    seen: set[str] = set()
    try:
        for member in tar_members(file):
            if member.kind == "directory":
                continue
            folder, _, base = member.name.rpartition("/")
            if unusable := _why_unusable(member, folder):
                problems.append(Damage(-1, f"{name}/{member.name}", unusable))
                continue
            stem, _, extension = base.partition(".")
            key = f"{folder}/{stem}" if folder else stem
            if current is None or key != current.key:
                if current is not None:
                    yield current
                current = _SamplePlace(key)
                if key in seen:
                    current.problem = "the name occurs twice in this shard"
                seen.add(key)
            _add(current, member, extension.lower(), file)
    except DamagedTar as error:
        problems.append(Damage(-1, name, f"damaged tar: {error}"))
    if current is not None:
        yield current


def _why_unusable(member: TarMember, folder: str) -> str | None:
    if member.kind != "file":
        return "a link, not a file" if member.kind == "link" else "not a regular file"
    return "an unsafe name" if member.name.startswith("/") or ".." in folder.split("/") else None


def _add(sample: _SamplePlace, member: TarMember, extension: str, file: int) -> None:
    if f".{extension.rpartition('.')[2]}" in IMAGE_SUFFIXES:
        if sample.image is not None:
            sample.problem = "two images with this name"
        sample.image = member
    elif extension in ("cls", "json") and member.size <= _MOST_LABEL_BYTES:
        text = os.pread(file, member.size, member.offset).decode("utf-8", errors="replace")
        label = text.strip() if extension == "cls" else _label_of_json(text) or ""
        if label and not re.fullmatch(r"-\d+", label):  # -1 is said for "unlabelled"
            sample.label = label


def _label_of_json(text: str) -> str | None:
    try:
        content = json.loads(text)
    except ValueError:
        return None
    label = content.get("label") if isinstance(content, dict) else None
    return " ".join(map(str, label)) if isinstance(label, list) else None if label is None else str(label)


def resolve_labels(texts: list[str | None], class_names: tuple[str, ...], where: str) -> tuple[Labels, tuple[str, ...]]:
    """Labels and class names from the texts of labels: numbers, or names, of which several may be separated by spaces.

    `class_names` are those of the data set if it has a list. A missing text gives -1.
    """
    present = [text for text in texts if text is not None]
    if not present:
        return no_labels(len(texts)), ()
    known = {name: k for k, name in enumerate(class_names)}
    is_numeric = not any(text in known for text in present) and all(
        word.isdecimal() for text in present for word in text.split()
    )
    if not is_numeric and not class_names:
        known = {name: k for k, name in enumerate(sorted(set(present)))}
    is_several = is_numeric and any(" " in text for text in present)
    if not is_numeric:
        if unknown := sorted(set(present) - set(known)):
            raise DataError(f"{where}: label `{unknown[0]}` is not among the {len(known)} classes of classes.txt")
        return np.asarray([-1 if t is None else known[t] for t in texts], dtype=np.int64), tuple(known)
    numbers = [[] if text is None else [int(word) for word in text.split()] for text in texts]
    largest = max(n for row in numbers for n in row)
    names = class_names or number_names(largest, where)
    if largest >= len(names):
        raise DataError(f"{where}: label {largest}, but classes.txt has {len(names)} classes")
    if not is_several:
        return np.asarray([row[0] if row else -1 for row in numbers], dtype=np.int64), names
    several = np.zeros((len(texts), len(names)), dtype=np.uint8)
    for k, row in enumerate(numbers):
        several[k, row] = 1
    return several, names


# Remote shards kept on the local disk, as many as a limit allows; the least recently used go first.


_SIGNS = (  # as the file systems of fsspec call what changes with a file's content
    *("ETag", "etag", "e_tag", "generation", "VersionId", "version_id", "md5Hash", "content_md5", "Content-MD5"),
    *("LastModified", "last_modified", "Last-Modified", "mtime", "modified", "updated", "created", "ino"),
)


@contextlib.contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turns whatever goes wrong on the way to remote storage into one line."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # each kind of storage raises its own
        reason = (str(error).splitlines() or [""])[0]
        raise DataError(f"{url}: cannot be reached ({type(error).__name__}: {reason})") from error


class ShardCache:
    """Local copies of remote files in `directory`, of at most `limit` bytes together (but always at least one file).

    Several processes may share it: files appear in one step, and one that is deleted stays readable where it is open.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self.directory, self.limit = directory, limit

    def fetch(self, url: str, sign: str, sha256: str | None = None) -> Path:
        """The path of a local copy of `url` as it is while the storage says `sign` of it.

        Raises DataError if it cannot be fetched, or is not what `sha256` says.
        """
        local = self.directory / f"{derive_key(url, sign):016x}-{url.rsplit('/', 1)[-1]}"
        try:
            os.utime(local)
            return local
        except FileNotFoundError:
            pass
        with reaching(url):
            self.directory.mkdir(parents=True, exist_ok=True)
            remove_abandoned(self.directory)
            with replacing(local) as partial:
                protocol_file_system, path = fsspec.core.url_to_fs(url)
                protocol_file_system.get_file(path, str(partial))
                if sha256 not in (None, sha256_of(partial)):
                    raise DataError(f"{url}: not the shard that was indexed; make the index beside the shards again")
        self._evict(keep=local)
        return local

    def _evict(self, keep: Path) -> None:
        files = []
        for entry in os.scandir(self.directory):
            try:
                files.append((entry.stat().st_mtime, entry.stat().st_size, entry.path))
            except FileNotFoundError:  # another process was faster
                continue
        used = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if used <= self.limit:
                return
            if path != str(keep) and not os.path.basename(path).startswith("."):
                Path(path).unlink(missing_ok=True)
                used -= size


def remote_sign(url: str) -> tuple[int, str | None]:
    """The size of a remote file, and its ETag, version or time of change; None if the storage has none of them."""
    with reaching(url):
        system, path = fsspec.core.url_to_fs(url)
        info = system.info(path)
    said = [f"{name} {info[name]}" for name in _SIGNS if info.get(name)]
    return int(info.get("size") or 0), ", ".join(said) or None
