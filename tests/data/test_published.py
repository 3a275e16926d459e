"""Published data sets are read from their own lists: small ones of the same layout, made here."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from isoflop.data import open_source
from isoflop.data.opening import open_records
from isoflop.errors import DataError


def picture(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (shade, 0, 0)).save(path)


def test_pets_are_split_and_named_by_their_annotations(tmp_path: Path) -> None:
    for name in ("Abyssinian_1", "Abyssinian_2", "great_pyrenees_7"):
        picture(tmp_path / "images" / f"{name}.jpg")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "trainval.txt").write_text(
        "#Image CLASS-ID\nAbyssinian_1 1 1 1\ngreat_pyrenees_7 2 2 1\n"
    )
    (tmp_path / "annotations" / "test.txt").write_text("Abyssinian_2 1 1 1\n")
    train, test = (open_records(f"pets:{tmp_path}", part) for part in ("train", "test"))
    assert train.class_names == ("Abyssinian", "great_pyrenees")
    assert train.labels.tolist() == [0, 1]
    assert test.name(0).endswith("Abyssinian_2.jpg")
    source = open_source(f"pets:{tmp_path}", split="train", image_size=96, heldout=0)
    assert source.read(np.asarray([1]))[1].tolist() == [1]


def test_flowers_train_on_training_and_validation_images(tmp_path: Path) -> None:
    for k in range(1, 6):
        picture(tmp_path / "jpg" / f"image_{k:05d}.jpg")
    savemat(tmp_path / "imagelabels.mat", {"labels": np.asarray([[2, 1, 1, 2, 1]], dtype=np.uint8)})
    savemat(tmp_path / "setid.mat", {"trnid": [[5]], "valid": [[1]], "tstid": [[2, 3, 4]]})
    train, test = (open_records(f"flowers:{tmp_path}", part) for part in ("train", "test"))
    assert (train.labels.tolist(), test.labels.tolist()) == ([1, 0], [0, 0, 1])
    (tmp_path / "setid.mat").unlink()
    with pytest.raises(DataError, match=r"setid\.mat are needed"):
        open_records(f"flowers:{tmp_path}", "train")


def test_caltech_trains_on_thirty_images_a_class_always_the_same(tmp_path: Path) -> None:
    for name, count in (("BACKGROUND_Google", 33), ("accordion", 31)):
        for k in range(count):
            picture(tmp_path / "101_ObjectCategories" / name / f"image_{k:04d}.jpg")
    train, test = (open_records(f"caltech101:{tmp_path}", part) for part in ("train", "test"))
    assert np.bincount(train.labels).tolist() == [30, 30]
    assert np.bincount(test.labels).tolist() == [3, 1]
    names = [{records.name(k) for k in range(len(records))} for records in (train, test)]
    assert not names[0] & names[1]


def test_birds_are_split_by_their_list(tmp_path: Path) -> None:
    for name in ("001.A/a.jpg", "002.B/b.jpg", "002.B/c.jpg"):
        picture(tmp_path / "images" / name)
    (tmp_path / "images.txt").write_text("1 001.A/a.jpg\n2 002.B/b.jpg\n3 002.B/c.jpg\n")
    (tmp_path / "image_class_labels.txt").write_text("1 1\n2 2\n3 2\n")
    (tmp_path / "train_test_split.txt").write_text("1 1\n2 1\n3 0\n")
    (tmp_path / "classes.txt").write_text("1 001.A\n2 002.B\n")
    train, test = (open_records(f"birds:{tmp_path}", part) for part in ("train", "test"))
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1], [1])
    assert train.class_names == ("001.A", "002.B")
    (tmp_path / "images" / "002.B" / "c.jpg").unlink()
    with pytest.raises(DataError, match=r"c\.jpg is listed and not there"):
        open_records(f"birds:{tmp_path}", "test")


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_the_binary_cifar_is_read_pixel_for_pixel(kind: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    labels = np.asarray([[1], [0], [1], [1]], dtype=np.uint8)
    coarse = [np.zeros_like(labels)] if kind == "cifar100" else []
    rows = np.concatenate([*coarse, labels, pixels], axis=1)
    rows.tofile(tmp_path / ("train.bin" if coarse else "data_batch_1.bin"))
    rows[:2].tofile(tmp_path / ("test.bin" if coarse else "test_batch.bin"))
    (tmp_path / ("fine_label_names.txt" if coarse else "batches.meta.txt")).write_text("cat\ndog\n\n")
    images, found = open_source(f"cifar:{tmp_path}", split="test", image_size=32).read(np.arange(2))
    assert found.tolist() == [1, 0]
    assert np.array_equal(images.numpy().reshape(2, -1), pixels[:2])
    assert len(open_source(f"cifar:{tmp_path}", split="train", image_size=32, heldout=0)) == 4
    rows.ravel()[:100].tofile(tmp_path / ("test.bin" if coarse else "test_batch.bin"))
    with pytest.raises(DataError, match="not whole rows"):
        open_records(f"cifar:{tmp_path}", "test")


def test_imagenet_v2_takes_folder_names_as_numbers(tmp_path: Path) -> None:
    for name in ("0", "2", "10"):
        picture(tmp_path / name / "x.jpeg")
    records = open_records(f"imagenet_v2:{tmp_path}", "test")
    assert records.labels.tolist() == [0, 2, 10]  # and not 0, 10, 2
    assert len(records.class_names) == 1000
    with pytest.raises(DataError, match="a test set and has no training images"):
        open_records(f"imagenet_v2:{tmp_path}", "train")
    (tmp_path / "n01440764").mkdir()
    with pytest.raises(DataError, match="expected folders named 0 to 999, found a folder `n01440764`"):
        open_records(f"imagenet_v2:{tmp_path}", "test")


def test_real_labels_are_several_and_images_without_any_are_left_out(tmp_path: Path) -> None:
    for k in range(1, 4):
        picture(tmp_path / "val" / f"ILSVRC2012_val_{k:08d}.JPEG")
    (tmp_path / "real.json").write_text(json.dumps([[3, 7], [], [999]]))
    source = open_source(f"imagenet_real:{tmp_path}", split="test", image_size=96)
    labels = source.labels()
    assert labels.shape == (2, 1000)
    assert [row.nonzero().flatten().tolist() for row in labels] == [[3, 7], [999]]
    (tmp_path / "real.json").write_text("[[1]]")
    with pytest.raises(DataError, match=r"3 validation images, but real\.json has labels for 1"):
        open_records(f"imagenet_real:{tmp_path}", "test")


def test_objectnet_keeps_what_imagenet_knows_and_loses_its_border(tmp_path: Path) -> None:
    mappings = {
        "folder_to_objectnet_label.json": {"alarm_clock": "Alarm clock", "air_freshener": "Air freshener"},
        "objectnet_to_imagenet_1k.json": {"Alarm clock": "analog clock; digital clock"},
        "pytorch_to_imagenet_2012_id.json": {"409": 0, "530": 1},
    }
    (tmp_path / "mappings").mkdir()
    for name, content in mappings.items():
        (tmp_path / "mappings" / name).write_text(json.dumps(content))
    (tmp_path / "mappings" / "imagenet_to_label_2012_v2").write_text("analog clock\ndigital clock\n")
    framed = np.full((44, 44, 3), 255, dtype=np.uint8)
    framed[2:-2, 2:-2] = (0, 0, 200)
    for folder in ("alarm_clock", "air_freshener"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        Image.fromarray(framed).save(tmp_path / "images" / folder / "a.png")
    source = open_source(f"objectnet:{tmp_path}", split="test", image_size=96)
    images, labels = source.read(np.asarray([0]))
    assert len(source) == 1
    assert labels.nonzero()[:, 1].tolist() == [409, 530]
    assert images[0, 0].max() == 0  # no white left
