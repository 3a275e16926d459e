"""What a data set is: what a folder of images holds beside its images, and what is said of what is not used."""

import os
from pathlib import Path

import pytest

from isoflop.data import check, open_source
from isoflop.data.opening import open_records
from isoflop.data.sources.folder import FolderRecords
from isoflop.errors import DataError, DataNotice
from tests.data.pictures import encoded, picture


def fill(root: Path, *files: str) -> Path:
    """Writes a picture of its own to each path below `root`; a path that ends in `/` is an empty folder."""
    for seed, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(encoded(picture(seed, 20, 20)))
    return root


def used(root: Path, part: str = "train") -> dict[str, list[str]]:
    """The image files that a part has of each class."""
    records = FolderRecords(root, part)  # type: ignore[arg-type]
    names = [Path(records.name(k)).name for k in range(len(records))]
    return {
        name: [n for n, label in zip(names, records.labels, strict=True) if label == k]
        for k, name in enumerate(records.class_names)
    }


def left_out(root: Path, part: str = "train") -> dict[str, set[str]]:
    records = FolderRecords(root, part)  # type: ignore[arg-type]
    return {note.what: set(note.names) for note in records.notes if note.total}


def guesses(root: Path, part: str = "train") -> str:
    records = FolderRecords(root, part)  # type: ignore[arg-type]
    return "; ".join(note.what for note in records.notes if not note.total)


def test_what_systems_leave_behind_is_no_class_and_no_image(tmp_path: Path) -> None:
    """Folders and files of Synology, macOS, Jupyter, git and Windows."""
    junk = ["@eaDir/cat/SYNO.jpg", "__MACOSX/cat/._a.jpg", ".git/x.jpg", ".ipynb_checkpoints/a.jpg", "cat/._a.jpg"]
    inside = ["cat/.ipynb_checkpoints/a-checkpoint.jpg", "cat/@eaDir/a.jpg/SYNOPHOTO.jpg", "cat/Thumbs.db", ".DS_Store"]
    fill(tmp_path, "cat/a.jpg", "dog/b.jpg", *junk, *inside)
    assert used(tmp_path) == {"cat": ["a.jpg"], "dog": ["b.jpg"]}
    assert left_out(tmp_path) == {
        "hidden or system files and folders": {
            "@eaDir", "__MACOSX", ".git", ".ipynb_checkpoints", "cat/._a.jpg", "cat/.ipynb_checkpoints", "cat/@eaDir",
            "cat/Thumbs.db", ".DS_Store",
        }
    }  # fmt: skip


@pytest.mark.parametrize("suffix", [".JPEG", ".jfif", "", ".jpg_large", ".jpg!d", ".JPG", ".jpe", ".part"])
def test_an_image_is_told_by_its_content_where_its_suffix_is_not_known(tmp_path: Path, suffix: str) -> None:
    fill(tmp_path, *(f"{name}/{k}{suffix}" for name in ("cat", "dog") for k in range(3)))
    assert used(tmp_path) == {name: [f"{k}{suffix}" for k in range(3)] for name in ("cat", "dog")}
    assert check(str(tmp_path)).is_usable
    assert not left_out(tmp_path)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_every_format_is_known_by_its_first_bytes(tmp_path: Path, image_format: str) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "picture").write_bytes(encoded(picture(0), image_format))
    assert used(tmp_path) == {"cat": ["picture"]}


def test_what_is_no_image_is_left_out_and_told(tmp_path: Path) -> None:
    fill(tmp_path, "cat/a.jpg", "dog/b.jpg", "empty/", "texts/", "stray.jpg")
    for name in ("README.md", "cat/labels.csv", "cat/BMovies.txt", "texts/notes"):
        (tmp_path / name).write_text("BMovies and other plain text, longer than a header")
    os.mkfifo(tmp_path / "cat" / "pipe.jpg")
    (tmp_path / "cat" / "loop").symlink_to("loop")
    (tmp_path / "cat" / "gone.jpg").symlink_to("nowhere.jpg")
    assert used(tmp_path) == {"cat": ["a.jpg", "gone.jpg"], "dog": ["b.jpg"]}
    assert left_out(tmp_path) == {
        "files that are no images": {"README.md", "cat/labels.csv", "cat/BMovies.txt", "texts/notes"},
        "folders without images": {"empty", "texts"},
        "images beside the class folders": {"stray.jpg"},
        "pipes, sockets or devices": {"cat/pipe.jpg"},
        "files that cannot be read": {"cat/loop"},
    }
    report = check(str(tmp_path))
    assert "folders without images left out: 2 (empty, texts)" in report.lines()
    assert report.classes == {"cat": 2, "dog": 1}


def test_links_to_folders_that_hold_them_are_not_followed(tmp_path: Path) -> None:
    fill(tmp_path / "data", "cat/a.jpg", "dog/b.jpg")
    fill(tmp_path / "far", "c.jpg")
    (tmp_path / "data" / "all").symlink_to(".")
    (tmp_path / "data" / "cat" / "up").symlink_to("..")
    (tmp_path / "data" / "owl").symlink_to(tmp_path / "far")
    assert used(tmp_path / "data") == {"cat": ["a.jpg"], "dog": ["b.jpg"], "owl": ["c.jpg"]}
    assert left_out(tmp_path / "data") == {"links to folders": {"all", "cat/up"}}


@pytest.mark.parametrize("name", ["train", "test", "val", "Train"])
def test_a_class_may_be_called_like_a_part(tmp_path: Path, name: str) -> None:
    """Vehicles, of which one is a train; trials, of which one is a test."""
    fill(tmp_path, f"{name}/a.jpg", "bus/b.jpg", "car/c.jpg")
    assert used(tmp_path) == {"bus": ["b.jpg"], "car": ["c.jpg"], name: ["a.jpg"]} or name == "Train"
    assert set(used(tmp_path)) == {"bus", "car", name}
    assert f"`{name}` is used as a class" in guesses(tmp_path)
    with pytest.raises(DataError, match="no test part"):
        FolderRecords(tmp_path, "test")


def test_a_class_called_train_within_the_parts(tmp_path: Path) -> None:
    fill(tmp_path, "train/train/a.jpg", "train/bus/b.jpg", "test/train/c.jpg", "test/test.txt")
    assert used(tmp_path) == {"bus": ["b.jpg"], "train": ["a.jpg"]}
    assert used(tmp_path, "test") == {"bus": [], "train": ["c.jpg"]}


@pytest.mark.parametrize(("train", "test"), [("train", "val"), ("Train", "Test"), ("Training", "Testing")])
def test_parts_are_known_by_structure_and_what_lies_beside_them_is_told(tmp_path: Path, train: str, test: str) -> None:
    fill(tmp_path, f"{train}/cat/a.jpg", f"{train}/dog/b.jpg", f"{test}/cat/c.jpg", "extra/x.jpg", "sample.jpg")
    assert used(tmp_path) == {"cat": ["a.jpg"], "dog": ["b.jpg"]}
    assert used(tmp_path, "test") == {"cat": ["c.jpg"], "dog": []}
    assert left_out(tmp_path) == {"files and folders beside the parts": {"extra", "sample.jpg"}}


def test_parts_without_classes_are_unlabelled_and_that_is_said(tmp_path: Path) -> None:
    fill(tmp_path, "train/a.jpg", "train/b.jpg", "test/c.jpg")
    assert len(FolderRecords(tmp_path, "train")) == 2
    assert used(tmp_path) == {}
    assert "`train` is taken for a part" in guesses(tmp_path)


def test_where_a_part_cannot_be_told_from_a_class_a_name_is_asked_for(tmp_path: Path) -> None:
    fill(tmp_path, "train/steam/a.jpg", "train/diesel/b.jpg", "bus/c.jpg")
    with pytest.raises(DataError, match="is `train` the training part or a class like `bus`"):
        FolderRecords(tmp_path, "train")


def test_classes_within_classes_and_names_alike_are_told(tmp_path: Path) -> None:
    fill(tmp_path, "animals/cat/a.jpg", "animals/dog/b.jpg", "cars/c.jpg", "Cars/d.jpg")
    assert used(tmp_path)["animals"] == ["a.jpg", "b.jpg"]
    told = guesses(tmp_path)
    assert "1 of 3 classes hold folders of images, `animals/cat` among them" in told
    assert "classes `Cars` and `cars` differ in case, spaces or accents alone" in told
    fill(tmp_path / "parts", "train/cat/a.jpg", "train/dog/c.jpg", "test/Cat/b.jpg")
    with pytest.raises(DataError, match="class `Cat` has no training images, but there is `cat`"):
        FolderRecords(tmp_path / "parts", "test")


def test_a_run_says_in_one_line_what_it_leaves_out(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{name}/{k}.jpg" for name in ("cat", "dog") for k in range(5)), "empty/", ".DS_Store")
    with pytest.warns(DataNotice) as warned:
        open_source(f"folder:{tmp_path}", split="train", image_size=8)
    assert [str(warning.message) for warning in warned] == [
        f"folder:{tmp_path}: hidden or system files and folders left out: 1 (.DS_Store); "
        "folders without images left out: 1 (empty)"
    ]


def test_a_sound_folder_needs_no_words(image_folder: Path) -> None:
    assert open_records(f"folder:{image_folder}", "train").notes == ()
