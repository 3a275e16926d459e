"""Class numbers mean the same wherever they meet: in all parts of a data set, whatever classes a part lacks."""

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from isoflop.data import open_source
from isoflop.data.opening import open_records
from isoflop.errors import DataError
from tests.data.pictures import encoded, picture

MakeTar = Callable[[Path, list[tuple[str, bytes]]], Path]
Write = Callable[[Path, str, Sequence[object]], None]


def classes_of(uri: str, part: str) -> list[str]:
    records = open_records(uri, part)  # type: ignore[arg-type]
    return [records.class_names[k] for k in records.labels]


@pytest.fixture(params=["parquet", "shards", "table"])
def write(request: pytest.FixtureRequest, make_tar: MakeTar) -> tuple[str, Write]:
    """How a part with these labels is written in each layout that has labels as text."""

    def parquet(folder: Path, part: str, labels: Sequence[object]) -> None:
        images = [{"bytes": encoded(picture(k)), "path": None} for k in range(len(labels))]
        pq.write_table(pa.table({"image": images, "label": list(labels)}), folder / f"{part}.parquet")

    def shards(folder: Path, part: str, labels: Sequence[object]) -> None:
        members = [
            member
            for k, label in enumerate(labels)
            for member in ((f"{k}.jpg", encoded(picture(k))), (f"{k}.cls", str(label).encode()))
        ]
        make_tar(folder / f"{part}-000.tar", members)

    def table(folder: Path, part: str, labels: Sequence[object]) -> None:
        path = folder / "table.csv"
        rows = path.read_text() if path.exists() else "path,label,split\n"
        (folder / "0.jpg").write_bytes(encoded(picture(0)))
        path.write_text(rows + "".join(f"0.jpg,{label},{part}\n" for label in labels))

    kind = request.param
    return kind, {"parquet": parquet, "shards": shards, "table": table}[kind]


def uri_of(kind: str, folder: Path) -> str:
    return f"{kind}:{folder}" + ("/table.csv" if kind == "table" else "")


def test_names_are_numbered_over_all_parts(tmp_path: Path, write: tuple[str, Write]) -> None:
    """A test part that lacks the first class had every label off by one."""
    kind, write_part = write
    train, test = ["owl", "cat", "dog", "ant"], ["owl", "dog"]
    write_part(tmp_path, "train", train)
    write_part(tmp_path, "test", test)
    uri = uri_of(kind, tmp_path)
    assert classes_of(uri, "train") == train
    assert classes_of(uri, "test") == test
    assert open_records(uri, "test").class_names == ("ant", "cat", "dog", "owl")
    source = open_source(f"{uri}?decode=each", split="test", image_size=8)
    copy = pickle.loads(pickle.dumps(source))
    assert torch.equal(copy.read(np.arange(2))[1], torch.tensor([3, 2]))


@pytest.mark.parametrize("kind", ["parquet", "shards"])
def test_numbers_are_counted_over_all_parts(tmp_path: Path, make_tar: MakeTar, kind: str) -> None:
    if kind == "parquet":
        for part, labels in (("train", [0, 9, 3]), ("test", [3, 0])):
            images = [{"bytes": encoded(picture(k)), "path": None} for k in range(len(labels))]
            pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / f"{part}.parquet")
    else:
        for part, labels in (("train", [0, 9, 3]), ("test", [3, 0])):
            pairs = [[(f"{k}.jpg", encoded(picture(k))), (f"{k}.cls", b"%d" % n)] for k, n in enumerate(labels)]
            make_tar(tmp_path / f"{part}.tar", [member for pair in pairs for member in pair])
    records = open_records(f"{kind}:{tmp_path}", "test")
    assert len(records.class_names) == 10
    assert records.labels.tolist() == [3, 0]


def test_a_class_without_training_images_is_refused(tmp_path: Path, write: tuple[str, Write]) -> None:
    kind, write_part = write
    write_part(tmp_path, "train", ["owl", "cat"])
    write_part(tmp_path, "test", ["cat", "dog"])
    if kind == "table":  # whose rows are all there: the class counts
        assert open_records(uri_of(kind, tmp_path), "test").class_names == ("cat", "dog", "owl")
        return
    with pytest.raises(DataError, match="class `dog` is not among the 2 classes of the training part"):
        open_records(uri_of(kind, tmp_path), "test")


@pytest.mark.parametrize("kind", ["parquet", "shards"])
def test_names_in_one_part_and_numbers_in_the_other_are_refused(tmp_path: Path, make_tar: MakeTar, kind: str) -> None:
    for part, labels in (("train", ["owl", "cat"]), ("test", [0, 1])):
        images = [encoded(picture(k)) for k in range(2)]
        if kind == "parquet":
            pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / f"{part}.parquet")
        else:
            pairs = [[(f"{k}.jpg", i), (f"{k}.cls", str(labels[k]).encode())] for k, i in enumerate(images)]
            make_tar(tmp_path / f"{part}.tar", [member for pair in pairs for member in pair])
    with pytest.raises(DataError, match="one part has numbers for labels, the other one names"):
        open_records(f"{kind}:{tmp_path}", "test")


def class_label(names: list[str]) -> dict[bytes, bytes]:
    feature = {"label": {"names": names, "_type": "ClassLabel"}}
    return {b"huggingface": json.dumps({"info": {"features": feature}}).encode()}


def test_listed_names_in_another_order_are_mapped(tmp_path: Path) -> None:
    """Parquet whose metadata name the same classes, in each part in another order; and in one part none."""
    images = [encoded(picture(k)) for k in range(3)]
    for part, names, numbers in (
        ("train", ["ant", "cat", "owl"], [0, 1, 2]),
        ("test", ["owl", "ant", "cat"], [0, 1, 2]),
    ):
        table = pa.table({"image": images, "label": numbers}).replace_schema_metadata(class_label(names))
        pq.write_table(table, tmp_path / f"{part}.parquet")
    assert classes_of(f"parquet:{tmp_path}", "test") == ["owl", "ant", "cat"]
    assert open_records(f"parquet:{tmp_path}", "test").labels.tolist() == [2, 0, 1]
    pq.write_table(pa.table({"image": images[:2], "label": [2, 1]}), tmp_path / "test.parquet")
    assert classes_of(f"parquet:{tmp_path}", "test") == ["owl", "cat"]


def test_a_list_of_classes_beside_the_training_shards_counts_for_the_test_shards(
    tmp_path: Path, make_tar: MakeTar
) -> None:
    """As the Hub has them: train/*.tar and test/*.tar."""
    for part, numbers in (("train", [0, 1, 2]), ("test", [2, 1])):
        pairs = [[(f"{k}.jpg", encoded(picture(k))), (f"{k}.cls", b"%d" % n)] for k, n in enumerate(numbers)]
        make_tar(tmp_path / part / "0.tar", [member for pair in pairs for member in pair])
    (tmp_path / "train" / "classes.txt").write_text("ant\ncat\nowl\n")
    assert classes_of(f"shards:{tmp_path}", "test") == ["owl", "cat"]


def test_several_classes_are_mapped_too(tmp_path: Path) -> None:
    images = [encoded(picture(k)) for k in range(2)]
    pq.write_table(pa.table({"image": images, "labels": [[0, 4], [1]]}), tmp_path / "train.parquet")
    pq.write_table(pa.table({"image": images, "labels": [[2], []]}), tmp_path / "test.parquet")
    assert open_records(f"parquet:{tmp_path}", "test").labels.tolist() == [[0, 0, 1, 0, 0], [0] * 5]
