"""Equal images fall on one side of the held-out split, and are told; without any, the split is what it was."""

import io
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from isoflop.data import Split, check, open_source
from isoflop.data.duplicates import _nearest, digests_of, equal_images, groups_of, look_of
from isoflop.data.opening import open_records
from isoflop.data.source import SplitIndices
from isoflop.errors import DataError, DataNotice
from tests.data.pictures import encoded, picture

MakeTar = Callable[[Path, list[tuple[str, bytes]]], Path]
PACKINGS = (("png", {}), ("png", {"compress_level": 0}), ("bmp", {}), ("tiff", {}), ("webp", {"lossless": True}))


def repeated(folder: Path, images: int, times: int, packed_alike: bool) -> Path:
    """Two classes of pictures of which each is there `times` times, by the same bytes or in different formats."""
    for k in range(images):
        for copy in range(times):
            suffix, options = PACKINGS[0 if packed_alike else copy]
            path = folder / "ab"[k % 2] / f"{(k * 7 + copy * 31) % 100:02}-{k}-{copy}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(picture(k, 12, 12), suffix.upper(), **options))
    return folder


def sides(uri: str, seed: int = 0) -> tuple[Counter[bytes], Counter[bytes]]:
    """How often each picture is trained on, and held out."""

    def shown(split: Split) -> Counter[bytes]:
        source = open_source(uri, split=split, image_size=12, heldout=1000, seed=seed)
        return Counter(image.numpy().tobytes() for image in source.read(np.arange(len(source)))[0])

    return shown("train"), shown("heldout")


@pytest.mark.parametrize("packed_alike", [True, False])
@pytest.mark.parametrize("decode", ["once", "each"])
def test_equal_images_fall_on_one_side(tmp_path: Path, packed_alike: bool, decode: str) -> None:
    """Each image thrice: by chance, nearly all held-out ones would be trained on, and known by heart."""
    uri = f"folder:{repeated(tmp_path / 'images', 20, 3, packed_alike)}?decode={decode}"
    for seed in range(3):
        with pytest.warns(DataNotice, match="60 images are duplicates"):
            train, heldout = sides(uri, seed=seed)
        assert not set(train) & set(heldout)
        assert sum(train.values()) + sum(heldout.values()) == 60
        assert sum(heldout.values()) == 12
        assert set(heldout.values()) == {3}


def test_without_equal_images_the_split_and_the_fingerprint_are_what_they_were(image_folder: Path) -> None:
    source = open_source(f"folder:{image_folder}", split="heldout", image_size=16, heldout=9, seed=5)
    records = open_records(f"folder:{image_folder}", "train")
    assert source.fingerprint == records.fingerprint
    held = SplitIndices(60, "heldout", 9, 5).all()
    assert source.read(np.arange(9))[1].tolist() == records.labels[held].tolist()
    assert len(equal_images(records)) == 0


@pytest.mark.parametrize(("num_samples", "heldout", "size"), [(60, 12, 3), (1000, 77, 2), (40_000, 100, 4), (12, 2, 3)])
def test_groups_are_held_out_whole_in_the_random_order(num_samples: int, heldout: int, size: int) -> None:
    numbers = np.arange(num_samples // 2 // size * size)
    equal = np.stack([numbers, numbers // size], axis=1)
    train = SplitIndices(num_samples, "train", heldout, 3, equal).all()
    held = SplitIndices(num_samples, "heldout", heldout, 3, equal).all()
    assert np.array_equal(np.sort(np.concatenate([train, held])), np.arange(num_samples))
    assert not set(train[train < len(numbers)] // size) & set(held[held < len(numbers)] // size)
    assert 0 < len(held) <= max(heldout, size)
    again = SplitIndices(num_samples, "heldout", heldout, 4, equal).all()
    assert num_samples < 40 or not np.array_equal(held, again)


def test_a_group_that_lies_on_one_side_anyway_changes_nothing() -> None:
    held = SplitIndices(100, "heldout", 10, 0).all()
    train = SplitIndices(100, "train", 10, 0).all()
    equal = np.array(sorted([(int(held[0]), 0), (int(held[1]), 0), (int(train[0]), 1), (int(train[1]), 1)]))
    split = SplitIndices(100, "heldout", 10, 0, equal)
    assert split.regrouped is None
    assert np.array_equal(split.all(), held)


@pytest.mark.parametrize("images", [1, 2])
def test_hardly_any_different_images_leave_something_to_train_on(tmp_path: Path, images: int) -> None:
    train, heldout = sides(f"folder:{repeated(tmp_path, images, 5, True)}")
    assert train
    assert not set(train) & set(heldout)
    assert bool(heldout) == (images == 2)


def test_the_split_that_changed_has_another_fingerprint(tmp_path: Path) -> None:
    uri = f"folder:{repeated(tmp_path, 20, 3, True)}"
    one, other = (open_source(uri, split="train", image_size=12, seed=seed) for seed in (0, 1))
    assert len({one.fingerprint, other.fingerprint, open_records(uri, "train").fingerprint}) == 3
    whole = open_source(uri, split="train", image_size=12, heldout=0)
    assert whole.fingerprint == open_records(uri, "train").fingerprint


def test_by_bytes_images_of_the_same_size_and_end_are_told_apart(tmp_path: Path, make_tar: MakeTar) -> None:
    """As uncompressed pictures with a black bottom are."""
    black = bytes(5000)
    images = [b"a" + black, b"b" + black, b"a" + black, b"c" + black[1:], b"d" * 5001, b"d" * 5001]
    make_tar(tmp_path / "train.tar", [(f"{k}.bmp", image) for k, image in enumerate(images)])
    records = open_records(f"shards:{tmp_path}", "train")
    groups = groups_of(digests_of(records, "bytes"))
    assert groups[:, 0].tolist() == [0, 2, 4, 5]
    assert groups[0, 1] == groups[1, 1] != groups[2, 1] == groups[3, 1]


def test_digests_are_computed_once(image_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("isoflop.data.duplicates._known", {})
    records = open_records(f"folder:{image_folder}", "train")
    equal_images(records)
    monkeypatch.setattr("isoflop.data.duplicates._known", {})
    monkeypatch.setattr("isoflop.data.duplicates.pixel_digest", lambda encoded: pytest.fail("computed again"))
    assert len(equal_images(records)) == 0


def test_a_check_tells_duplicates_label_conflicts_and_what_both_parts_have(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
    for k, name in enumerate(["train/cat/a.png", "train/cat/b.png", "train/dog/c.png", "test/dog/d.png"]):
        (tmp_path / name).write_bytes(encoded(picture(k), "PNG"))
    shutil.copy(tmp_path / "train/cat/a.png", tmp_path / "train/cat/z.png")
    (tmp_path / "train/dog/b.bmp").write_bytes(encoded(picture(1), "BMP"))
    shutil.copy(tmp_path / "train/dog/c.png", tmp_path / "test/dog/c.png")
    report = check(str(tmp_path))
    names = [[(Path(a).name, Path(b).name) for a, b in pairs] for pairs in (report.duplicates, report.conflicts)]
    assert names == [[("z.png", "a.png")], [("b.bmp", "b.png")]]
    assert [(Path(a).parts[-3:], Path(b).parts[-3:]) for a, b in report.shared] == [
        (("train", "dog", "c.png"), ("test", "dog", "c.png"))
    ]
    text = "\n".join(report.lines())
    assert "equal images with other labels: 1" in text
    assert "images that the test part has, too: 1" in text
    assert len(check(str(tmp_path), part="test").shared) == 1


def photograph(seed: int, side: int = 96) -> Image.Image:
    """Smooth shapes with details, as photographs have."""
    waves = np.random.default_rng(seed).normal(size=(12, 12, 3)) / (1 + np.hypot(*np.indices((12, 12))))[:, :, None]
    pixels = np.asarray([np.asarray(Image.fromarray(w.astype(np.float32)).resize((side, side), 3)) for w in waves.T])
    return Image.fromarray((128 + 80 * pixels / pixels.std()).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


COPIES = {
    "encoded anew": lambda image: Image.open(io.BytesIO(encoded(image, "JPEG", quality=60))),
    "smaller": lambda image: image.resize((48, 48), Image.Resampling.LANCZOS),
    "cropped": lambda image: image.crop((4, 2, 92, 93)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "grey": lambda image: image.convert("L"),
}


def test_near_duplicates_across_parts_are_told(tmp_path: Path) -> None:
    for part, first in (("train", 0), ("test", 100)):
        for k in range(12):
            (tmp_path / part / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
            photograph(first + k).save(tmp_path / part / "ab"[k % 2] / f"{k}.png")
        Image.new("RGB", (64, 64), (first, 90, 90)).save(tmp_path / part / "a" / "flat.png")  # all flat ones look alike
    for k, (how, copy) in enumerate(COPIES.items()):
        copy(photograph(k)).save(tmp_path / "test" / "b" / f"{how}.png")
        copy(photograph(6 + k)).save(tmp_path / "train" / "b" / f"{how}.png")
    report = check(str(tmp_path))
    near = [{(Path(a).name, Path(b).name) for a, b in pairs} for pairs in (report.alike, report.alike_shared)]
    assert [len(report.alike), len(report.alike_shared)] == [5, 5]
    assert near[1] == {(f"{k}.png", f"{how}.png") for k, how in enumerate(COPIES)}
    assert {frozenset(pair) for pair in near[0]} == {
        frozenset((f"{6 + k}.png", f"{how}.png")) for k, how in enumerate(COPIES)
    }
    assert (report.duplicates, report.conflicts, report.shared, report.compared) == ([], [], [], {})
    lines = report.lines()
    at = lines.index("near-duplicates of images of the test part: 5")
    assert lines[at + 1].endswith(f"0.png: looks like {tmp_path / 'test' / 'b' / 'encoded anew.png'}")
    assert lines[at + 4] == "  … and 2 more"
    assert {Path(a).stem for a, _ in check(str(tmp_path), part="test").alike_shared} == set(COPIES)


def test_beyond_what_is_compared_in_seconds_a_sample_is_and_the_check_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(12):
        (tmp_path / "a").mkdir(exist_ok=True)
        photograph(k // 2).rotate(k % 2, expand=False).crop((4, 4, 90, 90)).save(tmp_path / "a" / f"{k:02}.png")
    assert len(check(str(tmp_path)).alike) == 6
    monkeypatch.setattr("isoflop.data.duplicates._MOST_PAIRS", 48)
    assert "near-duplicates (of 4 images compared): 3" in check(str(tmp_path)).lines()
    monkeypatch.setattr("isoflop.data.duplicates._MOST_PAIRS", 10**9)
    monkeypatch.setattr("isoflop.data.duplicates._MOST_CONFIRMED", 5)
    assert "near-duplicates (among the 5 likeliest): 5" in check(str(tmp_path)).lines()


@pytest.mark.parametrize("within", [True, False])
def test_the_nearest_hash_is_that_of_counting_bits(within: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isoflop.data.duplicates._ROWS", 7)
    monkeypatch.setattr("isoflop.data.duplicates._COLUMNS", 11)
    looks, others = np.random.default_rng(0).integers(0, 1 << 63, (2, 40), dtype=np.uint64) & np.uint64(0xFFF)
    apart, nearest = _nearest(looks, looks if within else others, np.arange(40), within)
    for k in range(within, 40):
        counts = [(int(looks[k]) ^ int(other)).bit_count() for other in (looks[:k] if within else others)]
        assert apart[k] == min(counts) == counts[nearest[k]]
    assert look_of(b"no picture") == 0


def test_a_test_part_is_made_of_images_that_training_never_sees(tmp_path: Path) -> None:
    for name, seed in (("cat", 0), ("dog", 20)):
        (tmp_path / name).mkdir()
        for k in range(20):
            (tmp_path / name / f"{k:02d}.png").write_bytes(encoded(picture(seed + k // 2), "PNG"))  # pairs of copies
    uri = f"folder:{tmp_path}?test=7"
    train, test = (open_records(uri, part) for part in ("train", "test"))
    names = [{records.name(k) for k in range(len(records))} for records in (train, test)]
    assert (len(train), len(test)) == (34, 6)  # no pair is parted
    assert names[0].isdisjoint(names[1])
    assert {train.read(k) for k in range(len(train))}.isdisjoint({test.read(k) for k in range(len(test))})
    assert names[1] == {open_records(uri, "test").name(k) for k in range(6)}
    assert train.fingerprint != test.fingerprint != open_records(f"folder:{tmp_path}?test=4", "test").fingerprint
    report = check(uri)
    assert (report.images, report.shared) == (34, [])
    source = open_source(uri, split="test", image_size=8)
    assert source.labels().tolist() == test.labels.tolist()
    with pytest.raises(DataError, match="must be 1 or more"):
        open_records(f"folder:{tmp_path}?test=0", "train")


def test_a_test_part_is_not_made_where_there_is_one(image_folder: Path) -> None:
    for part in ("train", "test"):
        with pytest.raises(DataError, match="have a test part already: take `test=3` away"):
            open_records(f"folder:{image_folder}?test=3", part)  # type: ignore[arg-type]
