"""Tar shards: random access without unpacking, local and remote, and nothing unsafe or damaged passes unseen."""

import gzip
import io
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest

from isoflop.data import batches, open_source
from isoflop.data.sources.shards import ShardRecords, list_shards
from isoflop.data.tar import ShardCache
from isoflop.errors import DataError
from tests.data.pictures import encoded, picture
from tests.processes import at_once, failures

MakeTar = Callable[[Path, list[tuple[str, bytes]]], Path]


def members(first: int, count: int, classes: int = 3) -> list[tuple[str, bytes]]:
    """`count` samples: an image and its class."""
    return [
        member
        for k in range(first, first + count)
        for member in ((f"{k:05d}.jpg", encoded(picture(k))), (f"{k:05d}.cls", str(k % classes).encode()))
    ]


@pytest.fixture
def shards(tmp_path: Path, make_tar: MakeTar) -> Path:
    """Four shards of 30, 20, 25 and 5 samples, and a test shard of 10."""
    first = 0
    for number, count in enumerate((30, 20, 25, 5)):
        make_tar(tmp_path / "shards" / f"train-{number:03d}.tar", members(first, count))
        first += count
    make_tar(tmp_path / "shards" / "test-000.tar", members(1000, 10))
    return tmp_path / "shards"


def test_samples_are_read_in_any_order_as_tarfile_reads_them(shards: Path) -> None:
    records = ShardRecords(str(shards / "train-{000..003}.tar"), "train")
    assert len(records) == 80
    assert records.shard_sizes is not None
    assert records.shard_sizes.tolist() == [30, 20, 25, 5]
    expected = []
    for path in sorted(shards.glob("train*.tar")):
        with tarfile.open(path) as tar:
            expected += [tar.extractfile(m).read() for m in tar if m.name.endswith(".jpg")]  # type: ignore[union-attr]
    for k in np.random.default_rng(0).permutation(80):
        assert records.read(int(k)) == expected[k]
        assert records.labels[k] == k % 3
    assert records.name(31).endswith("train-001.tar/00031.jpg")


def test_a_folder_of_shards_has_parts(shards: Path) -> None:
    assert len(open_source(f"shards:{shards}", split="test", image_size=16)) == 10
    train = open_source(f"shards:{shards}", split="train", image_size=16)
    assert len(train) + len(open_source(f"shards:{shards}", split="heldout", image_size=16)) == 80


def test_the_index_is_built_once_and_again_when_a_shard_changes(shards: Path, make_tar: MakeTar) -> None:
    built: list[int] = []
    pattern = str(shards / "train-*.tar")
    ShardRecords(pattern, "train", progress=lambda done, total: built.append(done))
    assert built == [1, 2, 3, 4]
    first = ShardRecords(pattern, "train", progress=lambda done, total: built.append(done))
    assert built == [1, 2, 3, 4]
    make_tar(shards / "train-003.tar", members(500, 6))
    again = ShardRecords(pattern, "train", progress=lambda done, total: built.append(done))
    assert len(again) == 81
    assert again.fingerprint != first.fingerprint


def replace_labels(path: Path) -> None:
    """The same shard with other labels: of the same size, and older."""
    content, times = path.read_bytes(), path.stat()
    with tarfile.open(path) as tar:
        for member in tar:
            if member.name.endswith(".cls"):
                at = member.offset_data
                content = content[:at] + bytes([ord("0") + (content[at] - ord("0") + 1) % 3]) + content[at + 1 :]
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns - 10**12))


@pytest.mark.parametrize("is_beside", [False, True])
def test_a_shard_of_the_same_size_and_an_older_time_is_another_shard(shards: Path, is_beside: bool) -> None:
    pattern = str(shards / "train-*.tar")
    before = ShardRecords(pattern, "train")
    if is_beside:
        before.write_index()
    replace_labels(shards / "train-001.tar")
    after = ShardRecords(pattern, "train")
    expected = [(k + (30 <= k < 50)) % 3 for k in range(80)]
    assert after.labels.tolist() == expected
    assert after.fingerprint != before.fingerprint


def test_an_index_beside_shards_goes_with_them(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy has other times and inodes; its content decides."""
    first = ShardRecords(str(shards / "train-*.tar"), "train")
    first.write_index()
    shutil.copytree(shards, tmp_path / "copy")
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "another cache"))
    built: list[int] = []
    pattern = str(tmp_path / "copy" / "train-*.tar")
    copy = ShardRecords(pattern, "train", progress=lambda done, total: built.append(done))
    assert not built
    assert copy.fingerprint == first.fingerprint
    replace_labels(tmp_path / "copy" / "train-001.tar")
    assert ShardRecords(pattern, "train").fingerprint != first.fingerprint


def test_another_list_of_classes_is_taken_up(shards: Path) -> None:
    (shards / "classes.txt").write_text("a\nb\nc\n")
    assert ShardRecords(str(shards / "train-*.tar"), "train").class_names == ("a", "b", "c")
    (shards / "classes.txt").write_text("x\ny\nz\n")
    assert ShardRecords(str(shards / "train-*.tar"), "train").class_names == ("x", "y", "z")


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b'{"format": 2}', b"\xff"])
@pytest.mark.parametrize("name", ["shards.json", "records.npy", "labels.npy", "manifest.json"])
def test_a_damaged_index_is_made_again(shards: Path, name: str, damage: bytes) -> None:
    records = ShardRecords(str(shards / "train-*.tar"), "train")
    folder = records._index._folder
    assert folder is not None
    (folder / name).write_bytes(damage)
    again = ShardRecords(str(shards / "train-*.tar"), "train")
    assert again.labels.tolist() == [k % 3 for k in range(80)]
    assert again.fingerprint == records.fingerprint


def test_eight_processes_index_shards_at_once(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look() -> tuple[list[int], str, bytes]:
        records = ShardRecords(str(shards / "train-*.tar"), "train")
        return records.labels.tolist(), records.fingerprint, records.read(79)

    for trial in range(5):
        monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / f"cache {trial}"))
        found = at_once(*[look] * 8)
        assert not failures(found)
        assert found == [look()] * 8
        assert len(list((tmp_path / f"cache {trial}" / "indexes").iterdir())) == 1


def test_a_shard_cut_short_while_it_is_read_is_no_damaged_image(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isoflop.data.records._WAITS", ())
    source = open_source(f"shards:{shards}?decode=each", split="train", image_size=16, heldout=0)
    os.truncate(shards / "train-003.tar", 1024)
    with pytest.raises(DataError, match="shorter since it was indexed; the storage cannot be read"):
        source.read(np.arange(80))


def test_braces_and_stars_name_shards(shards: Path) -> None:
    assert [Path(p).name for p in list_shards(str(shards / "train-{001..002}.tar"), "train")] == [
        "train-001.tar",
        "train-002.tar",
    ]
    assert len(list_shards(str(shards / "{train,test}-000.tar"), "train")) == 2
    assert len(list_shards(str(shards / "*.tar"), "train")) == 5
    with pytest.raises(DataError, match=r"no train\*\.tar"):
        list_shards(str(shards.parent), "train")


@pytest.mark.parametrize("name", ["my[1]", "a{v2}", "b{1,2}", "x*y", "[!a]", " sp ace", "q%20#"])
def test_folders_of_shards_may_have_any_name(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for shard in ("train-000.tar", "train-001.tar", "test-000.tar"):
        (folder / shard).touch()
    expected = [str(folder / "train-000.tar"), str(folder / "train-001.tar")]
    assert list_shards(str(folder), "train") == expected
    if name not in ("b{1,2}", "x*y"):  # which mean something in a pattern
        for pattern in ("train-{000..001}.tar", "train*.tar"):
            assert list_shards(str(folder / pattern), "train") == expected


def test_records_travel_to_other_processes(shards: Path) -> None:
    records = ShardRecords(str(shards / "train-*.tar"), "train")
    expected = records.read(40)
    copy = pickle.loads(pickle.dumps(records))
    assert copy.read(40) == expected
    assert len(pickle.dumps(records)) < 20_000


@pytest.mark.parametrize(
    ("label", "expected"),
    [("cls", [0, 1, 2, 0]), ("json", [0, 1, 2, 0])],
)
def test_labels_come_as_cls_or_json(tmp_path: Path, make_tar: MakeTar, label: str, expected: list[int]) -> None:
    texts = {"cls": "{}", "json": '{{"label": {}, "url": "x"}}'}
    content = [
        member
        for k in range(4)
        for member in ((f"{k}.jpg", encoded(picture(k))), (f"{k}.{label}", texts[label].format(k % 3).encode()))
    ]
    records = ShardRecords(str(make_tar(tmp_path / "a.tar", content)), "train")
    assert records.labels.tolist() == expected


def test_names_of_classes_several_classes_and_none(tmp_path: Path, make_tar: MakeTar) -> None:
    def shard(folder: str, texts: list[str | None]) -> ShardRecords:
        content = []
        for k, text in enumerate(texts):
            content.append((f"{k}.jpg", encoded(picture(k))))
            if text is not None:
                content.append((f"{k}.cls", text.encode()))
        return ShardRecords(str(make_tar(tmp_path / folder / "a.tar", content)), "train")

    named = shard("named", ["owl", "cat", "owl"])
    assert named.class_names == ("cat", "owl")
    assert named.labels.tolist() == [1, 0, 1]
    several = shard("several", ["0 2", "1", "2"])
    assert several.labels.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]
    assert shard("unlabelled", [None, None]).labels.tolist() == [-1, -1]


def test_what_is_unsafe_or_damaged_in_a_tar_is_left_out_and_listed(tmp_path: Path) -> None:
    path = tmp_path / "bad.tar"
    good = members(0, 3)
    with tarfile.open(path, "w") as tar:

        def add(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> None:
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(content), kind, "/etc/passwd"
            tar.addfile(member, io.BytesIO(content))

        for name, content in good:
            add(name, content)
        add("../../escape.jpg", encoded(picture(1)))
        add("/absolute.jpg", encoded(picture(2)))
        add("link.jpg", kind=tarfile.SYMTYPE)
        add("hard.jpg", kind=tarfile.LNKTYPE)
        add("device", kind=tarfile.CHRTYPE)
        add("00001.jpg", encoded(picture(3)))
        add("lonely.cls", b"1")
        add("unlabelled.jpg", encoded(picture(4)))
        add("two.jpg", encoded(picture(5)))
        add("two.png", encoded(picture(5), "PNG"))
    with pytest.raises(DataError, match=r"9 samples cannot be used, more than the allowed 0\.1%.*isoflop data check"):
        ShardRecords(str(path), "train")
    records = ShardRecords(str(path), "train", allowed_share=1.0)
    assert len(records) == 3
    reasons = {problem.name.rsplit("/", 1)[-1]: problem.reason for problem in records.problems}
    assert reasons["escape.jpg"] == reasons["absolute.jpg"] == "an unsafe name"
    assert reasons["link.jpg"] == reasons["hard.jpg"] == "a link, not a file"
    assert reasons["device"] == "not a regular file"
    assert reasons["00001"] == "the name occurs twice in this shard"
    assert reasons["lonely"] == "no image with this name"
    assert reasons["two"] == "two images with this name"
    assert "the label is missing" in reasons.values()


@pytest.mark.parametrize("kept", [0.1, 0.3, 0.6])
def test_a_truncated_shard_is_noticed(tmp_path: Path, make_tar: MakeTar, kept: float) -> None:
    path = make_tar(tmp_path / "a.tar", members(0, 20))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    records = ShardRecords(str(path), "train", allowed_share=1.0)
    assert len(records) < 20
    assert any("truncated" in problem.reason for problem in records.problems)
    for k in range(len(records)):
        assert records.read(k) == encoded(picture(k))


def test_two_shards_with_one_name_are_reported(tmp_path: Path, make_tar: MakeTar) -> None:
    for folder in ("a", "b"):
        make_tar(tmp_path / folder / "000.tar", members(0, 2))
    records = ShardRecords(f"{tmp_path}/{{a,b}}/000.tar", "train", allowed_share=1.0)
    assert [problem.reason for problem in records.problems] == ["another shard has the same name"]


@pytest.fixture
def remote(shards: Path) -> str:
    """The same shards in fsspec's memory file system."""
    system = fsspec.filesystem("memory")
    for path in shards.glob("*.tar"):
        system.pipe(f"/bucket/{path.name}", path.read_bytes())
    return "memory://bucket"


def test_remote_shards_give_the_same_samples(shards: Path, remote: str) -> None:
    plan = {"seed": 0, "batch_size": 16, "start_step": 0, "stop_step": 8}
    local = open_source(f"shards:{shards}?window=2", split="train", image_size=16)
    far = open_source(f"shards:{remote}?window=2", split="train", image_size=16)
    for one, other in zip(batches(local, **plan), batches(far, **plan), strict=True):
        assert np.array_equal(one.indices, other.indices)
        assert np.array_equal(one.images, other.images)


def test_an_index_beside_remote_shards_is_used(shards: Path, remote: str) -> None:
    folder = ShardRecords(str(shards / "train-*.tar"), "train").write_index()
    system = fsspec.filesystem("memory")
    for path in folder.iterdir():
        system.pipe(f"/bucket/isoflop-index/{path.name}", path.read_bytes())
    built: list[int] = []
    records = ShardRecords(f"{remote}/train-*.tar", "train", progress=lambda done, total: built.append(done))
    assert not built
    assert len(records) == 80
    system.rm("/bucket/isoflop-index", recursive=True)


def test_a_remote_shard_that_was_replaced_is_fetched_and_indexed_again(shards: Path, remote: str) -> None:
    pattern = f"{remote}/train-*.tar"
    before = ShardRecords(pattern, "train")
    built: list[int] = []
    assert ShardRecords(pattern, "train", progress=lambda done, total: built.append(done)).read(35) == before.read(35)
    assert not built
    replace_labels(shards / "train-001.tar")
    fsspec.filesystem("memory").pipe("/bucket/train-001.tar", (shards / "train-001.tar").read_bytes())
    after = ShardRecords(pattern, "train")
    assert after.labels.tolist() == [(k + (30 <= k < 50)) % 3 for k in range(80)]
    assert after.fingerprint != before.fingerprint


def test_a_remote_shard_that_the_index_beside_it_does_not_know_is_refused(shards: Path, remote: str) -> None:
    folder = ShardRecords(str(shards / "train-*.tar"), "train").write_index()
    system = fsspec.filesystem("memory")
    for path in folder.iterdir():
        system.pipe(f"/bucket/isoflop-index/{path.name}", path.read_bytes())
    replace_labels(shards / "train-001.tar")
    system.pipe("/bucket/train-001.tar", (shards / "train-001.tar").read_bytes())
    records = ShardRecords(f"{remote}/train-*.tar", "train")
    assert records.read(0)
    with pytest.raises(DataError, match=r"train-001\.tar: not the shard that was indexed"):
        records.read(35)
    system.pipe("/bucket/isoflop-index/labels.npy", b"damaged")
    system.pipe("/bucket/isoflop-index/shards.json", (folder / "shards.json").read_bytes() + b" ")
    with pytest.warns(UserWarning, match=r"isoflop-index: an index that cannot be used .*damaged"):
        assert len(ShardRecords(f"{remote}/train-*.tar", "train")) == 80
    system.rm("/bucket/isoflop-index", recursive=True)


def test_where_the_storage_says_nothing_of_changes_no_index_is_kept(
    remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isoflop.data.tar._SIGNS", ())
    for _ in range(2):
        built: list[int] = []
        with pytest.warns(UserWarning, match="does not report changes of shards, so no index is stored"):
            ShardRecords(f"{remote}/train-*.tar", "train", progress=lambda done, total: built.append(done))  # noqa: B023
        assert built == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("memory://nowhere/{0..3}.tar", r"memory://nowhere/0\.tar: cannot be reached \(FileNotFoundError"),
        ("nothing://bucket/a.tar", "cannot be reached .*Protocol not known"),
        ("a/{0..99999999}.tar", "more than 1,000,000 shards"),
        ("a/{0..3}.tar", r"a/0\.tar: No such file"),
    ],
)
def test_shards_that_are_not_there_get_one_clear_line(pattern: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        ShardRecords(pattern, "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated"),
        (b"hello " * 200, "not a tar file"),
        (gzip.compress(b"x" * 3000 + os.urandom(3000)), "packed with gzip"),
    ],
)
def test_a_file_that_is_no_tar_gets_one_clear_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DataError, match=f"no images in these shards .*{message}"):
        ShardRecords(str(tmp_path / "a.tar"), "train")


@pytest.mark.parametrize(("label", "message"), [("99999999999", "is no class number"), ("-1", "label is missing")])
def test_labels_that_are_no_classes_are_told(tmp_path: Path, make_tar: MakeTar, label: str, message: str) -> None:
    labels = ["0", "1", "0", label]
    members = [
        one
        for k, text in enumerate(labels)
        for one in ((f"{k:06d}.jpg", encoded(picture(k))), (f"{k:06d}.cls", text.encode()))
    ]
    with pytest.raises(DataError, match=message):
        ShardRecords(str(make_tar(tmp_path / "a.tar", members)), "train")


def test_the_cache_of_shards_keeps_to_its_limit(tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    for k in range(6):
        system.pipe(f"/many/{k}.tar", bytes([k]) * 1000)
    cache = ShardCache(tmp_path / "cache", limit=2500)
    for k in (0, 1, 0, 2, 3, 4, 5, 0):
        assert cache.fetch(f"memory://many/{k}.tar", "1").read_bytes() == bytes([k]) * 1000
        assert sum(file.stat().st_size for file in (tmp_path / "cache").iterdir()) <= 2500
    with pytest.raises(DataError, match="cannot be reached"):
        cache.fetch("memory://many/missing.tar", "1")
    assert not list((tmp_path / "cache").glob(".*"))


def test_remote_shards_are_fetched_once_per_epoch_window_by_window(tmp_path: Path, make_tar: MakeTar) -> None:
    """With a cache of two shards and windows of two, an epoch over eight shards fetches eight."""
    system = fsspec.filesystem("memory")
    for k in range(8):
        path = make_tar(tmp_path / f"{k}.tar", [(f"{i}.png", encoded(picture(i, 32, 32), "PNG")) for i in range(20)])
        system.pipe(f"/windowed/{k}.tar", path.read_bytes())
        size = path.stat().st_size
    source = open_source(
        f"shards:memory://windowed/{{0..7}}.tar?window=2&decode=each&cache_gb={2.5 * size / 2**30}",
        split="train",
        image_size=16,
        heldout=0,
    )
    records = source._records  # type: ignore[attr-defined]
    records._files.clear()
    fetched: list[str] = []
    download = system.get_file

    def counting_download(self: object, path: str, *rest: object, **options: object) -> None:
        fetched.append(path)
        download(path, *rest, **options)

    type(system).get_file = counting_download
    try:
        for batch in batches(source, seed=0, batch_size=20, start_step=0, stop_step=8):
            for file in list(records._files):  # a file that stays open would hide a second fetch
                if len(records._files) > 2:
                    records._files.pop(file)
            assert len(batch.images) == 20
    finally:
        del type(system).get_file
    assert len(fetched) <= 8
