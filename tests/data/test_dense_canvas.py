"""Pictures and their truth move together, and every random choice is a pure function of its numbers."""

import numpy as np
import pytest
import torch

from isoflop.data import batches, open_source
from isoflop.data.dense import Objects, SceneRecords, pack_objects, unpack_objects
from isoflop.data.dense.canvas import JITTERS, place, put_map, put_objects, put_pixels
from isoflop.data.dense.scenes import class_map, scene
from isoflop.errors import DataError


def test_a_scene_depends_on_seed_and_index_alone() -> None:
    first, objects = scene(5, size=64, classes=4, seed=1)
    again, _ = scene(5, size=64, classes=4, seed=1)
    np.testing.assert_array_equal(first, again)
    for other in (scene(6, size=64, classes=4, seed=1), scene(5, size=64, classes=4, seed=2)):
        assert (first != other[0]).any()
    assert objects.masks is not None
    assert (objects.masks.sum(axis=0) <= 1).all()  # what is covered is nobody's
    for box, mask in zip(objects.boxes.astype(int), objects.masks, strict=True):
        rows, columns = np.nonzero(mask)
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == box.tolist()


@pytest.mark.parametrize("augment", ["flip", "multi_scale", "scale_crop", "large_scale_jitter"])
def test_boxes_masks_and_maps_go_where_the_pixels_go(augment: str) -> None:
    """A picture that shows its own masks shows them still after it was scaled, cut and turned over."""
    drawn = 0
    for index, u in enumerate(np.random.default_rng(0).random((12, 4))):
        _, objects = scene(index, size=96, classes=4)
        numbers = class_map(objects, 96)
        at = place(96, 96, 96, "detect", JITTERS[augment], u)
        shown = put_pixels(np.repeat((numbers > 0)[..., None] * np.uint8(255), 3, 2), at, 96, (0, 0, 0))[0].numpy()
        placed = put_objects(objects, at, 96)
        assert placed.masks is not None
        covered = placed.masks.any(axis=0)
        # Interpolated pixels and nearest neighbours differ along edges alone.
        assert ((shown > 127) != covered).mean() < 0.02
        assert ((put_map(numbers, at, 96) % 255 > 0) != covered).mean() < 0.005
        for box, mask in zip(placed.boxes, placed.masks, strict=True):
            rows, columns = np.nonzero(mask)
            found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert np.abs(found - box).max() <= max(2.5, 2.5 * at.scales[0])
            drawn += 1
    assert drawn > 10


def test_in_evaluation_objects_are_shown_whole_and_maps_fill() -> None:
    assert place(60, 120, 96, "detect", JITTERS["none"], None).columns == 96
    at = place(60, 120, 96, "segment", JITTERS["none"], None)
    assert (at.rows, at.columns, at.left, at.flipped) == (96, 192, -48, False)


@pytest.mark.parametrize("size", [32, 37])
def test_packed_objects_come_back_without_crowds(size: int) -> None:
    rng = np.random.default_rng(1)
    batch = [
        Objects(
            rng.random((n, 4), np.float32) * size,
            rng.integers(0, 9, n),
            np.arange(n) == 1,
            np.ones(n, np.float32),
            rng.random((n, size, size)) > 0.5,
        )
        for n in (3, 0, 5)
    ]
    for found, put in zip(unpack_objects(pack_objects(batch, size), size), batch, strict=True):
        kept = put.where(~put.crowds)
        assert kept.masks is not None
        np.testing.assert_array_equal(found["boxes"], kept.boxes)
        np.testing.assert_array_equal(found["labels"], kept.classes)
        np.testing.assert_array_equal(found["masks"], kept.masks)


def test_batches_of_objects_are_the_same_for_any_workers_and_ranks() -> None:
    source = open_source("scenes?classes=3&images=12", split="train", image_size=64)

    def steps(**how: int) -> list[torch.Tensor]:
        kind = "large_scale_jitter"
        made = batches(source, seed=0, batch_size=4, start_step=2, stop_step=4, augment=kind, **how)  # type: ignore[arg-type]
        return [batch.images for batch in made]

    whole = torch.stack(steps())
    assert (torch.stack(steps(workers=1)) == whole).all()
    assert (torch.cat([torch.stack(steps(rank=r, world=2)) for r in range(2)], dim=1) == whole).all()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("scenes?classes=1", "scenes have 2 to 254 classes, not 1"),
        ("scenes?task=count", "`task=count` in `scenes\\?task=count` must be detect or segment"),
        ("scenes?kinds=1", "unknown option `kinds`"),
        ("coco:", "needs a path"),
        ("coco:/nowhere", "no such folder"),
    ],
)
def test_dense_sources_that_cannot_be_are_refused(uri: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(uri, split="train", image_size=64)


def test_an_augmentation_for_classes_is_refused_for_objects() -> None:
    source = open_source("scenes?images=4", split="train", image_size=64)
    with pytest.raises(DataError, match="boxes and masks go with none, flip, multi_scale"):
        batches(source, seed=0, batch_size=2, start_step=0, stop_step=1, augment="deit")


def test_records_know_what_they_are_asked_for() -> None:
    records = SceneRecords("test", size=64, classes=3, images=2, task="segment")
    assert records.class_names == ("background", "fractal 0", "fractal 1", "fractal 2")
    assert records.truth(0).max() <= 3
