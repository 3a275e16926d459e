"""Every source keeps the promises of `Source`, those of the house and a third party's that defines `read` alone."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from pyarrow import parquet
from safetensors.torch import load_file
from torch import Tensor

from isoflop.config import RunConfig, parse
from isoflop.data import Source, Subset, batches, convert, open_source
from isoflop.data.dense.objects import unpack_objects
from isoflop.data.sources.arrays import ArraySource
from isoflop.errors import CheckpointError, DataError
from isoflop.train import train
from tests.data.pictures import encoded, picture


class Stripes(Source):
    """A third party's: stripes across or down, drawn when they are read."""

    def __init__(self, count: int, first: int = 0) -> None:
        names = ("across", "down")
        super().__init__("stripes", count, image_size=16, fingerprint=f"stripes-1 {first}", class_names=names)
        self.first = first

    def read(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        images = np.empty((len(indices), 3, 16, 16), dtype=np.uint8)
        for image, number in zip(images, indices + self.first, strict=True):
            rng = np.random.default_rng(int(number))
            lines = rng.integers(0, 256, (3, 16, 1), dtype=np.uint8)
            image[:] = lines if number % 2 == 0 else lines.transpose(0, 2, 1)
        return torch.from_numpy(images), torch.from_numpy((indices + self.first) % 2)


def _stored(kind: str, folder: Path) -> str:
    """The URI of 24 pictures of two classes, in the layout `kind`; beside `table`, of which some are of both."""
    several = kind == "several"
    (folder / "images").mkdir()
    for name in ("cat", "owl"):
        (folder / "images" / name).mkdir()
    rows = []
    for k in range(24):
        name = ("cat", "owl")[k % 2]
        path = folder / "images" / name / f"{k:02d}.png"
        path.write_bytes(encoded(picture(k), "PNG"))
        rows.append((path.relative_to(folder), "cat|owl" if several and k % 3 == 0 else name))
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    if kind == "folder":
        return f"folder:{folder / 'images'}"
    if kind in ("table", "several"):
        return f"table:{folder / 'table.csv'}"
    if kind == "parquet":
        images = [{"bytes": encoded(picture(k), "PNG"), "path": None} for k in range(24)]
        parquet.write_table(pa.table({"image": images, "label": ["cat", "owl"] * 12}), folder / "train.parquet")
        return f"parquet:{folder / 'train.parquet'}"
    convert(f"folder:{folder / 'images'}", folder / "shards")
    return f"shards:{folder / 'shards'}"


def _opened(uri: str) -> Source:
    return open_source(uri, split="train", image_size=32, heldout=4)


SOURCES: dict[str, Callable[[Path], Source]] = {
    "fractals": lambda folder: _opened("fractals?classes=3&images=40"),
    "fractals without end": lambda folder: _opened("fractals?classes=3"),
    "digits": lambda folder: _opened("digits"),
    "arrays": lambda folder: ArraySource(
        np.random.default_rng(0).integers(0, 256, (20, 1, 32, 32), dtype=np.uint8),
        np.arange(20) % 4,
        uri="arrays",
        class_names=tuple("abcd"),
        fingerprint="arrays",
        rows=np.arange(3, 19),
        statistics=((0.5,), (0.25,)),
    ),
    **{
        f"{kind} {decode}": lambda folder, kind=kind, decode=decode: _opened(f"{_stored(kind, folder)}?decode={decode}")
        for kind in ("folder", "table", "several", "parquet", "shards")
        for decode in ("once", "each")
    },
    "mixture": lambda folder: _opened(f"mixture:2*{_stored('folder', folder)}?decode=each + digits"),
    "subset": lambda folder: Subset(_opened(f"{_stored('folder', folder)}?decode=each"), np.asarray([7, 2, 11, 5])),
    "subset of other moments": lambda folder: _opened("digits").normalized_by(((0.1,), (0.2,))),
    "detection": lambda folder: _opened("scenes?classes=3&images=12"),
    "segmentation": lambda folder: _opened("scenes?classes=3&images=12&task=segment"),
    "a third party's": lambda folder: Stripes(30),
}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    return SOURCES[request.param](tmp_path)


def _some(source: Source) -> NDArray[np.int64]:
    return np.arange(min(12, len(source)), dtype=np.int64)


def test_it_says_what_it_has(source: Source) -> None:
    assert len(source) > 0
    assert source.uri
    assert source.fingerprint
    assert source.num_classes == len(source.class_names) == len(set(source.class_names))
    assert len(source.mean) == len(source.std) == source.channels
    assert all(0 < deviation < 1 for deviation in source.std)
    assert source.unique_images is None or 0 < source.unique_images <= len(source)
    assert source.order.locate(np.arange(3), 0)[1].max() < len(source)


def test_what_is_read_has_the_promised_form(source: Source) -> None:
    indices = _some(source)
    images, labels = source.read(indices)
    assert (images.dtype, images.shape) == (
        torch.uint8,
        (len(indices), source.channels, source.image_size, source.image_size),
    )
    assert len(labels) == len(indices)
    if source.task:
        assert labels.dtype == torch.uint8
        is_map = source.task == "segment"
        found = [] if is_map else unpack_objects(labels, source.image_size)
        classes = labels[labels != 255] if is_map else torch.cat([objects["labels"] for objects in found])
        assert 0 <= int(classes.min()) <= int(classes.max()) < source.num_classes
    elif source.has_several_labels:
        assert (labels.dtype, labels.shape[1]) == (torch.float32, source.num_classes)
        assert set(labels.unique().tolist()) == {0.0, 1.0}
    else:
        assert labels.dtype == torch.int64
        assert 0 <= int(labels.min()) <= int(labels.max()) < source.num_classes


def test_a_sample_is_the_same_wherever_it_stands_and_however_often_it_is_read(source: Source) -> None:
    last = len(_some(source)) - 1
    images, labels = source.read(np.asarray([last, 0, last]))
    again, labels_again = source.read(np.asarray([0, last]))
    assert torch.equal(images[[1, 2]], again)
    assert torch.equal(images[0], images[2])
    if source.task != "detect":  # whose rows are as long as the batch's longest
        assert torch.equal(labels[[1, 2]], labels_again)


def test_an_unaugmented_view_is_what_evaluation_sees(source: Source) -> None:
    indices = _some(source)
    plain = source.find_augmentation("none", None, "bilinear")
    u = np.random.default_rng(0).random((len(indices), 64))
    images, labels, damages = source.read_views(indices, plain, u)
    read, told = source.read(indices)
    assert torch.equal(images, read)
    assert torch.equal(labels, told)
    assert not damages


def test_a_view_depends_on_the_sample_and_its_numbers_alone(source: Source) -> None:
    indices = _some(source)
    augmentation = source.find_augmentation("scale_crop" if source.task else "inception", None, "bilinear")
    u = np.random.default_rng(0).random((len(indices), 64))
    views, _, _ = source.read_views(indices, augmentation, u)
    backwards, _, _ = source.read_views(indices[::-1].copy(), augmentation, u[::-1].copy())
    others, _, _ = source.read_views(indices, augmentation, np.random.default_rng(1).random(u.shape))
    assert torch.equal(views, backwards.flip(0))
    assert not torch.equal(views, others)
    with pytest.raises(DataError, match="crop_upside_down"):
        source.find_augmentation("crop_upside_down", None, "bilinear")


def test_labels_are_those_that_are_read(source: Source) -> None:
    if source.unique_images is None or source.task == "detect":
        source = source.subset(_some(source))
    indices = np.arange(len(source))
    assert torch.equal(source.labels(), source.read(indices)[1])
    assert torch.equal(source.labels(indices[[2, 0]]), source.read(indices[[2, 0]])[1])


def test_a_subset_is_a_source_of_the_named_samples(source: Source) -> None:
    chosen = np.asarray([len(_some(source)) - 1, 1])
    part = source.subset(chosen)
    assert (len(part), part.unique_images) == (2, 2)
    assert torch.equal(part.read(np.asarray([0, 1]))[0], source.read(chosen)[0])
    assert (part.num_classes, part.class_names, part.task) == (source.num_classes, source.class_names, source.task)
    assert len({source.fingerprint, part.fingerprint, source.subset(chosen[:1]).fingerprint}) == 3


def test_other_moments_change_no_class_and_no_length(source: Source) -> None:
    assert source.normalized_by(None) is source
    if source.unique_images is None:
        source = source.subset(_some(source))
    moments = (0.25,) * source.channels, (0.5,) * source.channels
    other = source.normalized_by(moments)
    assert (other.mean, other.std) == moments
    assert (len(other), other.class_names, other.task) == (len(source), source.class_names, source.task)


def test_what_is_stretched_is_another_source_or_the_same(source: Source) -> None:
    shown = source.stretched()
    assert shown is source or shown.fingerprint != source.fingerprint
    assert torch.equal(shown.read(_some(source))[1], source.read(_some(source))[1])


def test_an_epoch_visits_every_sample_once(source: Source) -> None:
    if len(source) > 10_000 or type(source).__name__ == "Mixture":  # which mixes epochs of several lengths
        return
    _, indices = source.order.locate(np.arange(len(source)), 3)
    assert sorted(indices.tolist()) == list(range(len(source)))


def test_a_third_partys_source_trains_and_resumes_exactly(tmp_path: Path) -> None:
    config = parse(
        {
            "model": {"name": "vit_w32d4p8", "depths": [1]},
            "steps": 6,
            "batch_size": 8,
            "data": {"source": "digits", "image_size": 16, "augment": "crop_flip"},
            "checkpoint": {"every_seconds": 1e-6},
        },
        RunConfig,
    )
    data = Stripes(30), Stripes(8, first=30)
    assert train(config, tmp_path / "whole", data=data).state == "done"
    steps = iter([False, False, True])
    assert train(config, tmp_path / "stopped", data=data, stop=lambda: next(steps)).state == "preempted"
    with pytest.raises(CheckpointError, match="stopped"):
        train(config, tmp_path / "stopped", data=(Stripes(29), data[1]))
    assert train(config, tmp_path / "stopped", data=data).state == "done"
    whole, stopped = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_workers_make_the_batches_of_a_third_partys_source() -> None:
    workers = [
        [batch.images for batch in batches(Stripes(30), seed=0, batch_size=8, start_step=0, stop_step=3, workers=n)]
        for n in (0, 1)
    ]
    assert all(torch.equal(one, two) for one, two in zip(*workers, strict=True))


def test_a_mixture_of_objects_is_refused_in_a_line() -> None:
    with pytest.raises(DataError, match="images with classes, not with objects or maps"):
        _opened("mixture:scenes?classes=3&images=12 + digits")


def test_evaluation_of_a_mixture_shows_its_parts_as_they_show_themselves(tmp_path: Path) -> None:
    folder = f"{_stored('folder', tmp_path)}?decode=each"
    options = {"split": "train", "image_size": 32, "heldout": 4, "interpolation": "bicubic"}
    part, mixture = (open_source(uri, **options) for uri in (folder, f"mixture:{folder}"))  # type: ignore[arg-type]
    indices = np.arange(6)
    assert torch.equal(part.read(indices)[0], mixture.read(indices)[0])
    assert torch.equal(part.stretched().read(indices)[0], mixture.stretched().read(indices)[0])


def test_four_channels_need_their_moments() -> None:
    class Radar(Source):
        def read(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
            return torch.zeros((len(indices), 4, 8, 8), dtype=torch.uint8), torch.zeros(len(indices), dtype=torch.int64)

    with pytest.raises(DataError, match="radar: the mean and deviation of 4 channels have to be given"):
        Radar("radar", 4, image_size=8, fingerprint="radar", channels=4)
