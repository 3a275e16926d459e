"""Parquet: which files and columns are meant is told or asked for, and no process holds the images in memory."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from isoflop.data import batches, check, open_source
from isoflop.data.opening import open_records
from isoflop.data.sources import parquet
from isoflop.errors import DataError
from tests.data.pictures import encoded, picture
from tests.processes import at_once, failures


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def images(count: int = 4, first: int = 0) -> list[dict[str, Any]]:
    return [{"bytes": encoded(picture(k), "PNG"), "path": None} for k in range(first, first + count)]


def write(path: Path, columns: dict[str, Any], features: Any = None, **options: Any) -> str:
    """A Parquet file with `features` in the metadata of Hugging Face; its URI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if features is not None:
        text = features if isinstance(features, bytes) else json.dumps({"info": {"features": features}}).encode()
        table = table.replace_schema_metadata({"huggingface": text})
    pq.write_table(table, path, **options)
    return f"parquet:{path}"


def notes(uri: str) -> list[str]:
    return [note.line() for note in open_records(uri, "train").notes]


def first_images(uri: str) -> list[bytes]:
    records = open_records(uri, "train")
    return [records.read(k) for k in range(len(records))]


@pytest.mark.parametrize("name", ["image_id", "width", "caption"])
def test_a_number_or_text_beside_the_image_is_no_class(tmp_path: Path, name: str) -> None:
    values = [640, 480, 640, 480] if name != "caption" else list("abcd")
    uri = write(tmp_path / "a.parquet", {"image": images(), name: values})
    records = open_records(uri, "train")
    assert records.labels.tolist() == [-1] * 4
    assert notes(uri) == [f"no column is called a label; label=COLUMN takes one (`{name}`)"]
    named = open_records(f"{uri}?label={name}", "train")
    assert len(named.class_names) >= 2
    assert not named.notes
    assert named.fingerprint != records.fingerprint


def test_a_mask_is_not_taken_for_the_image(tmp_path: Path) -> None:
    masks = images(first=50)
    uri = write(tmp_path / "a.parquet", {"mask": masks, "image": images(), "label": [0, 1, 0, 1]})
    assert first_images(uri) == [row["bytes"] for row in images()]
    assert notes(uri) == ["the column `image` is taken for the images"]
    assert first_images(f"{uri}?image=mask") == [row["bytes"] for row in masks]
    report = check(uri)
    assert any("the column `image` is taken for the images" in line for line in report.lines())
    asked = write(tmp_path / "b.parquet", {"mask": masks, "photo": images(), "label": [0, 1, 0, 1]})
    with pytest.raises(DataError, match=r"images could be `mask`, `photo`; name one, as in parquet:\S+\?image=mask"):
        open_records(asked, "train")
    declared = write(tmp_path / "c.parquet", {"depth": masks, "photo": images()}, {"photo": {"_type": "Image"}})
    assert first_images(declared) == [row["bytes"] for row in images()]


def test_of_two_columns_of_labels_one_is_asked_for(tmp_path: Path) -> None:
    columns = {"img": images(), "fine_label": [0, 1, 2, 3], "coarse_label": [0, 0, 1, 1]}
    classes = {name: {"names": list("abcd"), "_type": "ClassLabel"} for name in ("fine_label", "coarse_label")}
    uri = write(tmp_path / "a.parquet", columns, classes)
    with pytest.raises(DataError, match=r"labels could be `fine_label`, `coarse_label`; name one"):
        open_records(uri, "train")
    assert open_records(f"{uri}?label=coarse_label", "train").labels.tolist() == [0, 0, 1, 1]
    both = write(tmp_path / "b.parquet", {"image": images(), "label": [0, 1, 0, 1], "class": list("abab")})
    assert open_records(both, "train").labels.tolist() == [0, 1, 0, 1]
    assert notes(both) == ["the column `label` is taken for the classes"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("image=label", "the column `label` holds no encoded images, but int64"),
        ("image=photo", "no column `photo` for `image`; the columns are image, label, score"),
        ("label=kind", "no column `kind` for `label`"),
        ("label=score", "labels are class numbers or names, not double"),
        ("config=../x", "no folder `../x` in it"),
        ("lable=kind", "did you mean `label`"),
    ],
)
def test_a_wrong_name_gets_one_clear_line(tmp_path: Path, query: str, message: str) -> None:
    (tmp_path / "x").mkdir()
    write(tmp_path / "data" / "train.parquet", {"image": images(), "label": [0, 1, 0, 1], "score": [0.5] * 4})
    with pytest.raises(DataError, match=message) as raised:
        open_records(f"parquet:{tmp_path / 'data'}?{query}", "train")
    assert "\n" not in str(raised.value)


def test_configurations_are_not_put_together(tmp_path: Path) -> None:
    for config, count in (("full", 4), ("small", 2)):
        for split in ("train", "test"):
            write(tmp_path / config / f"{split}-00000-of-00001.parquet", {"image": images(count)})
    uri = f"parquet:{tmp_path}"
    for part in ("train", "test"):
        with pytest.raises(DataError, match=r"2 configurations \(full, small\); name one, as in \S+\?config=full"):
            open_records(uri, part)  # type: ignore[arg-type]
        assert len(open_records(f"{uri}?config=small", part)) == 2  # type: ignore[arg-type]


def test_splits_that_begin_alike_are_not_put_together(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / f"train-{number:05d}-of-00002-0123456789abcdef.parquet", {"image": images()})
    write(tmp_path / "train_extra-00000-of-00001.parquet", {"image": images()})
    assert len(open_records(f"parquet:{tmp_path}", "train")) == 8
    assert notes(f"parquet:{tmp_path}") == ["files beside `train` left out: 1 (train_extra-00000-of-00001.parquet)"]
    for path in tmp_path.glob("train-*"):
        path.rename(path.with_name(path.name.replace("train-", "train_basic-")))
    with pytest.raises(DataError, match="which files are the train part, train_basic, train_extra"):
        open_records(f"parquet:{tmp_path}", "train")


def test_a_folder_may_name_the_part(tmp_path: Path) -> None:
    """As in the branch `refs/convert/parquet` of the Hugging Face Hub."""
    for config in ("default", "other"):
        for split, count in (("train", 3), ("test", 1)):
            for number in range(2):
                write(tmp_path / config / split / f"{number:04d}.parquet", {"image": images(count)})
    assert len(open_records(f"parquet:{tmp_path}?config=default", "train")) == 6
    assert len(open_records(f"parquet:{tmp_path / 'other'}", "test")) == 2


def test_integers_and_bytes_of_any_width_go_together(tmp_path: Path) -> None:
    plain = [row["bytes"] for row in images()]
    kinds = (
        (pa.int32(), images()),
        (pa.uint8(), pa.array(plain, pa.large_binary())),
        (pa.int64(), pa.array(plain, pa.binary())),
    )
    for number, (kind, column) in enumerate(kinds):
        labels = pa.array([0, 1, 2, 1], kind)
        write(tmp_path / f"train-{number:05d}-of-00003.parquet", {"image": column, "label": labels})
    records = open_records(f"parquet:{tmp_path}", "train")
    assert records.labels.tolist() == [0, 1, 2, 1] * 3
    assert [records.read(k) for k in range(12)] == plain * 3
    write(tmp_path / "train-00003-of-00003.parquet", {"image": images(), "label": list("abcd")})
    with pytest.raises(DataError, match="the column `label` is string, but int64 in train-00000"):
        open_records(f"parquet:{tmp_path}", "train")
    write(tmp_path / "train-00003-of-00003.parquet", {"image": images()})
    with pytest.raises(DataError, match="no column `label`, which train-00000"):
        open_records(f"parquet:{tmp_path}", "train")


def test_words_in_a_dictionary_and_lists_with_gaps(tmp_path: Path) -> None:
    words = pa.array(["owl", "cat", "owl", "ant"]).dictionary_encode()
    uri = write(tmp_path / "a.parquet", {"image": images(), "label": words})
    assert open_records(uri, "train").labels.tolist() == [2, 1, 2, 0]
    uri = write(tmp_path / "b.parquet", {"image": images(), "label": [[0], [1, None], [], [2]]})
    with pytest.raises(DataError, match="a list of labels has a place without a number"):
        open_records(uri, "train")


@pytest.mark.parametrize(
    "features",
    [
        b"not json",
        b"[" * 100_000,
        b"\xff\xfe",
        b"[]",
        b'{"info": null}',
        b'{"info": {"features": [1, 2]}}',
        {"label": None},
        {"label": "ClassLabel"},
        {"label": []},
        {"label": {"names": None, "_type": "ClassLabel"}},
        {"label": {"names": [1, 2], "_type": "ClassLabel"}},
        {"label": {"names": {"0": "a"}, "_type": "ClassLabel"}},
        {"label": {"feature": None, "_type": "Sequence"}},
        {"image": {"_type": ["Image"]}},
    ],
)
def test_odd_metadata_are_passed_over(tmp_path: Path, features: Any) -> None:
    uri = write(tmp_path / "a.parquet", {"image": images(), "label": [0, 1, 0, 1]}, features)
    records = open_records(uri, "train")
    assert records.labels.tolist() == [0, 1, 0, 1]
    assert records.class_names == ("0", "1")


def test_names_of_classes_come_from_a_label_or_a_list_of_them(tmp_path: Path) -> None:
    label = {"names": ["owl", "cat"], "_type": "ClassLabel"}
    for feature in (label, [label], {"feature": label, "_type": "Sequence"}, {"feature": label, "_type": "List"}):
        several = feature is not label
        values = [[0], [1], [], [0, 1]] if several else [0, 1, 0, 1]
        uri = write(tmp_path / "a.parquet", {"image": images(), "label": values}, {"label": feature})
        assert open_records(uri, "train").class_names == ("owl", "cat")


def test_rows_without_an_image_are_damaged(tmp_path: Path) -> None:
    rows = [*images(3), {"bytes": None, "path": "elsewhere.png"}, None]
    report = check(write(tmp_path / "a.parquet", {"image": pa.array(rows)}))
    assert [(damage.sample, damage.reason) for damage in report.broken] == [
        (3, "unreadable: the row has no image"),
        (4, "unreadable: the row has no image"),
    ]


def large(path: Path, rows: int = 400, **options: Any) -> tuple[str, list[bytes]]:
    contents = [os.urandom(20_000) for _ in range(rows)]
    column = [{"bytes": content, "path": None} for content in contents]
    return write(path, {"image": column}, row_group_size=32, **options), contents


@pytest.mark.parametrize("has_copy", [True, False])
def test_images_are_read_in_any_order_and_by_other_processes(
    tmp_path: Path, has_copy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_copy:
        monkeypatch.setattr(parquet, "_SHARE_OF_DISK", 0.0)
        monkeypatch.setattr(parquet, "_MOST_HELD", 2_000_000)
    uri, contents = large(tmp_path / "a.parquet")
    if has_copy:
        records = open_records(uri, "train")
    else:
        with pytest.warns(UserWarning, match=r"in any order, needs 0\.0 GB.*free.*ISOFLOP_CACHE"):
            records = open_records(uri, "train")
    for k in np.random.default_rng(0).permutation(400)[: 400 if has_copy else 40]:
        assert records.read(k) == contents[k]
    if has_copy:
        assert len(pickle.dumps(records)) < 20_000
        assert pickle.loads(pickle.dumps(records)).read(7) == contents[7]
    else:
        held = records._images._held  # type: ignore[attr-defined]
        assert sum(chunk.nbytes for group in held.values() for chunk in group) < 2_000_000


def test_a_damaged_copy_is_made_again_in_the_middle_of_a_run(tmp_path: Path, cache: Path) -> None:
    uri, contents = large(tmp_path / "a.parquet", rows=40)
    records = open_records(uri, "train")
    (copy,) = (cache / "encoded").glob("*/images.bin")
    with copy.open("r+b") as file:  # what is open sees it
        file.seek(5 * 20_000 + 77)
        file.write(b"damage")
    found = at_once(*[lambda: [records.read(k) for k in range(40)]] * 4)
    assert not failures(found)
    assert found == [contents] * 4
    assert [records.read(k) for k in range(40)] == contents
    (copy,) = (cache / "encoded").glob("*/images.bin")
    assert copy.read_bytes() == b"".join(contents)
    os.truncate(copy, 100)
    assert [records.read(k) for k in range(40)] == contents


def test_eight_processes_make_one_copy(tmp_path: Path, cache: Path) -> None:
    uri, contents = large(tmp_path / "a.parquet", rows=64)
    found = at_once(*[lambda: first_images(uri)] * 8)
    assert not failures(found)
    assert found == [contents] * 8
    assert len(list((cache / "encoded").iterdir())) == 1


def test_content_decides_which_copy_is_read(tmp_path: Path, cache: Path) -> None:
    """Of files of one size, also where it was changed in place and its time set back."""
    found = []
    path = tmp_path / "a.parquet"
    for colour in (1, 200):
        rows = [{"bytes": bytes([colour]) * 100_000, "path": None}] * 20
        uri = write(path, {"image": rows}, compression="none", use_dictionary=False)
        os.utime(path, (1e9, 1e9))
        found.append((path.stat().st_size, open_records(uri, "train").fingerprint, first_images(uri)[0][0]))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]
    assert [one[2] for one in found] == [1, 200]


def test_memory_is_bounded_and_none_of_it_is_the_images(tmp_path: Path) -> None:
    """60 MB of images in one group of rows: the process that copies them, and one that reads them all."""
    rows = [{"bytes": os.urandom(30_000), "path": None} for _ in range(2_000)]
    uri = write(tmp_path / "a.parquet", {"image": rows}, row_group_size=10_000)
    code = (
        "import resource, sys\n"
        "from isoflop.data.opening import open_records\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "records = open_records(sys.argv[1], 'train')\n"
        "total = sum(len(records.read(k)) for k in range(len(records)))\n"
        "print(total, peak() - before)\n"
    )
    for _ in range(2):
        result = subprocess.run([sys.executable, "-c", code, uri], capture_output=True, text=True, check=True)
        total, grown = map(int, result.stdout.split())
        assert total == 60_000_000
        assert grown < 40_000  # KiB; without the images it is 10,000 to 20,000


def test_workers_read_what_the_run_reads(tmp_path: Path) -> None:
    uri = write(tmp_path / "a.parquet", {"image": images(40), "label": [k % 4 for k in range(40)]})
    source = open_source(f"{uri}?decode=each", split="train", image_size=16, heldout=8)
    plan = {"seed": 0, "batch_size": 8, "start_step": 0, "stop_step": 4}
    for one, other in zip(batches(source, **plan), batches(source, workers=2, **plan), strict=True):
        assert np.array_equal(one.images, other.images)
