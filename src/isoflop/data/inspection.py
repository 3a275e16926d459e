"""`isoflop data check`: decodes every image of a data set and reports problems before a run."""

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isoflop.config.load import nearest_path
from isoflop.data.decode import SUFFIXES, DamagedImage, Header, find_damage, read_header
from isoflop.data.dense import Objects
from isoflop.data.dense.objects import IGNORED, DenseRecords
from isoflop.data.dense.source import picture_with_truth
from isoflop.data.duplicates import Digests, alike, digests_of, pixel_digests
from isoflop.data.opening import DENSE, GENERATED, open_dense_records, open_records, parse_uri
from isoflop.data.records import ALLOWED_SHARE, Damage, Note, Part, Records, read_surely
from isoflop.data.sources.shards import ShardRecords
from isoflop.errors import DataError
from isoflop.escapes import printable

Progress = Callable[[int, int], None]
"""Called with what is done and what there is"""

_CHUNK = 256  # records a worker checks at a time
_MOST_ALIKE = 3  # examples of near-duplicates, which are to be looked at


@dataclass(frozen=True)
class CheckReport:
    """What a data set holds, and what is wrong with it."""

    uri: str
    part: Part
    images: int
    classes: dict[str, int]
    """images per class"""
    formats: dict[str, int]
    widths: tuple[int, int, int]
    """smallest, median and largest, in pixels"""
    heights: tuple[int, int, int]
    megabytes: float
    broken: list[Damage] = field(default_factory=list)
    """what a run would replace, or leave out"""
    suspicious: list[Damage] = field(default_factory=list)
    """what a run would use, but somebody should look at"""
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    """an image, and the first one with the same pixels; a run holds them out together, or not"""
    conflicts: list[tuple[str, str]] = field(default_factory=list)
    """the same, where the two have other labels"""
    shared: list[tuple[str, str]] = field(default_factory=list)
    """an image, and one of the other part with the same pixels"""
    alike: list[tuple[str, str]] = field(default_factory=list)
    """an image, and one before it that looks the same: encoded, resized or slightly cropped anew"""
    alike_shared: list[tuple[str, str]] = field(default_factory=list)
    """the same, of the other part"""
    compared: dict[str, str] = field(default_factory=dict)
    """by `alike` or `alike_shared`: how far they were looked for, where not everywhere"""
    notes: list[Note] = field(default_factory=list)
    """what is not used, and what was guessed"""

    @property
    def is_usable(self) -> bool:
        """Whether a run would accept this data: at most 0.1 % broken."""
        return len(self.broken) <= ALLOWED_SHARE * (self.images + sum(d.sample < 0 for d in self.broken))

    def lines(self, most: int = 20) -> list[str]:
        """The report as text, with at most `most` findings of each kind."""
        counts = sorted(self.classes.values())
        sizes = " × ".join(
            f"{low}–{high} (median {middle})" if low < high else f"{low}"
            for low, middle, high in (self.widths, self.heights)
        )
        lines = [
            f"{self.uri} ({self.part}): {self.images:,} images, {self.megabytes:,.1f} MB, {sizes} px",
            "formats: " + ", ".join(f"{name} {count:,}" for name, count in sorted(self.formats.items())),
            f"classes: {len(counts)}, {counts[0]:,} to {counts[-1]:,} images each" if counts else "classes: none",
        ]
        for title, found in (("broken", self.broken), ("suspicious", self.suspicious)):
            lines += finding_lines(title, found, most)
        other = "test" if self.part == "train" else "training"
        for title, pairs in (
            ("duplicates", self.duplicates),
            ("equal images with other labels", self.conflicts),
            (f"images that the {other} part has, too", self.shared),
        ):
            if pairs or title == "duplicates":
                told = [Damage(-1, name, f"the same image as {printable(first)}") for name, first in pairs]
                lines += finding_lines(title, told, most)
        for title, name in (
            ("near-duplicates", "alike"),
            (f"near-duplicates of images of the {other} part", "alike_shared"),
        ):
            if pairs := getattr(self, name):
                told = [Damage(-1, one, f"looks like {printable(first)}") for one, first in pairs]
                how = f" ({self.compared[name]})" if name in self.compared else ""
                lines += finding_lines(title + how, told, min(most, _MOST_ALIKE))
        lines += [note.line(most) for note in self.notes]
        verdict = "usable" if self.is_usable else f"a run would stop: more than {ALLOWED_SHARE:.1%} is broken"
        return [*lines, f"verdict: {verdict}"]


def finding_lines(title: str, found: list[Damage], most: int = 20) -> list[str]:
    """How many there are, then a line for each of the first."""
    lines = [f"{title}: {len(found):,}", *(f"  {damage.line}" for damage in found[:most])]
    return [*lines, f"  … and {len(found) - most:,} more"] if len(found) > most else lines


class _Finding(NamedTuple):
    """What one record showed."""

    sample: int
    size: int
    digest: int
    """of its pixels (see `duplicates`); 0 where it cannot be read"""
    look: int
    """its perceptual hash; 0 where it has none"""
    header: Header | None
    broken: str
    suspicious: str
    classes: tuple[int, ...] = ()
    """of its objects or pixels"""


def check(uri: str, *, part: Part = "train", workers: int = 1, progress: Progress | None = None) -> CheckReport:
    """Reads and decodes every image of one part of the data at `uri` (or a path, see `guess_uri`).

    With `workers` > 1 processes share the work. Raises DataError if the data cannot be opened at all.
    """
    uri = guess_uri(uri)
    left_out: list[Damage] = []
    records = _open_tolerant(uri, part, left_out)
    starts = range(0, len(records), _CHUNK)
    findings: list[_Finding] = []
    if workers > 1:
        with ProcessPoolExecutor(workers) as pool:
            jobs = [pool.submit(_check_chunk, uri, part, start) for start in starts]
            for job in jobs:
                findings += job.result()
                if progress:
                    progress(len(findings), len(records))
    else:
        for start in starts:
            findings += [_examine(records, k) for k in range(start, min(start + _CHUNK, len(records)))]
            if progress:
                progress(len(findings), len(records))
    return _summarise(uri, part, records, findings, left_out)


def guess_uri(text: str) -> str:
    """`text` if it is a URI; for a path, the URI that its content suggests: shards, parquet, table or folder."""
    path = Path(text).expanduser()
    if not text or not path.exists():
        if not re.match(r"\w+[:?]", text) and text not in GENERATED:
            raise DataError(f"{text}: no such file or folder{nearest_path(path)}")
        return text
    if path.is_file():
        kinds = {".tar": "shards", ".parquet": "parquet", ".csv": "table", ".tsv": "table"}
        if path.suffix.lower() not in kinds:
            raise DataError(f"{text}: neither a folder nor a .tar, .parquet or .csv file")
        return f"{kinds[path.suffix.lower()]}:{path}"
    if any(path.glob("*.tar")):
        has_parts = any(path.glob("train*.tar"))
        return f"shards:{path}" if has_parts else f"shards:{path}/*.tar"
    return f"parquet:{path}" if any(path.rglob("*.parquet")) else f"folder:{path}"


def _open_tolerant(uri: str, part: Part, left_out: list[Damage]) -> Records | DenseRecords:
    """The records, even where so much is broken that a run would refuse them."""
    kind, path, options = parse_uri(uri)
    if kind in DENSE:
        return open_dense_records(uri, part)
    if kind != "shards" or "test" in options:
        return open_records(uri, part)
    records = ShardRecords(path, part, allowed_share=1.0)
    left_out += records.problems
    return records


def _check_chunk(uri: str, part: Part, start: int) -> list[_Finding]:
    records = _open_tolerant(uri, part, [])
    return [_examine(records, k) for k in range(start, min(start + _CHUNK, len(records)))]


def _examine(records: Records | DenseRecords, index: int) -> _Finding:
    """Reads and decodes one record as a whole, and strictly."""
    try:
        encoded = read_surely(records, index)
    except DamagedImage as error:
        return _Finding(index, 0, 0, 0, None, f"unreadable: {error}", "")
    digest, look = pixel_digests(encoded)
    header, broken, suspicious = None, "", ""
    classes: tuple[int, ...] = ()
    try:
        header = read_header(encoded)
        suspicious = find_damage(encoded, header) or _wrong_suffix(records.name(index), header.format)
    except DamagedImage as error:
        broken = str(error)
    if not broken and not hasattr(records, "labels"):
        try:
            truth = picture_with_truth(records, index)[1]
            numbers = np.unique(truth.classes if isinstance(truth, Objects) else truth[truth != IGNORED])
            classes = tuple(map(int, numbers))
        except DamagedImage as error:
            broken = str(error).removeprefix(f"{records.name(index)}: ")
    return _Finding(index, len(encoded), digest, look, header, broken, suspicious, classes)


def _wrong_suffix(name: str, image_format: str) -> str:
    suffix = os.path.splitext(name)[1].lower()
    told = next((known for known, suffixes in SUFFIXES.items() if suffix in suffixes), None)
    is_wrong = told is not None and image_format in SUFFIXES and told != image_format
    return f"called {suffix}, but it is {image_format}" if is_wrong else ""


def _summarise(
    uri: str, part: Part, records: Records | DenseRecords, findings: list[_Finding], left_out: list[Damage]
) -> CheckReport:
    counts: Sequence[int] | NDArray[Any]
    labels: NDArray[Any] | None = None
    if hasattr(records, "labels"):
        labels = np.asarray(records.labels)
        is_single, classes = labels.ndim == 1, len(records.class_names)
        counts = np.bincount(labels[labels >= 0], minlength=classes) if is_single else labels.sum(axis=0)
    else:
        seen = Counter(number for finding in findings for number in finding.classes)
        counts = [seen[number] for number in range(len(records.class_names))]
    headers = [f.header for f in findings if f.header is not None]
    first_with: dict[int, int] = {}
    duplicates: list[tuple[str, str]] = []
    conflicts: list[tuple[str, str]] = []
    for finding in findings:
        first = first_with.setdefault(finding.digest, finding.sample)
        if finding.digest and first != finding.sample:
            same = labels is None or np.array_equal(labels[first], labels[finding.sample])
            (duplicates if same else conflicts).append((records.name(finding.sample), records.name(first)))
    others = _other_records(uri, part)
    digests = _first_digests(others)
    shared = [(records.name(k), others.name(digests[d])) for d, k in first_with.items() if others and d in digests]
    return CheckReport(
        uri=uri,
        part=part,
        images=len(records),
        classes={name: int(count) for name, count in zip(records.class_names, counts, strict=True)},
        formats=dict(Counter(header.format for header in headers)),
        widths=_spread([header.width for header in headers]),
        heights=_spread([header.height for header in headers]),
        megabytes=sum(finding.size for finding in findings) / 1e6,
        broken=left_out + [Damage(f.sample, records.name(f.sample), f.broken) for f in findings if f.broken],
        suspicious=[Damage(f.sample, records.name(f.sample), f.suspicious) for f in findings if f.suspicious],
        duplicates=duplicates,
        conflicts=conflicts,
        shared=shared,
        **_near(records, findings, first_with, others, digests),
        notes=list(records.notes),
    )


def _other_records(uri: str, part: Part) -> Records | DenseRecords | None:
    """Those of the other part; None where there is none, or reading it would take all of remote shards."""
    try:
        records = _open_tolerant(uri, "test" if part == "train" else "train", [])
    except DataError:
        return None
    return None if getattr(records, "is_remote", False) else records


def _first_digests(records: Records | DenseRecords | None) -> dict[int, int]:
    """The number of an image by its digest."""
    digests = [] if records is None else digests_of(records).tolist()
    return {digest: k for k, digest in enumerate(digests) if digest}


def _near(
    records: Records | DenseRecords,
    findings: list[_Finding],
    first_with: dict[int, int],
    others: Records | DenseRecords | None,
    digests: dict[int, int],
) -> dict[str, Any]:
    """`alike`, `alike_shared` and `compared` of a report, without the images that equal each other."""
    looks: Digests = np.array([finding.look for finding in findings], dtype=np.uint64)
    numbers = np.array(sorted(first_with.values()), dtype=np.int64)
    found = {"alike": (alike(records, looks, numbers), records)}
    if others is not None:
        own = np.array(sorted(k for digest, k in first_with.items() if digest not in digests), dtype=np.int64)
        theirs = np.array(sorted(digests.values()), dtype=np.int64)
        found["alike_shared"] = alike(records, looks, own, others, digests_of(others, "look"), theirs), others
    near: dict[str, Any] = {"compared": {}}
    for name, (result, other) in found.items():
        near[name] = [(records.name(one), other.name(like)) for one, like in result.pairs.tolist()]
        if result.told:
            near["compared"][name] = result.told
    return near


def _spread(values: list[int]) -> tuple[int, int, int]:
    return (min(values), int(np.median(values)), max(values)) if values else (0, 0, 0)
