"""Batches: the same for any number of workers, ranks and restarts."""

import os

import numpy as np
import pytest
import torch

from isoflop.data import Batch, Source, batches, open_source
from isoflop.data.transforms import draw_uniforms, shift_flip
from isoflop.errors import DataError


@pytest.fixture(scope="module")
def digits() -> Source:
    return open_source("digits", split="train", image_size=16)


def assert_same(one: Batch, other: Batch) -> None:
    assert one.step == other.step
    assert [type(part) for part in one] == [type(part) for part in other]
    assert np.array_equal(one.epochs, other.epochs)
    assert np.array_equal(one.indices, other.indices)
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_do_not_depend_on_the_number_of_workers(digits: Source, workers: int) -> None:
    plan = {"seed": 3, "batch_size": 100, "start_step": 0, "stop_step": 30, "augment": "crop_flip"}
    alone = list(batches(digits, **plan))
    for one, other in zip(alone, batches(digits, workers=workers, **plan), strict=True):
        assert_same(one, other)


def test_batches_are_the_same_through_pipes_where_shared_memory_is_small(
    digits: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = {"seed": 0, "batch_size": 32, "start_step": 0, "stop_step": 4}
    expected = list(batches(digits, **plan))
    room = os.statvfs_result((4096, 4096, 1, 1, 1, 1, 1, 1, 0, 255))  # a block of 4 kB
    monkeypatch.setattr("isoflop.data.loader.os.statvfs", lambda path: room)
    with pytest.warns(UserWarning, match=r"/dev/shm is too small .* come through pipes"):
        found = list(batches(digits, **plan, workers=2))
    for batch, other in zip(expected, found, strict=True):
        assert_same(batch, other)


def test_a_restart_continues_as_if_nothing_had_happened(digits: Source) -> None:
    plan = {"seed": 3, "batch_size": 100, "stop_step": 30, "augment": "crop_flip"}
    whole = list(batches(digits, start_step=0, **plan))
    for start in (1, 11, 29):
        for one, other in zip(whole[start:], batches(digits, start_step=start, **plan), strict=True):
            assert_same(one, other)


def test_ranks_share_the_global_batch(digits: Source) -> None:
    plan = {"seed": 3, "batch_size": 100, "start_step": 5, "stop_step": 8}
    whole = list(batches(digits, **plan))
    for world in (2, 3, 7):
        parts = [list(batches(digits, rank=rank, world=world, **plan)) for rank in range(world)]
        for step, batch in enumerate(whole):
            assert np.array_equal(np.concatenate([p[step].indices for p in parts]), batch.indices)
            assert torch.equal(torch.cat([p[step].images for p in parts]), batch.images)


def test_every_sample_is_seen_once_per_epoch_though_batches_straddle_epochs(digits: Source) -> None:
    steps = len(digits)  # 100·N positions: exactly 100 epochs
    seen = list(batches(digits, seed=1, batch_size=100, start_step=0, stop_step=steps))
    pairs = np.concatenate([batch.epochs * len(digits) + batch.indices for batch in seen])
    assert np.array_equal(np.sort(pairs), np.arange(100 * len(digits)))


def test_shift_flip_shows_shifted_and_mirrored_copies() -> None:
    """Every output is one of the crops that torch's own reflection padding gives, flipped or not."""
    images = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    indices = np.arange(64)
    augmented = shift_flip(images, draw_uniforms(0, np.zeros(64, dtype=np.int64), indices))
    padded = torch.nn.functional.pad(images.float(), (2, 2, 2, 2), mode="reflect").to(torch.uint8)
    flipped = 0
    for image, source in zip(augmented, padded, strict=True):
        crops = [source[:, y : y + 16, x : x + 16] for y in range(5) for x in range(5)]
        is_plain = any(torch.equal(image, crop) for crop in crops)
        is_flipped = any(torch.equal(image, crop.flip(2)) for crop in crops)
        assert is_plain or is_flipped
        flipped += is_flipped
    assert 16 < flipped < 48


def test_an_image_is_augmented_anew_in_each_epoch_and_alike_in_any_batch() -> None:
    images = torch.arange(16 * 256, dtype=torch.int64).to(torch.uint8).view(16, 1, 16, 16)
    indices, first = np.arange(16), np.zeros(16, dtype=np.int64)
    whole = shift_flip(images, draw_uniforms(0, first, indices))
    assert torch.equal(whole[5:6], shift_flip(images[5:6], draw_uniforms(0, first[:1], indices[5:6])))
    assert not torch.equal(whole, shift_flip(images, draw_uniforms(0, first + 1, indices)))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"batch_size": 0}, "at least one image"),
        ({"batch_size": 8, "augment": "cropflip"}, "unknown augmentation"),
        ({"batch_size": 8, "rank": 2, "world": 2}, "rank 2"),
    ],
)
def test_impossible_batches_are_refused(digits: Source, plan: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        batches(digits, seed=0, start_step=0, stop_step=1, **plan)  # type: ignore[arg-type]
