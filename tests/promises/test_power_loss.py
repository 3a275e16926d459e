"""What was committed outlives a power loss: runs, caches, tables of studies."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from isoflop.data import batches, open_source
from isoflop.runs.journal import read_journal
from isoflop.study import Store
from isoflop.train import train
from isoflop.train.checkpoints import latest_checkpoint
from tests.promises.chaos import EVERY_STEP, run_config
from tests.promises.power import Cut, Disk

SEVERAL = [5, pytest.param(30, marks=pytest.mark.long)]


@pytest.mark.parametrize("cuts", SEVERAL)
def test_a_cache_gives_the_same_after_a_power_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuts: int) -> None:
    from tests.promises.fuzz import DATA

    for name, decode in (("folder", "once"), ("shards", "each")):
        write, uri, _ = DATA[name]
        place = tmp_path / name
        place.mkdir()
        write(place)

        def samples(uri: str = f"{uri.format(place / 'data')}?decode={decode}") -> list[Any]:
            source = open_source(uri, split="train", image_size=8, heldout=2)
            plan: dict[str, Any] = {"seed": 0, "batch_size": 4, "start_step": 0, "stop_step": 3}
            return [(batch.images.numpy().tobytes(), batch.labels.tolist()) for batch in batches(source, **plan)]

        kept = place / "cache"
        kept.mkdir()
        monkeypatch.setenv("ISOFLOP_CACHE", str(kept))
        disk = Disk(kept)
        with disk.watched():
            disk.at = set(range(1000))
            expected = samples()
        chance = random.Random(name)
        for number in range(cuts):
            cut, _ = chance.choice(disk.cuts)
            lost = place / f"lost-{number}"
            cut.restore(lost, chance)
            monkeypatch.setenv("ISOFLOP_CACHE", str(lost))
            assert samples() == expected, number


@pytest.mark.parametrize("cuts", SEVERAL)
def test_the_table_of_a_study_is_the_one_before_or_the_one_after(tmp_path: Path, cuts: int) -> None:
    from tests.promises.fuzz import _write_study

    _write_study(tmp_path)
    rows = Store(tmp_path / "toy").rows()
    folder = tmp_path / "study"
    folder.mkdir()
    store, written = Store(folder), [0]
    disk = Disk(folder, note=lambda: written[0])
    with disk.watched():
        disk.at = set(range(1000))
        for count in range(1, len(rows) + 1):
            store.write_rows(rows[:count])
            store.write("answer.json", {"count": count})
            written[0] = count
    chance = random.Random(cuts)
    for number in range(cuts):
        cut, count = chance.choice([found for found in disk.cuts if found[1]])
        lost = tmp_path / f"lost-{number}"
        cut.restore(lost, chance)
        assert Store(lost).rows() in (rows[:count], rows[: count + 1])
        assert json.loads((lost / "answer.json").read_text())["count"] in (count, count + 1)


@pytest.mark.parametrize("cuts", SEVERAL)
def test_a_run_keeps_its_committed_checkpoints_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuts: int
) -> None:
    from isoflop.train import saver

    config = run_config(steps=12, log_every=3, checkpoint={**EVERY_STEP, "keep": 1})
    committed, disk = [0], Disk(tmp_path / "run", note=lambda: committed[0])
    disk.folder.mkdir()
    plain = saver.save_checkpoint

    def save(folder: Path, tensors: Any, state: dict[str, Any], **more: Any) -> None:
        plain(folder, tensors, state, **more)
        committed[0] = int(state["step"])

    monkeypatch.setattr(saver, "save_checkpoint", save)
    with disk.watched():
        disk.at = set(range(10_000))
        assert train(config, disk.folder).state == "done"
    weights = load_file(disk.folder / "model.safetensors")
    samples = [row["samples"] for row in read_journal(disk.folder) if "samples" in row]
    assert samples
    chance = random.Random(cuts)
    for number in range(cuts):
        cut, step = chance.choice(disk.cuts)
        lost = tmp_path / f"lost-{number}"
        cut.restore(lost, chance)
        if step:
            checkpoint = latest_checkpoint(lost / "checkpoints")
            assert checkpoint is not None
            assert checkpoint.state["step"] >= step
        assert train(config, lost).state == "done"
        again = load_file(lost / "model.safetensors")
        assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
        assert [row["samples"] for row in read_journal(lost) if "samples" in row] == samples


def test_without_syncs_a_power_loss_takes_what_was_written(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "disk")
    disk.folder.mkdir()
    path = disk.folder / "file"
    with disk.watched():
        disk.at = {3}
        path.write_bytes(b"old")
        with path.open("r+b") as file:
            import os

            os.fsync(file.fileno())
        handle = os.open(disk.folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
        new = disk.folder / "new"
        new.write_bytes(b"newer")
        os.rename(new, path)
    cut: Cut = disk.cuts[0][0]
    seen = set()
    for number in range(60):
        cut.restore(tmp_path / str(number), random.Random(number))
        seen.add((tmp_path / str(number) / "file").read_bytes())
    assert {b"old", b"", b"newer", bytes(5)} <= seen
