"""`data check`, `data convert` and `data index`: what they find, and that conversion changes no byte."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isoflop.data import check, convert, index_shards, open_source
from isoflop.data.opening import open_records
from isoflop.errors import DataError
from tests.data.pictures import encoded, picture, png_bomb


@pytest.fixture
def museum(tmp_path: Path) -> Path:
    """One of every damaged or odd thing, among 30 sound JPEGs in two classes."""
    folder = tmp_path / "museum"
    for name, count, seed in (("cat", 20, 100), ("dog", 10, 200)):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            (folder / name / f"{k:02d}.jpg").write_bytes(encoded(picture(seed + k, 40 + k, 50)))
    cat = folder / "cat"
    good = encoded(picture(999, 100, 100))
    (cat / "truncated.jpg").write_bytes(good[: len(good) // 2])
    (cat / "empty.jpg").write_bytes(b"")
    (cat / "text.jpg").write_bytes(b"<html>not found</html>")
    (cat / "bomb.png").write_bytes(png_bomb())
    (cat / "float.tif").write_bytes(encoded(Image.fromarray(np.ones((9, 9), dtype=np.float32)), "TIFF"))
    (cat / "really_a_png.jpg").write_bytes(encoded(picture(5), "PNG"))
    (cat / "garbage_inside.jpg").write_bytes(good[:700] + b"\xff\xd5" * 20 + good[740:])
    (cat / "copy.jpg").write_bytes((cat / "00.jpg").read_bytes())
    (cat / "cmyk.jpg").write_bytes(encoded(picture(6).convert("CMYK")))
    (cat / "palette.png").write_bytes(encoded(picture(7).quantize(16), "PNG"))
    (cat / "sixteen.png").write_bytes(encoded(Image.fromarray(np.full((9, 9), 40_000, dtype=np.uint16)), "PNG"))
    return folder


@pytest.mark.parametrize("workers", [1, 2])
def test_a_check_finds_every_kind_of_damage(museum: Path, workers: int) -> None:
    seen: list[tuple[int, int]] = []
    report = check(str(museum), workers=workers, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (41, 41)
    assert report.images == 41
    assert report.classes == {"cat": 31, "dog": 10}
    broken = {Path(damage.name).name: damage.reason for damage in report.broken}
    assert set(broken) == {"truncated.jpg", "empty.jpg", "text.jpg", "bomb.png", "float.tif"}
    assert "bomb" in broken["bomb.png"] or "pixels" in broken["bomb.png"]
    suspicious = {Path(damage.name).name: damage.reason for damage in report.suspicious}
    assert suspicious["really_a_png.jpg"] == "called .jpg, but it is PNG"
    assert "Corrupt JPEG data" in suspicious["garbage_inside.jpg"]
    assert [(Path(a).name, Path(b).name) for a, b in report.duplicates] == [("copy.jpg", "00.jpg")]
    assert not report.is_usable
    text = "\n".join(report.lines())
    assert "broken: 5" in text
    assert "a run would stop" in text


def test_a_check_of_sound_data_says_so(image_folder: Path) -> None:
    report = check(str(image_folder))
    assert report.is_usable
    assert report.formats == {"PNG": 60}
    assert report.widths == (40, 40, 40)
    assert report.lines()[-1] == "verdict: usable"


def test_conversion_changes_no_byte(image_folder: Path, tmp_path: Path) -> None:
    assert convert(f"folder:{image_folder}", tmp_path / "shards", samples_per_shard=25) == (75, [])
    assert sorted(p.name for p in (tmp_path / "shards").glob("*.tar")) == [
        "test-000000.tar",
        "train-000000.tar",
        "train-000001.tar",
        "train-000002.tar",
    ]
    assert convert(f"shards:{tmp_path / 'shards'}", tmp_path / "folder", to="folder") == (75, [])
    for part in ("train", "test"):
        original = open_records(f"folder:{image_folder}", part)  # type: ignore[arg-type]
        for uri in (f"shards:{tmp_path / 'shards'}", f"folder:{tmp_path / 'folder'}"):
            copy = open_records(uri, part)  # type: ignore[arg-type]
            assert copy.class_names == original.class_names
            assert np.array_equal(copy.labels, original.labels)
            assert all(copy.read(k) == original.read(k) for k in range(len(original)))


def test_conversion_gives_the_same_shards_every_time(image_folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        convert(str(image_folder), tmp_path / name)
    one, other = ((tmp_path / name / "train-000000.tar").read_bytes() for name in ("a", "b"))
    assert one == other


def test_conversion_writes_into_no_folder_in_use_and_leaves_damage_out(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not empty"):
        convert(str(image_folder), image_folder)
    (image_folder / "train" / "cat" / "00.png").write_bytes(b"junk")
    images, left_out = convert(str(image_folder), tmp_path / "new")
    assert images == 74
    assert [(Path(damage.name).name, damage.reason) for damage in left_out] == [
        ("00.png", "not an image in any known format")
    ]
    assert len(open_records(f"shards:{tmp_path / 'new'}", "train")) == 59


def test_a_conversion_that_fails_leaves_nothing_behind(image_folder: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match="new: No space left on device"):
        convert(str(image_folder), tmp_path / "new", progress=stop)
    assert not list((tmp_path / "new").iterdir())


def test_shuffled_shards_hold_the_same_images_in_another_order(image_folder: Path, tmp_path: Path) -> None:
    convert(str(image_folder), tmp_path / "plain", parts=("train",))
    convert(str(image_folder), tmp_path / "mixed", parts=("train",), shuffle=True)
    plain, mixed = (open_records(f"shards:{tmp_path / name}", "train") for name in ("plain", "mixed"))
    assert not np.array_equal(plain.labels, mixed.labels)
    expected = sorted((plain.read(k), int(plain.labels[k])) for k in range(60))
    assert sorted((mixed.read(k), int(mixed.labels[k])) for k in range(60)) == expected


def test_an_index_is_written_beside_the_shards(image_folder: Path, tmp_path: Path) -> None:
    convert(str(image_folder), tmp_path / "shards", parts=("train",), samples_per_shard=25)
    assert index_shards(str(tmp_path / "shards")) == (60, 3)
    assert (tmp_path / "shards" / "isoflop-index" / "shards.json").exists()
    assert len(list((tmp_path / "shards").glob("isoflop-index*"))) == 1
    moved = shutil.copytree(tmp_path / "shards", tmp_path / "elsewhere")
    assert len(open_source(f"shards:{moved}", split="train", image_size=16, heldout=0)) == 60


def test_the_test_part_is_indexed_too(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(str(image_folder), tmp_path / "shards", samples_per_shard=25)
    assert index_shards(str(tmp_path / "shards")) == (75, 4)
    monkeypatch.setattr("isoflop.data.sources.shards.index_tar", lambda *rest, **more: pytest.fail("indexed again"))
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "nothing"))
    assert len(open_records(f"shards:{tmp_path / 'shards'}", "test")) == 15


def test_a_path_that_is_no_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"neither a folder nor a \.tar"):
        check(str(tmp_path / "notes.txt"))
    with pytest.raises(DataError, match="no such file or folder"):
        check(str(tmp_path / "nothing"))
    with pytest.raises(DataError, match="no images"):
        check(str(tmp_path))
