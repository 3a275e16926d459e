"""Objects and maps of classes are read as their formats say, and refused in one line where they are not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from isoflop.cli import main
from isoflop.data import batches, open_source
from isoflop.data.dense import CocoRecords, DenseSource, MapRecords
from isoflop.data.dense.canvas import JITTERS
from isoflop.data.dense.coco import mask_of, run_lengths
from isoflop.data.dense.scenes import write_scenes
from isoflop.data.records import Note
from isoflop.errors import DataError
from tests.cli.lines import isoflop

SIZE = (24, 40)


def image(**changes: Any) -> dict[str, Any]:
    return {"id": 7, "file_name": "7.png", "height": SIZE[0], "width": SIZE[1]} | changes


def annotation(**changes: Any) -> dict[str, Any]:
    box = [4.0, 4.0, 10.0, 8.0]
    polygon = [[4, 4, 14, 4, 14, 12, 4, 12]]
    return {"id": 1, "image_id": 7, "category_id": 3, "bbox": box, "area": 80, "segmentation": polygon} | changes


def write(folder: Path, annotations: list[dict[str, Any]], /, **changes: Any) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    for number in (7, 9):
        Image.new("RGB", SIZE[::-1]).save(folder / "images" / f"{number}.png")
    images = [image(id=n, file_name=f"{n}.png") for n in (7, 9)]
    categories = [{"id": 90, "name": "zebra"}, {"id": 3, "name": "ant"}]
    found = {"images": images, "annotations": annotations, "categories": categories} | changes
    (folder / "train.json").write_text(json.dumps(found))
    return folder


def test_category_ids_with_gaps_are_numbered_in_their_order(tmp_path: Path) -> None:
    records = CocoRecords(write(tmp_path, [annotation(category_id=90), annotation(id=2)]), "train")
    assert records.class_names == ("ant", "zebra")
    assert records.truth(0).classes.tolist() == [1, 0]


def test_an_image_without_objects_has_none_and_stays(tmp_path: Path) -> None:
    records = CocoRecords(write(tmp_path, [annotation()]), "train", masks=True)
    truth = records.truth(1)
    assert truth.boxes.shape == (0, 4)
    assert truth.masks is not None
    assert truth.masks.shape == (0, *SIZE)


def test_boxes_are_cut_at_the_border_and_left_out_beyond_it(tmp_path: Path) -> None:
    boxes = [[-3, 2, 8, 8], [30, 10, 99, 99], [50, 2, 5, 5], [3, 3, 0, 9]]
    folder = write(tmp_path, [annotation(id=k, bbox=box) for k, box in enumerate(boxes)])
    records = CocoRecords(folder, "train")
    assert [note.line() for note in records.notes] == [
        "boxes outside of their image left out: 1 (annotation 2 of 7.png)",
        "boxes without area left out: 1 (annotation 3 of 7.png)",
    ]
    assert records.truth(0).boxes.tolist() == [[0, 2, 5, 10], [30, 10, 40, 24]]


def test_masks_are_those_of_pycocotools(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).random(SIZE) > 0.6
    coded = coco_mask.encode(np.asfortranarray(noise, np.uint8))
    counts = [int(n) for n in np.diff(np.flatnonzero(np.diff(noise.T.ravel(), prepend=0, append=2)), prepend=0)]
    polygon = [[3.2, 2.1, 30.7, 4.4, 12.0, 20.9], [20, 10, 35, 10, 35, 20, 20, 20]]
    kinds: list[Any] = [polygon, {"size": list(SIZE), "counts": coded["counts"].decode()}]
    kinds.append({"size": list(SIZE), "counts": counts})
    folder = write(tmp_path, [annotation(id=k + 1, segmentation=kind, iscrowd=k == 2) for k, kind in enumerate(kinds)])
    reference = COCO(folder / "train.json")
    truth = CocoRecords(folder, "train", masks=True).truth(0)
    assert truth.masks is not None
    for k, ours in enumerate(truth.masks):
        np.testing.assert_array_equal(ours, reference.annToMask(reference.anns[k + 1]).astype(bool))
    assert truth.crowds.tolist() == [False, False, True]
    np.testing.assert_array_equal(truth.masks[1], noise)
    assert run_lengths(noise)["counts"] == coded["counts"].decode()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": []}, "its list of `annotations` is empty"),
        ({"images": []}, "its list of `images` is empty"),
        ({"categories": None}, "not in COCO's format: no list of `categories`"),
        ({"images": [{"id": 7}]}, "image 7 lacks an id or a file name"),
        ({"images": [[7]]}, "`images` has an entry that is no table"),
        ({"images": [image(), image(file_name="9.png")]}, r"two images have the id 7: 7.png and 9.png"),
        ({"images": [image(), image(id=8, file_name="there/7.png")]}, r"7.png and there/7.png are both .*7.png: which"),
        (
            {"images": [image(file_name="8.png")]},
            r"none of its 1 images exists \(the first: 8.png; looked in .*images",
        ),
        ({"categories": [{"id": 3}]}, "category 3 lacks a whole number as its id, or a name"),
        ({"categories": [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]}, "two categories have the id 3"),
        (
            {"annotations": [annotation(image_id=8)]},
            r"annotations of images that there are not \(annotation 1 of image 8",
        ),
        ({"annotations": [annotation(category_id=1)]}, "annotation 1 is of category 1, which is not among"),
        ({"annotations": [annotation(bbox=[1, 2, 3])]}, r"boxes that are not four numbers \(annotation 1 of 7.png\)"),
        ({"annotations": [annotation(bbox=["1", 2, 3, None])]}, "boxes that are not four numbers"),
        ({"annotations": [annotation(bbox=[float("nan"), 2, 3, 4])]}, "boxes that are not finite"),
        ({"annotations": [annotation(bbox=[0.1, 0.1, 0.5, 0.5])]}, "boxes are within 0 … 1: they look like fractions"),
        ({"annotations": [annotation(bbox=[20, 10, 39, 23])] * 3}, "they look like left, top, right, bottom"),
        ({"annotations": [annotation(iscrowd="no")]}, "annotation 1 has `iscrowd` no; it is 0 or 1"),
        ({"annotations": [annotation(segmentation=[])]}, "objects without a mask .*; use this data without `masks=1`"),
        ({"annotations": [annotation(segmentation=[[1, 2, 3, 4]])]}, "objects without a mask"),
        ({"annotations": [annotation(segmentation={"size": [3, 5], "counts": "a"})]}, "masks of another size than"),
    ],
)
def test_annotations_that_cannot_be_are_refused_in_one_line(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write(tmp_path, [annotation()], **changes)
    with pytest.raises(DataError, match=message) as caught:
        CocoRecords(tmp_path, "train", masks=True)
    assert "train.json" in str(caught.value)
    assert "\n" not in str(caught.value)


PICTURE = Image.new("RGB", SIZE[::-1], (9, 99, 199))
LAYOUTS: dict[str, tuple[str, str, str]] = {
    # the file, the folder of pictures, and how the file calls one
    "roboflow": ("train/_annotations.coco.json", "train", "{}.png"),
    "coco": ("annotations/instances_train2017.json", "train2017", "{}.png"),
    "coco in images": ("annotations/instances_train2017.json", "images/train2017", "{}.png"),
    "cvat": ("annotations/instances_default.json", "images/default", "{}.png"),
    "cvat flat": ("annotations/instances_default.json", "images", "{}.png"),
    "cvat subsets": ("annotations/instances_Train.json", "images/Train", "{}.png"),
    "label studio": ("result.json", "images", "images\\{}.png"),
    "label studio local": ("result.json", "images", "../../label-studio/data/media/upload/1/{}.png"),
    "fiftyone": ("train/labels.json", "train/data", "{}.png"),
    "fiftyone alone": ("labels.json", "data", "{}.png"),
    "one file": ("my_export.json", "images", "{}.png"),
    "one file beside the pictures": ("annotations.json", "", "{}.png"),
    "folders in names": ("train.json", "images/a/b", "a/b/{}.png"),
    "folder of the part in names": ("annotations/instances_train.json", "train", "train/{}.png"),
    "absolute": ("train.json", "images", "/home/somebody/data/images/{}.png"),
    "drive": ("train.json", "images", "C:\\data\\images\\{}.png"),
    "address": ("train.json", "images", "https://example.com/pictures/{}.png?size=big"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_the_tools_open_as_they_are(layout: str, tmp_path: Path) -> None:
    file, pictures, name = LAYOUTS[layout]
    for place in (tmp_path / file, tmp_path / pictures / "x"):
        place.parent.mkdir(parents=True, exist_ok=True)
    for number in (7, 9):
        PICTURE.save(tmp_path / pictures / f"{number}.png")
    images = [image(id=number, file_name=name.format(number)) for number in (7, 9)]
    found = {"images": images, "annotations": [annotation()], "categories": [{"id": 3, "name": "ant"}]}
    (tmp_path / file).write_text(json.dumps(found), encoding="utf-8-sig")
    records = CocoRecords(tmp_path, "train")
    assert [records.name(k) for k in range(2)] == [str(tmp_path / pictures / f"{number}.png") for number in (7, 9)]
    assert (records.pixels(0) == np.asarray(PICTURE)).all()
    assert records.truth(0).boxes.tolist() == [[4, 4, 14, 12]]
    assert records.notes == ()
    with pytest.raises(DataError, match="no annotations of its test part"):
        CocoRecords(tmp_path, "test")


def test_the_part_for_testing_has_the_names_of_the_tools(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        (tmp_path / part).mkdir()
        PICTURE.save(tmp_path / part / "7.png")  # of one name in both parts
        found = {"images": [image()], "annotations": [annotation()], "categories": [{"id": 3, "name": "ant"}]}
        (tmp_path / part / "_annotations.coco.json").write_text(json.dumps(found))
    assert [CocoRecords(tmp_path, part).name(0) for part in ("train", "test")] == [
        str(tmp_path / part / "7.png") for part in ("train", "valid")
    ]


def test_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "outside.png")
    (tmp_path / "data").mkdir()
    names = ["../outside.png", "../../outside.png", str(tmp_path / "outside.png")]
    images = [image(id=10 + k, file_name=name) for k, name in enumerate(names)]
    records = CocoRecords(write(tmp_path / "data", [annotation()], images=[image(), *images]), "train")
    assert len(records) == 1
    assert records.notes == (Note("images without a file", tuple(names), 3),)


def test_what_is_written_otherwise_is_understood(tmp_path: Path) -> None:
    flat, points = [4, 4, 14, 4, 14, 12, 4, 12], [[4, 4], [14, 4], [14, 12], [4, 12]]
    same: list[dict[str, Any]] = [
        {"bbox": ["4", "4.0", "10", "8"], "category_id": "3", "image_id": "7"},
        {"bbox": [4, 4, 10, 8], "category_id": 3.0, "iscrowd": None, "area": "80"},
        {"bbox": None, "segmentation": flat, "iscrowd": False},
        {"bbox": [], "segmentation": points, "area": float("nan")},
        {"segmentation": [flat, [1, 1], ["x"] * 6], "iscrowd": "0"},
    ]
    images = [image(width="40"), image(id="9", file_name="9.png", width=None, height=None)]
    folder = write(tmp_path, [annotation(**changes) for changes in same], images=images)
    truth = CocoRecords(folder, "train", masks=True).truth(0)
    assert truth.masks is not None
    assert truth.boxes.tolist() == [[4, 4, 14, 12]] * 5
    assert truth.areas.tolist() == [80] * 5
    assert not truth.crowds.any()
    assert (truth.masks == truth.masks[0]).all()
    assert truth.masks[0].sum() == 80
    assert [entry["width"] for entry in CocoRecords(folder, "train").entries] == [40, 40]


def test_what_cannot_be_used_is_left_out_and_named(tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [
        {"bbox": [float("inf"), 0, 1, 1]},
        {"bbox": [0, 0, float("nan"), 1]},
        {"bbox": [0, 0, 1e400, 1]},
        {"bbox": [5, 5, 0, 4]},
        {"bbox": [100, 5, 4, 4]},
        {"image_id": 77},
        {"image_id": 8},
    ]
    images = [image(), image(), image(id=8, file_name="8.png"), image(id=9, file_name="9.png"), image(id=10)]
    entries = [annotation(id=100 + k, **changes) for k, changes in enumerate(bad)]
    folder = write(tmp_path, [annotation(), annotation(image_id=10), *[annotation()] * 8, *entries], images=images)
    records = CocoRecords(folder, "train")
    assert len(records) == 2
    assert len(records.truth(0)) == 10  # those of its second id are its own, too
    told = {note.what: (note.total, note.names) for note in records.notes}
    assert told == {
        "images that are listed twice": (2, ("7.png", "7.png")),
        "images without a file": (1, ("8.png",)),
        "boxes that are not finite": (3, tuple(f"annotation {n} of 7.png" for n in (100, 101, 102))),
        "boxes without area": (1, ("annotation 103 of 7.png",)),
        "boxes outside of their image": (1, ("annotation 104 of 7.png",)),
        "annotations of images that there are not": (1, ("annotation 105 of image 77",)),
    }


def test_roboflows_name_of_the_whole_is_no_class_and_equal_names_are_told_apart(tmp_path: Path) -> None:
    whole = {"id": 0, "name": "insects", "supercategory": "none"}
    kinds = [{"id": n, "name": name, "supercategory": "insects"} for n, name in ((1, "ant"), (3, "bee"), (5, "ant"))]
    records = CocoRecords(
        write(tmp_path, [annotation(), annotation(category_id=5)], categories=[whole, *kinds]), "train"
    )
    assert records.class_names == ("ant (category 1)", "bee", "ant (category 5)")
    assert records.truth(0).classes.tolist() == [1, 2]
    assert [note.line() for note in records.notes] == [
        "categories that only group others left out: 1 (insects)",
        "categories with the same name are distinguished by their ids: ant",
    ]
    used = CocoRecords(write(tmp_path, [annotation(category_id=0)], categories=[whole, *kinds]), "train")
    assert used.class_names[0] == "insects"


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    return isoflop(capsys, "data", "check", *arguments)


def test_dense_data_are_checked_as_others_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "boxes").mkdir()
    folder = write(tmp_path / "boxes", [annotation(), annotation(bbox=[0, 0, 0, 0])])
    status, out, _ = check(capsys, f"coco:{folder}?masks=1")
    assert status == 0
    for told in ("2 images", "formats: PNG 2", "classes: 2, 0 to 1 images each", "boxes without area left out: 1"):
        assert told in out
    Image.new("RGB", (10, 10)).save(folder / "images" / "9.png")
    status, out, _ = check(capsys, f"coco:{folder}", "--workers", "2")
    assert (status, "9.png: 10×10 pixels, but train.json says 40×24" in out) == (1, True)
    numbers = np.zeros(SIZE, np.uint8)
    numbers[0] = 1
    maps(tmp_path / "maps", numbers)
    (tmp_path / "maps" / "images" / "training" / "notes.txt").write_text("of somebody")
    status, out, _ = check(capsys, f"ade20k:{tmp_path / 'maps'}?classes=3")
    assert status == 0
    for told in ("1 images", "classes: 3, 0 to 1 images each", "files that are no pictures left out: 1 (notes.txt)"):
        assert told in out
    status, out, _ = check(capsys, f"ade20k:{tmp_path / 'maps'}?classes=1")
    assert (status, "class 1, but there are 1 classes" in out) == (1, True)
    assert check(capsys, "scenes?classes=3&images=4")[0] == 0


def test_a_damaged_picture_is_replaced_and_counted(tmp_path: Path) -> None:
    folder = write(tmp_path, [annotation()])
    (folder / "images" / "7.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    source = open_source(f"coco:{folder}", split="train", image_size=32)
    assert isinstance(source, DenseSource)
    images, _, damages = source.read_views(np.array([0, 1]), JITTERS["none"], np.zeros((2, 64)))
    assert (images[0] == images[1]).all()
    assert [damage.name for damage in damages] == [str(folder / "images" / "7.png")]
    with pytest.raises(DataError, match=r"1 of 2 images are damaged, .*7\.png"):
        list(batches(source, seed=0, batch_size=2, start_step=0, stop_step=1))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [3, 5], "counts": "abc"}, "a mask of 5×3 pixels, but its image has 40×24"),
        ({"size": None, "counts": "abc"}, "a mask of None pixels, but its image has 40×24"),
        ({"size": [24, 40], "counts": [10, 10**9]}, "a damaged mask"),
        ([["a"] * 6], "a damaged mask"),
        ([[1, 2, 3, 4]], "neither run lengths nor polygons of three points"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(segmentation: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        mask_of(segmentation, SIZE, "here")


def test_a_picture_of_another_size_than_announced_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, [annotation()])
    Image.new("RGB", (10, 10)).save(folder / "images" / "7.png")
    with pytest.raises(DataError, match=r"10×10 pixels, but train\.json says 40×24"):
        CocoRecords(folder, "train").pixels(0)


def maps(folder: Path, numbers: np.ndarray, picture: tuple[int, int] = SIZE) -> Path:
    for kind, image in (("images", Image.new("RGB", picture[::-1])), ("annotations", Image.fromarray(numbers))):
        (folder / kind / "training").mkdir(parents=True)
        image.save(folder / kind / "training" / "a.png")
    return folder


def test_numbers_below_the_first_class_and_the_ignored_one_count_nowhere(tmp_path: Path) -> None:
    numbers = np.zeros(SIZE, np.uint8)
    numbers[0, :4] = 1, 2, 9, 255
    truth = MapRecords(maps(tmp_path, numbers), "train", classes=2, ignore=9, first=1).truth(0)
    assert truth[0, :5].tolist() == [0, 1, 255, 255, 255]


def test_maps_that_cannot_be_are_refused_in_one_line(tmp_path: Path) -> None:
    numbers = np.full(SIZE, 5, np.uint8)
    folder = maps(tmp_path, numbers, picture=(8, 8))
    with pytest.raises(DataError, match="how many classes there are is not known"):
        MapRecords(folder, "train")
    with pytest.raises(DataError, match="class 5, but there are 3 classes from 0 on"):
        MapRecords(folder, "train", classes=3).truth(0)
    with pytest.raises(DataError, match="8×8 pixels, but its map of classes has 40×24"):
        open_source(f"ade20k:{folder}?classes=6", split="train", image_size=32, heldout=0).read(np.array([0]))
    (folder / "annotations" / "training" / "a.png").unlink()
    with pytest.raises(DataError, match=r"no map for a\.png \(1 of 1 pictures have none\)"):
        MapRecords(folder, "train", classes=6)
    with pytest.raises(DataError, match="no folder images/test or images/val"):
        MapRecords(folder, "test", classes=6)


@pytest.mark.parametrize(("names", "message"), [(b"\n", "0 classes; maps of bytes"), (b"a\xff\n", "not UTF-8 text")])
def test_names_of_classes_that_cannot_be_are_refused(tmp_path: Path, names: bytes, message: str) -> None:
    folder = maps(tmp_path, np.zeros(SIZE, np.uint8))
    (folder / "classes.txt").write_bytes(names)
    with pytest.raises(DataError, match=message):
        MapRecords(folder, "train")


def test_dense_data_are_known_by_their_pictures_too(tmp_path: Path) -> None:
    def fingerprints() -> tuple[str, str]:
        boxes = CocoRecords(tmp_path / "boxes", "train")
        return boxes.fingerprint, MapRecords(tmp_path / "maps", "train", classes=1).fingerprint

    (tmp_path / "boxes").mkdir()
    write(tmp_path / "boxes", [annotation()])
    maps(tmp_path / "maps", np.zeros(SIZE, np.uint8))
    before = fingerprints()
    assert fingerprints() == before
    for path in (tmp_path / "boxes/images/9.png", tmp_path / "maps/images/training/a.png"):
        content = bytearray(path.read_bytes())
        content[-20] ^= 1
        path.write_bytes(content)
    after = fingerprints()
    assert after[0] != before[0]
    assert after[1] != before[1]


def test_scenes_are_the_same_from_files_and_from_the_generator(tmp_path: Path) -> None:
    told = ["--images", "2", "--val-images", "2", "--size", "64", "--classes", "3"]
    with pytest.raises(SystemExit) as caught:
        main(["data", "make-scenes", str(tmp_path / "scenes"), *told])
    assert caught.value.code == 0
    pairs = (("coco:{}?masks=1", "scenes?classes=3"), ("ade20k:{}", "scenes?classes=3&task=segment"))
    for stored, generated in pairs:
        uris = (stored.format(tmp_path / "scenes"), generated)
        one, other = (open_source(uri, split="test", image_size=64).read(np.array([1, 0])) for uri in uris)
        assert (one[0] == other[0]).all()
        assert (one[1] == other[1]).all()


def test_real_data_are_read_whole(real_data: Path) -> None:
    cells, nuclei = CocoRecords(real_data / "bccd", "train"), CocoRecords(real_data / "nuclei", "train", masks=True)
    assert (len(cells), cells.class_names) == (205, ("RBC", "WBC", "Platelets"))
    truth = nuclei.truth(0)
    assert truth.masks is not None
    np.testing.assert_array_equal(truth.masks.sum(axis=(1, 2)), truth.areas)  # areas are those of the file
    streets = MapRecords(real_data / "camvid", "test", classes=11, ignore=11)
    assert len(streets) == 101
    assert set(np.unique(streets.truth(0))) <= {*range(11), 255}


@pytest.mark.parametrize("name", ["file", "full"])
def test_scenes_do_not_go_where_something_is(name: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    for file in (tmp_path / "file", tmp_path / "full" / "mine"):
        file.write_text("mine")
    with pytest.raises(DataError, match="exists already; scenes need a new folder"):
        write_scenes(tmp_path / name, images=1, val_images=1, size=32, classes=2)
