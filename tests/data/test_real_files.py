"""Real files: CIFAR-10 in three layouts, and blood cells of 640×480 pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch

from isoflop.data import batches, check, convert, open_source
from isoflop.data.opening import open_records


@pytest.fixture(scope="module")
def cifar10(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """CIFAR-10's test images as Parquet, and converted to shards and to a folder."""
    place = tmp_path_factory.mktemp("cifar10")
    parquet = f"parquet:{real_data / 'cifar10'}"
    assert convert(parquet, place / "shards", parts=("test",), samples_per_shard=3000).images == 10_000
    convert(f"shards:{place / 'shards'}", place / "folder", to="folder", parts=("test",))
    return {"parquet": parquet, "shards": f"shards:{place / 'shards'}", "folder": f"folder:{place / 'folder'}"}


def test_cifar10_is_the_same_in_every_layout(cifar10: dict[str, str]) -> None:
    """A folder is read class by class, so its samples are compared as a set; the shards one by one."""
    parquet, shards, folder = (open_records(cifar10[name], "test") for name in ("parquet", "shards", "folder"))
    assert parquet.class_names == shards.class_names == folder.class_names
    assert np.array_equal(parquet.labels, shards.labels)
    assert all(parquet.read(k) == shards.read(k) for k in range(10_000))
    original = sorted((parquet.read(k), int(parquet.labels[k])) for k in range(10_000))
    assert sorted((folder.read(k), int(folder.labels[k])) for k in range(10_000)) == original


def test_cifar10_gives_the_same_batches_from_shards_and_parquet(cifar10: dict[str, str]) -> None:
    from isoflop.data.order import GlobalOrder
    from isoflop.data.sources.arrays import ImageSource

    plan = {"seed": 5, "batch_size": 128, "start_step": 70, "stop_step": 82, "augment": "inception"}
    made = []
    for name in ("parquet", "shards"):
        records = open_records(cifar10[name], "test")
        source = ImageSource(records, None, image_size=32, channels=3, order=GlobalOrder(len(records)))
        made.append(list(batches(source, workers=1 if name == "shards" else 0, **plan)))
    for one, other in zip(*made, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


@pytest.mark.long
def test_cifar10_passes_the_check(real_data: Path) -> None:
    report = check(f"parquet:{real_data / 'cifar10'}", part="test")
    assert report.is_usable
    assert report.classes["frog"] == 1000
    assert report.widths == report.heights == (32, 32, 32)
    assert not report.broken


def test_blood_cells_are_read_at_224_pixels(real_data: Path) -> None:
    source = open_source(f"folder:{real_data / 'bccd' / 'images'}", split="train", image_size=224)
    assert source.num_classes == 0
    batch = next(batches(source, seed=0, batch_size=16, start_step=0, stop_step=1, augment="deit"))
    assert batch.images.shape == (16, 3, 224, 224)
    assert not batch.damages
    assert 60 < float(batch.images.float().mean()) < 230


def test_blood_cells_are_the_same_from_a_folder_and_from_shards(real_data: Path, tmp_path: Path) -> None:
    folder = f"folder:{real_data / 'bccd' / 'images'}"
    convert(folder, tmp_path / "shards", parts=("train",), samples_per_shard=100)
    plan = {"seed": 1, "batch_size": 24, "start_step": 0, "stop_step": 2, "augment": "inception"}
    sources = [open_source(uri, split="train", image_size=224) for uri in (folder, f"shards:{tmp_path / 'shards'}")]
    for one, other in zip(*(batches(source, **plan) for source in sources), strict=True):
        assert torch.equal(one.images, other.images)
        assert np.array_equal(one.indices, other.indices)
