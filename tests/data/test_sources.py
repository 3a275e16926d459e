"""Sources: what a URI opens, and that held-out samples are never trained on."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from isoflop.data import open_source
from isoflop.data.source import SplitIndices, mean_and_std
from isoflop.errors import DataError


@pytest.mark.parametrize(("num_samples", "heldout"), [(100, 7), (1000, 8192), (10, 1), (3, 1), (5, 0)])
def test_train_and_heldout_share_no_sample_and_miss_none(num_samples: int, heldout: int) -> None:
    train = SplitIndices(num_samples, "train", heldout, seed=0).all()
    held = SplitIndices(num_samples, "heldout", heldout, seed=0).all()
    assert len(held) == min(heldout, num_samples // 5)
    assert np.array_equal(np.sort(np.concatenate([train, held])), np.arange(num_samples))


@pytest.mark.parametrize("uri", ["fractals?classes=50", "digits"])
@pytest.mark.parametrize("channels", [1, 3])
def test_generated_and_bundled_sources_give_uint8_images(uri: str, channels: int) -> None:
    source = open_source(uri, split="train", image_size=32, channels=channels)
    images, labels = source.read(np.array([3, 0, 99]))
    assert images.shape == (3, channels, 32, 32)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert len(source.mean) == len(source.std) == channels
    assert source.num_classes == len(source.class_names)


def test_digits_are_the_real_ones_and_splits_are_disjoint() -> None:
    from sklearn.datasets import load_digits

    sources = [open_source("digits", split=s, image_size=8) for s in ("train", "heldout", "test")]  # type: ignore[arg-type]
    parts = [source.read(np.arange(len(source))) for source in sources]
    together = torch.cat([images for images, _ in parts])
    assert len(together) == 1797
    original = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    assert sorted(x.tobytes() for x in together.numpy()) == sorted(x.tobytes() for x in original)


def test_a_folder_is_labelled_by_its_subfolders(image_folder: Path) -> None:
    source = open_source(f"folder:{image_folder}", split="test", image_size=16)
    assert source.class_names == ("cat", "dog", "owl")
    images, labels = source.read(np.arange(15))
    assert images.shape == (15, 3, 16, 16)
    assert labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5


def test_the_fingerprint_follows_the_content(image_folder: Path) -> None:
    before = open_source(f"folder:{image_folder}", split="train", image_size=16).fingerprint
    assert open_source(f"folder:{image_folder}", split="train", image_size=16).fingerprint == before
    (image_folder / "train" / "cat" / "00.png").unlink()
    assert open_source(f"folder:{image_folder}", split="train", image_size=16).fingerprint != before


@pytest.mark.parametrize("read", [2048, 4])
def test_uncompressed_images_of_other_data_under_the_same_names_are_not_taken_for_them(
    read: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names and sizes agree, as those of exported data often do; decoded images and features are kept by fingerprint.
    Of a large folder, the contents of some files are read."""
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("isoflop.data.records._IMAGES_READ", read)
    count, found = 10, []
    for name, colour in (("one", 10), ("other", 200)):
        picture = io.BytesIO()
        Image.new("RGB", (2, 2), (colour, 0, 0)).save(picture, format="BMP")
        for label in "ab":
            (tmp_path / name / label).mkdir(parents=True)
            for k in range(count):
                (tmp_path / name / label / f"{k:04}.bmp").write_bytes(picture.getvalue())
        lines = [f"a/{k:04}.bmp,{k % 2}" for k in range(count)]
        (tmp_path / name / "list.csv").write_text("\n".join(["path,label", *lines]))
        for uri in (f"folder:{tmp_path / name}", f"table:{tmp_path / name / 'list.csv'}"):
            found.append(open_source(uri, split="train", image_size=2, heldout=1))
    folder, table, other_folder, other_table = found
    assert folder.fingerprint != other_folder.fingerprint
    assert table.fingerprint != other_table.fingerprint
    assert int(other_folder.read(np.arange(1))[0].max()) == 200


def test_cifar10_parquet_gives_the_images_that_pillow_gives(real_data: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(real_data / "cifar10" / "test.parquet").slice(0, 500)
    for part in ("train", "test"):
        pq.write_table(table, tmp_path / f"{part}.parquet")
    source = open_source(f"parquet:{tmp_path}", split="test", image_size=32)
    assert source.class_names[:3] == ("airplane", "automobile", "bird")
    images, labels = source.read(np.array([0, 17, 499]))
    for k, row in enumerate((0, 17, 499)):
        expected = np.asarray(Image.open(io.BytesIO(table["image"][row]["bytes"].as_py())).convert("RGB"))
        assert np.array_equal(images[k].permute(1, 2, 0).numpy(), expected)
        assert labels[k] == table["label"][row].as_py()


def test_mean_and_std_agree_with_torch() -> None:
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = mean_and_std(images)
    values = images.double() / 255
    assert mean == pytest.approx(values.mean(dim=(0, 2, 3)).tolist(), abs=1e-5)
    assert std == pytest.approx(values.std(dim=(0, 2, 3), correction=0).tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("fractal", "did you mean `fractals`"),
        ("fractals?clases=10", "did you mean `classes`"),
        ("fractals?classes=ten", "must be a whole number"),
        ("fractals?zipf=nan", "must be a number"),
        ("fractals:7", "have no path"),
        ("hf:", "hf:NAME"),
        ("fractals?classes=1", "between 2 and"),
        ("digits?x=1", "unknown option"),
        ("parquet:", "needs a path"),
        ("parquet:/no/such/place", "no such file or folder"),
        ("folder:/no/such/place", "no such folder"),
    ],
)
def test_a_bad_uri_gets_one_clear_line(uri: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        open_source(uri, split="train", image_size=32)
    assert "\n" not in str(raised.value)
