"""The other kinds of sources: tables, several classes, no classes, library data sets, mixtures, options."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.datasets import load_digits

from isoflop.data import Source, batches, open_source
from isoflop.data.opening import open_records
from isoflop.errors import DataError
from tests.data.pictures import encoded, picture


def write_table(folder: Path, text: str, images: int = 6) -> Path:
    folder.mkdir(exist_ok=True)
    for k in range(images):
        (folder / f"{k}.jpg").write_bytes(encoded(picture(k)))
    path = folder / "table.csv"
    path.write_text(text)
    return path


def test_a_table_names_paths_labels_and_splits(tmp_path: Path) -> None:
    rows = "".join(f"{k}.jpg,{'owl' if k % 2 else 'cat'},{'train' if k < 4 else 'test'}\n" for k in range(6))
    path = write_table(tmp_path, "path,label,split\n" + rows)
    source = open_source(f"table:{path}", split="train", image_size=16, heldout=0)
    assert source.class_names == ("cat", "owl")
    assert source.read(np.arange(4))[1].tolist() == [0, 1, 0, 1]
    assert len(open_source(f"table:{path}", split="test", image_size=16)) == 2


def test_a_table_with_several_classes_gives_vectors(tmp_path: Path) -> None:
    path = write_table(tmp_path, "path,label\n0.jpg,sun|sea\n1.jpg,sea\n2.jpg,\n")
    source = open_source(f"table:{path}", split="train", image_size=16, heldout=0)
    labels = source.read(np.arange(3))[1]
    assert labels.dtype == torch.float32
    assert labels.tolist() == [[1, 1], [1, 0], [0, 0]]


def test_unlabelled_data_has_no_classes(tmp_path: Path) -> None:
    path = write_table(tmp_path, "path\n0.jpg\n1.jpg\n")
    source = open_source(f"table:{path}", split="train", image_size=16, heldout=0)
    assert source.num_classes == 0
    assert source.read(np.arange(2))[1].tolist() == [-1, -1]
    (tmp_path / "table.csv").unlink()
    assert len(open_source(f"folder:{tmp_path}", split="train", image_size=16, heldout=0)) == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("what,label\n0.jpg,a\n", "no column `path`"),
        ("file,image,label\n0.jpg,0.jpg,a\n", "columns `file` and `image` would do for `path`; call one `path`"),
        ("path,class,target\n0.jpg,a,1\n", "columns `class` and `target` would do for `label`"),
        ("path,label,Label\n0.jpg,a,1\n", "columns `label` and `Label` would do for `label`"),
        ("path,label\n0,5.jpg,a\n", "line 2: 3 cells, but 2 columns"),
        ("path,label\n", "no rows"),
        ("path,label\n0.jpg,a\n1.jpg,\n", "line 3: the label is missing"),
        ("path,label,split\n0.jpg,a,dev\n", "line 2: unknown split `dev`"),
        ("path,label\n,a\n", "line 2: no path"),
        ("path,label\n\0.jpg,a\n", "line 2: a null character in path"),
        ("path,label\n0.jpg," + "x" * 200_000, "not readable as CSV .field larger"),
        ("path,label\n0.jpg,\udce9\n", "not UTF-8"),
    ],
    ids=lambda value: value[:20],
)
def test_a_bad_table_gets_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = write_table(tmp_path, "")
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message):
        open_source(f"table:{path}", split="train", image_size=16)


@pytest.mark.parametrize(
    ("text", "guess"),
    [
        ("path,label\n0.jpg,cat\n1.jpg,owl\n", ""),
        ("path, label \n 0.jpg , cat\n1.jpg,owl \n , \n\n", ""),
        ("\ufeffpath,label\r\n0.jpg,cat\r\n1.jpg,owl\r\n", ""),
        ('"path", "label"\n"0.jpg", "cat"\n"1.jpg", "owl"\n', ""),
        ("path;label\n0.jpg;cat\n1.jpg;owl\n", "cells are separated by semicolons"),
        ("sep=;\npath;label\n0.jpg;cat\n1.jpg;owl\n", "cells are separated by semicolons"),
        ("path\tlabel\n0.jpg\tcat\n1.jpg\towl\n", "cells are separated by tabs"),
        ("Path,Label\n0.jpg,cat\n1.jpg,owl\n", "the column `Path` is taken for `path`"),
        ("id,filename,class,width\n7,0.jpg,cat,5\n8,1.jpg,owl,5\n", "the column `class` is taken for `label`"),
        ("image_path,label,set\n.\\0.jpg,cat,train\n1.jpg,owl,training\n", "the column `set` is taken for `split`"),
        ("path,label,set\n0.jpg,cat,A\n1.jpg,owl,B\n", ""),
    ],
)
def test_a_table_is_read_as_it_was_meant_and_guesses_are_said(tmp_path: Path, text: str, guess: str) -> None:
    path = write_table(tmp_path, "")
    path.write_text(text, newline="")
    records = open_records(f"table:{path}", "train")
    assert records.class_names == ("cat", "owl")
    assert records.labels.tolist() == [0, 1]
    assert [records.read(k) for k in range(2)] == [(tmp_path / f"{k}.jpg").read_bytes() for k in range(2)]
    notes = [note.line() for note in records.notes]
    assert guess in notes if guess else not notes
    path.write_text(text.replace("\ufeff", ""), encoding="utf-16", newline="")
    assert open_records(f"table:{path}", "train").labels.tolist() == [0, 1]


def test_a_table_without_labels_says_so_and_names_alike_are_told(tmp_path: Path) -> None:
    path = write_table(tmp_path, "path,species\n0.jpg,cat\n")
    (note,) = open_records(f"table:{path}", "train").notes
    assert note.line() == "no column `label` (but species): the images are unlabelled"
    path.write_text("path,label\n0.jpg,cat\n1.jpg,Cat\n")
    (note,) = open_records(f"table:{path}", "train").notes
    assert note.line() == "classes `Cat` and `cat` differ in case, spaces or accents alone"


def test_parquet_with_several_classes_names_or_none(tmp_path: Path) -> None:
    images = [{"bytes": encoded(picture(k)), "path": None} for k in range(3)]
    columns = {
        "several": {"image": images, "labels": [[0, 2], [], [1]]},
        "named": {"image": images, "label": ["owl", "cat", "owl"]},
        "unlabelled": {"image": images, "caption": ["a", "b", "c"]},
    }
    labels = {}
    for name, content in columns.items():
        pq.write_table(pa.table(content), tmp_path / f"{name}.parquet")
        source = open_source(f"parquet:{tmp_path / name}.parquet", split="train", image_size=16, heldout=0)
        labels[name] = source.read(np.arange(3))[1].tolist()
    assert labels == {"several": [[1, 0, 1], [0, 0, 0], [0, 1, 0]], "named": [1, 0, 1], "unlabelled": [-1, -1, -1]}


def test_parquet_that_is_damaged_or_misses_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="not readable as Parquet"):
        open_source(f"parquet:{tmp_path / 'bad.parquet'}", split="train", image_size=16)
    content = {"image": [{"bytes": encoded(picture(0)), "path": None}] * 2, "label": [1, None]}
    pq.write_table(pa.table(content), tmp_path / "missing.parquet")
    with pytest.raises(DataError, match="1 samples have no label"):
        open_source(f"parquet:{tmp_path / 'missing.parquet'}", split="train", image_size=16)
    for labels, message in (([0.5, 1.0], "numbers or names, not double"), ([["a"], ["b"]], "not string")):
        pq.write_table(pa.table({**content, "label": labels}), tmp_path / "odd.parquet")
        with pytest.raises(DataError, match=message):
            open_source(f"parquet:{tmp_path / 'odd.parquet'}", split="train", image_size=16)


def test_torchvision_data_sets_open_by_name(tmp_path: Path) -> None:
    """scikit-learn's digits in MNIST's files, read by torchvision's MNIST."""
    digits = load_digits()
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.zeros((100, 28, 28), dtype=np.uint8)
    images[:, :8, :8] = digits.images[:100] * 15
    for name in ("train", "t10k"):
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, 100, 28, 28) + images.tobytes())
        labels = digits.target[:100].astype(np.uint8).tobytes()
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 100) + labels)
    source = open_source(f"torchvision:mnist?root={tmp_path}", split="test", image_size=28, channels=1)
    pixels, labels_read = source.read(np.arange(100))
    assert np.array_equal(pixels[:, 0].numpy(), images)
    assert labels_read.tolist() == digits.target[:100].tolist()
    assert source.class_names[3] == "3 - three"


def test_data_sets_of_the_hub_are_their_parquet_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the hub's download replaced by a local folder, and without a network."""
    content = {"image": [{"bytes": encoded(picture(k)), "path": None} for k in range(10)], "label": list(range(10))}
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table(content), tmp_path / "data" / "train-00000-of-00001.parquet")
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.snapshot_download", lambda name, **options: str(tmp_path))
        assert len(open_source("hf:somebody/something", split="train", image_size=16, heldout=0)) == 10

    def offline(name: str, **options: object) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(DataError, match="hf:somebody/something: cannot be fetched"):
        open_source("hf:somebody/something", split="train", image_size=16)


def test_an_unknown_torchvision_data_set_gets_a_suggestion() -> None:
    with pytest.raises(DataError, match="did you mean `torchvision:CIFAR10`"):
        open_source("torchvision:cifar-10", split="train", image_size=32)


def test_a_mixture_shows_its_sources_in_proportion(image_folder: Path) -> None:
    uri = f"mixture:3*folder:{image_folder} + 1*digits"
    source = open_source(uri, split="train", image_size=16)
    folder = open_source(f"folder:{image_folder}", split="train", image_size=16)
    assert source.channels == 3
    assert source.class_names == ("cat", "dog", "owl", *"0123456789")
    assert len(source) == len(folder) + 1151
    for batch in batches(source, seed=0, batch_size=40, start_step=0, stop_step=5, augment="crop_flip"):
        assert int((batch.labels < 3).sum()) == 30
    images, labels = source.read(np.array([0, len(folder), 1]))
    assert torch.equal(images[::2], folder.read(np.array([0, 1]))[0])
    assert labels[1] >= 3


def test_a_mixture_joins_one_label_with_several_and_is_unlabelled_if_a_part_is(tmp_path: Path) -> None:
    for k in range(6):
        (tmp_path / f"{k}.png").write_bytes(encoded(picture(k), "PNG"))
    for name, labels in (("one", "ab" * 3), ("several", ("c|d", "|", "d", "c", "d", "c|d")), ("none", None)):
        rows = [f"{k}.png,{labels[k]}" if labels else f"{k}.png" for k in range(6)]
        header = "path,label" if labels else "path"
        (tmp_path / f"{name}.csv").write_text("\n".join([header, *rows]) + "\n")

    def mixed(*names: str) -> Source:
        parts = " + ".join(f"table:{tmp_path / name}.csv" for name in names)
        return open_source(f"mixture:{parts}", split="train", image_size=16, heldout=0)

    joined = mixed("one", "several")
    assert joined.class_names == ("a", "b", "c", "d")
    assert joined.has_several_labels
    labels = joined.read(np.arange(12))[1]
    assert labels[:2].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]
    assert labels[6:9].tolist() == [[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]]
    unlabelled = mixed("several", "none")
    assert (unlabelled.num_classes, unlabelled.has_several_labels) == (0, False)
    assert set(unlabelled.read(np.arange(12))[1].tolist()) == {-1}


def test_a_mixture_of_the_same_classes_shares_them(image_folder: Path) -> None:
    source = open_source(f"mixture:folder:{image_folder} + 0.5*folder:{image_folder}", split="train", image_size=16)
    assert source.num_classes == 3


def test_a_mixture_matches_classes_by_name(tmp_path: Path) -> None:
    """In whatever order each part has them; numbers without names are the same where there are equally many."""
    for k in range(4):
        (tmp_path / f"{k}.png").write_bytes(encoded(picture(k), "PNG"))
    for name, labels in (
        ("ab", "abab"),
        ("bc", "bccb"),
        ("xy", ("x|y", "y", "x", "x")),
        ("two", "0101"),
        ("three", "0120"),
    ):
        rows = [f"{k}.png,{label}" for k, label in enumerate(labels)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["path,label", *rows]) + "\n")

    def mixed(*parts: str) -> Source:
        return open_source("mixture:" + " + ".join(parts), split="train", image_size=8, heldout=0)

    ab, bc, xy = (f"table:{tmp_path / name}.csv" for name in ("ab", "bc", "xy"))
    two = mixed(ab, bc)
    assert two.class_names == ("a", "b", "c")
    assert [two.class_names[k] for k in two.read(np.arange(8))[1]] == list("ababbccb")
    several = mixed(bc, xy, ab)
    assert several.class_names == ("b", "c", "x", "y", "a")
    assert several.read(np.array([1, 4, 8]))[1].tolist() == [[0, 1, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    numbers, more = (f"table:{tmp_path / name}.csv" for name in ("two", "three"))
    assert mixed(numbers, numbers).num_classes == 2
    assert mixed(numbers, more).num_classes == 5


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("mixture:", "mixture:3"),
        ("mixture:0*digits + 1*fractals", "weights are positive"),
        ("mixture:digits + digitz", "did you mean `digits`"),
        ("folder:PATH?decode=twice", "once or each"),
        ("folder:PATH?repeat=0", "at least once"),
        ("folder:PATH?balance=2", "must be 0 or 1"),
        ("shards:PATH?cache_gb=-1", "needs some space"),
        ("PATH", "needs its kind before it, as in `folder:"),
        ("shards:PATH", r"no train\*\.tar"),
        ("table:PATH", "no such file"),
    ],
)
def test_bad_options_get_one_clear_line(image_folder: Path, uri: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(uri.replace("PATH", str(image_folder)), split="train", image_size=16)


def test_a_folder_that_may_not_be_read_gets_one_clear_line(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(DataError, match=r"^folder:\S+: Permission denied \(\S+images\)$"):
        open_source(f"folder:{image_folder}", split="train", image_size=16)


@pytest.mark.parametrize("uri", ["digits", "fractals?classes=20", "folder:PATH", "folder:PATH?decode=each&balance=1"])
def test_sources_travel_to_other_processes(image_folder: Path, uri: str) -> None:
    """As they must where workers are not forked."""
    source = open_source(uri.replace("PATH", str(image_folder)), split="train", image_size=16)
    copy = pickle.loads(pickle.dumps(source))
    assert torch.equal(copy.read(np.arange(5))[0], source.read(np.arange(5))[0])
    positions = np.arange(100)
    assert np.array_equal(copy.order.locate(positions, 1)[1], source.order.locate(positions, 1)[1])


def test_any_library_data_set_can_be_read(tmp_path: Path) -> None:
    from isoflop.data.sources.datasets import DatasetRecords

    class Squares:
        classes = ("even", "odd")

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> tuple[object, int]:
            return picture(index, 20, 20), index % 2

    records = DatasetRecords(Squares(), uri="squares")
    assert records.labels.tolist() == [0, 1, 0, 1]
    assert records.class_names == ("even", "odd")
    from isoflop.data.sources.arrays import decoded_images

    images, damages = decoded_images(records, 20, 3)
    assert np.array_equal(images[2].transpose(1, 2, 0), np.asarray(picture(2, 20, 20)))
    assert not damages
