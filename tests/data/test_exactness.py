"""The exactness matrix: every (epoch, index) once, in one order, for any workers, ranks, batch size and restarts."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from isoflop.data import Batch, Source, batches, convert, open_source

SEED = 7
WORLDS = (1, 2, 3, 4, 8)


@pytest.fixture
def source(image_folder: Path) -> Source:
    """48 PNGs that are decoded and augmented anew each time: the longest way a sample can take."""
    return open_source(f"folder:{image_folder}?decode=each", split="train", image_size=16, heldout=12)


def run(
    source: Source, *, batch_size: int, start: int, stop: int, world: int = 1, workers: int = 0, augment: str = "deit"
) -> list[list[Batch]]:
    """The batches of each step, in the order of the ranks."""
    ranks = [
        list(
            batches(
                source,
                seed=SEED,
                batch_size=batch_size,
                start_step=start,
                stop_step=stop,
                augment=augment,
                rank=rank,
                world=world,
                workers=workers,
            )
        )
        for rank in range(world)
    ]
    return [list(parts) for parts in zip(*ranks, strict=True)]


def global_order(steps: list[list[Batch]]) -> NDArray[np.int64]:
    """(epoch, index) of every sample, shape (positions, 2)."""
    pairs = [np.stack([batch.epochs, batch.indices], axis=1) for step in steps for batch in step]
    return np.concatenate(pairs)


def pixels(steps: list[list[Batch]]) -> torch.Tensor:
    return torch.cat([batch.images for step in steps for batch in step])


@pytest.mark.parametrize("batch_size", [8, 13, 48, 50])
@pytest.mark.parametrize("world", WORLDS)
def test_ranks_and_batch_sizes_change_neither_order_nor_pixels(source: Source, world: int, batch_size: int) -> None:
    steps = -(-3 * len(source) // batch_size)
    reference = run(source, batch_size=batch_size, start=0, stop=steps)
    order = global_order(reference)
    sample_numbers = order[: 3 * len(source), 0] * len(source) + order[: 3 * len(source), 1]
    assert np.array_equal(np.sort(sample_numbers), np.arange(3 * len(source)))
    parts = run(source, batch_size=batch_size, start=0, stop=steps, world=world)
    assert np.array_equal(global_order(parts), order)
    assert torch.equal(pixels(parts), pixels(reference))


@pytest.mark.parametrize("workers", range(9))
def test_worker_processes_change_neither_order_nor_pixels(source: Source, workers: int) -> None:
    reference = run(source, batch_size=13, start=2, stop=8)
    parts = run(source, batch_size=13, start=2, stop=8, workers=workers)
    assert np.array_equal(global_order(parts), global_order(reference))
    assert torch.equal(pixels(parts), pixels(reference))


def test_restarts_with_other_ranks_and_workers_continue_the_same_run(source: Source) -> None:
    """A run that is interrupted at random steps, and goes on with another number of ranks and workers each time."""
    rng = np.random.default_rng(0)
    reference = run(source, batch_size=13, start=0, stop=24)
    for _ in range(2):
        cuts = [0, *sorted(rng.choice(np.arange(1, 24), 3, replace=False).tolist()), 24]
        pieces: list[list[Batch]] = []
        for start, stop in itertools.pairwise(cuts):
            world, workers = int(rng.choice(WORLDS)), int(rng.integers(0, 3))
            pieces += run(source, batch_size=13, start=start, stop=stop, world=world, workers=workers)
        assert np.array_equal(global_order(pieces), global_order(reference))
        assert torch.equal(pixels(pieces), pixels(reference))


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("world", WORLDS)
def test_the_whole_matrix(source: Source, world: int) -> None:
    """Workers 0–8 of each rank, starts anywhere, batches that divide the epoch or do not."""
    rng = np.random.default_rng(world)
    for workers in range(9):
        start, batch_size = int(rng.integers(0, 40)), (8, 13, 50)[workers % 3]
        plan = {"batch_size": batch_size, "start": start, "stop": start + 4}
        reference, parts = run(source, **plan), run(source, **plan, world=world, workers=workers)
        assert np.array_equal(global_order(parts), global_order(reference))
        assert torch.equal(pixels(parts), pixels(reference))


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_hundred_restarts_in_any_layout_miss_nothing_and_repeat_nothing(source: Source) -> None:
    rng = np.random.default_rng(1)
    reference = run(source, batch_size=13, start=0, stop=370, augment="none")
    cuts = [0, *sorted(rng.choice(np.arange(1, 370), 100, replace=False).tolist()), 370]
    pieces: list[list[Batch]] = []
    for start, stop in itertools.pairwise(cuts):
        world, workers = int(rng.choice(WORLDS)), int(rng.choice([0, 0, 1, 3]))
        pieces += run(source, batch_size=13, start=start, stop=stop, world=world, workers=workers, augment="none")
    order = global_order(pieces)
    assert np.array_equal(order, global_order(reference))
    counts = np.bincount(order[: 100 * 48, 0] * 48 + order[: 100 * 48, 1])
    assert (counts == 1).all()  # a hundred epochs of 48 samples


@pytest.mark.parametrize("option", ["balance=1", "repeat=3"])
def test_balance_and_repeats_are_exact_too(image_folder: Path, option: str) -> None:
    source = open_source(f"folder:{image_folder}?{option}", split="train", image_size=16, heldout=12)
    reference = run(source, batch_size=9, start=0, stop=40, augment="crop_flip")
    parts = run(source, batch_size=9, start=0, stop=11, augment="crop_flip", world=3)
    parts += run(source, batch_size=9, start=11, stop=40, augment="crop_flip", workers=2, world=2)
    assert np.array_equal(global_order(parts), global_order(reference))
    assert torch.equal(pixels(parts), pixels(reference))


def test_windows_of_shards_are_exact_too_and_each_rank_reads_few_of_them(image_folder: Path, tmp_path: Path) -> None:
    convert(str(image_folder), tmp_path / "shards", parts=("train",), samples_per_shard=5)
    source = open_source(f"shards:{tmp_path / 'shards'}?window=4", split="train", image_size=16, heldout=0)
    reference = run(source, batch_size=20, start=0, stop=9, augment="crop_flip")
    order = global_order(reference)
    assert np.array_equal(np.sort(order[:, 0] * len(source) + order[:, 1]), np.arange(180))
    parts = run(source, batch_size=20, start=0, stop=5, augment="crop_flip", world=4)
    parts += run(source, batch_size=20, start=5, stop=9, augment="crop_flip", world=2, workers=2)
    assert np.array_equal(global_order(parts), order)
    assert torch.equal(pixels(parts), pixels(reference))
    shards_per_rank = [len(set((batch.indices // 5).tolist())) for step in parts[:5] for batch in step]
    assert np.mean(shards_per_rank) < 2  # of the four in the window


def test_a_late_restart_costs_no_more_than_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 10⁹ of an endless source is made like step 0, without going through the steps before."""
    source = open_source("fractals?classes=50", split="train", image_size=16)
    read, asked = source.read, []
    monkeypatch.setattr(source, "read", lambda indices: (asked.append(len(indices)), read(indices))[1])
    for start in (0, 10**9):
        list(batches(source, seed=0, batch_size=64, start_step=start, stop_step=start + 5))
    assert sum(asked) == 2 * 5 * 64
