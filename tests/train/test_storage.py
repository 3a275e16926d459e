"""Storage that fills up, comes back, or is far away; and what is kept."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from isoflop.config import RunConfig
from isoflop.errors import CheckpointError, ConfigError
from isoflop.runs.directory import read_status
from isoflop.runs.journal import JournalWriter, read_journal
from isoflop.train import latest_checkpoint, train
from isoflop.train.checkpoints import checkpoint_path, load_checkpoint, retired, saved_steps
from tests.promises.chaos import EVERY_STEP, run_config
from tests.promises.same import check_same


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """Writes to `path` until its disk is full."""
    try:
        with path.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(512))
    except OSError:
        pass


def calm_config() -> RunConfig:
    return run_config(steps=70, log_every=2, checkpoint=EVERY_STEP)


def test_a_disk_that_is_full_for_a_while_costs_nothing(tmp_path: Path, small_disk: Path) -> None:
    train(calm_config(), tmp_path / "calm")
    filler, seen = small_disk / "filler", []

    def on_row(row: dict[str, Any]) -> None:
        if row["step"] == 20:
            seen.append(saved_steps(small_disk / "run/checkpoints"))
            fill(filler)
        if row["step"] == 60:
            seen.append(saved_steps(small_disk / "run/checkpoints"))
            filler.unlink()

    with pytest.warns(UserWarning, match="training continues"):
        result = train(calm_config(), small_disk / "run", on_row=on_row)
    assert result.state == "done"
    during = latest_checkpoint(small_disk / "run/checkpoints")
    assert during is not None
    assert seen[1]  # what was whole before stayed
    check_same(calm_config(), tmp_path / "calm", small_disk / "run")


def test_rows_that_the_disk_refuses_are_written_later(small_disk: Path) -> None:
    writer = JournalWriter(small_disk, 0, "scratch")
    fill(small_disk / "filler")
    rows = [{"kind": "train", "step": step, "images": step, "loss": 1.0, "text": "x" * 50} for step in range(1, 400)]
    with pytest.warns(UserWarning, match="are kept in memory"):
        list(map(writer.write, rows))
    (small_disk / "filler").unlink()
    writer.write({"kind": "train", "step": 400, "images": 400, "loss": 1.0})
    writer.close()
    assert [row["step"] for row in read_journal(small_disk)] == list(range(1, 401))


def test_what_is_kept() -> None:
    steps = [10, 20, 30, 40, 50, 60, 70]
    assert retired(steps, keep=2) == [10, 20, 30, 40, 50]
    assert retired(steps, keep=2, best=30) == [10, 20, 40, 50]
    assert retired(steps, keep=1, every=25) == [20, 40, 60]  # the first of 0…24, 25…49 and 50…74 stay


def test_the_best_and_one_of_each_stretch_are_kept(tmp_path: Path) -> None:
    checkpoint = {**EVERY_STEP, "keep": 1, "keep_every": 50, "keep_best": True}
    config = run_config(steps=120, checkpoint=checkpoint, evaluation={"every": 20})
    train(config, tmp_path / "run")
    rows = [row for row in read_journal(tmp_path / "run") if "heldout_loss" in row]
    best = min(rows, key=lambda row: row["heldout_loss"])["step"]
    kept = saved_steps(tmp_path / "run/checkpoints")
    assert {best, 120} <= set(kept)
    assert {step // 50 for step in kept} == {0, 1, 2}
    assert len(kept) <= 5


def test_the_weights_with_the_lowest_held_out_loss_are_published(tmp_path: Path) -> None:
    """Of a run whose learning rate rises until it is too high. The loss that it ends with is that of its weights."""
    changes: dict[str, Any] = {"steps": 40, "optim": {"learning_rate": 2.0}, "checkpoint": {"keep": 1}}
    changes["schedule"] = {"warmup": 40, "cooldown": 0.0}
    config = run_config(**changes, evaluation={"every": 5, "restore_best": True})
    ended = train(config, tmp_path / "run")
    rows = {row["step"]: row["heldout_loss"] for row in read_journal(tmp_path / "run") if "heldout_loss" in row}
    best = min(rows, key=rows.__getitem__)
    assert best < 40
    assert ended.heldout_loss == rows[best] < rows[40]
    status = read_status(tmp_path / "run")
    assert status is not None
    assert (status.step, status.best_step) == (40, best)
    weights = load_file(tmp_path / "run/model.safetensors")
    kept = load_checkpoint(checkpoint_path(tmp_path / "run/checkpoints", best)).tensors
    assert all(torch.equal(tensor, kept[f"model.backbone.{name}"]) for name, tensor in weights.items())
    (tmp_path / "run/model.safetensors").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="published again"):
        assert train(config, tmp_path / "run").heldout_loss == rows[best]


def test_a_copy_on_far_storage_is_enough_to_go_on(tmp_path: Path) -> None:
    far = f"file://{tmp_path}/far"
    config = run_config(steps=30, checkpoint={**EVERY_STEP, "folder": far})
    train(config, tmp_path / "calm")
    (copies,) = (tmp_path / "far").iterdir()
    assert saved_steps(copies)[0] == 30
    run = tmp_path / "calm"
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(run, tmp_path / "moved")
    (tmp_path / "moved/status.json").unlink()
    (copies / f"step-{30:012d}" / "manifest.json").unlink()  # a copy that was cut short does not count
    train(config, tmp_path / "moved")
    check_same(config, run, tmp_path / "moved")


def test_far_storage_that_fails_in_its_own_way_costs_a_warning_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    class EndpointError(Exception):
        """As the libraries of object stores have them: no OSError."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise EndpointError("could not connect")

    monkeypatch.setattr(MemoryFileSystem, "put_file", fail)
    config = run_config(steps=10, checkpoint={"folder": "memory://far"})
    with pytest.warns(
        UserWarning, match=r"memory://far/\w+: the storage failed: could not connect; training continues"
    ):
        assert train(config, tmp_path / "run").state == "done"
    assert saved_steps(tmp_path / "run/checkpoints")
    monkeypatch.setattr(MemoryFileSystem, "glob", fail)
    with pytest.raises(CheckpointError, match="the storage failed: could not connect"):
        train(config, tmp_path / "other")


@pytest.mark.parametrize("place", ["", "file://"])
def test_runs_that_share_a_folder_for_checkpoints_do_not_take_each_other_s(tmp_path: Path, place: str) -> None:
    weights = []
    for seed in (0, 1):
        config = run_config(seed=seed, steps=10, checkpoint={"folder": f"{place}{tmp_path}/shared"})
        train(config, tmp_path / f"run{seed}")
        weights.append((tmp_path / f"run{seed}/model.safetensors").read_bytes())
    assert weights[0] != weights[1]
    assert len(list((tmp_path / "shared").iterdir())) == 2


def test_a_folder_for_checkpoints_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"checkpoint.folder = .*/file: cannot write"):
        train(run_config(steps=10, checkpoint={"folder": str(tmp_path / "file")}), tmp_path / "run")


def test_an_address_that_nothing_can_reach_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint.folder = nowhere://x"):
        train(run_config(checkpoint={"folder": "nowhere://x"}), tmp_path / "run")


def test_a_checkpoint_of_many_ranks_is_read_by_one(tmp_path: Path) -> None:
    from isoflop.train.checkpoints import load_checkpoint
    from tests.promises.chaos import train_whole

    # AdamW would blow up what rounding makes of gradients that are zero.
    optim, checkpoint = {"name": "sgd", "learning_rate": 0.1}, {"every_seconds": 60}
    config = run_config(steps=10, optim=optim, parallel={"sharding": "full"}, checkpoint=checkpoint)
    train_whole(config, tmp_path / "two", world=2)
    train_whole(config, tmp_path / "one")
    two = load_checkpoint(tmp_path / "two/checkpoints" / f"step-{10:012d}")
    one = load_checkpoint(tmp_path / "one/checkpoints" / f"step-{10:012d}")
    assert two.tensors.keys() == one.tensors.keys()
    for name, tensor in one.tensors.items():
        torch.testing.assert_close(two.tensors[name], tensor, rtol=1e-4, atol=1e-6)
