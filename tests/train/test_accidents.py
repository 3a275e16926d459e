"""What befalls a run from outside: damaged checkpoints, signals for the group, data that move, files that fail."""

import errno
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.checkpoint.api import CheckpointException

from isoflop.config import RunConfig
from isoflop.errors import CheckpointError, DataError
from isoflop.runs.directory import read_status
from isoflop.runs.journal import JournalWriter, attempts, read_journal
from isoflop.train import attempt, checkpoints, identity, train
from isoflop.train.checkpoints import checkpoint_path, load_checkpoint, save_checkpoint, saved_steps
from isoflop.train.guards import PREEMPTED, Watchdog, robust_z
from isoflop.train.identity import run_directory
from isoflop.train.saver import _told
from tests.data.pictures import encoded, picture
from tests.promises.chaos import EVERY_STEP, run_config
from tests.promises.same import check_same, measured


def stopping_at(step: int) -> dict[str, Any]:
    """Arguments of `train` that have it stop after so many steps."""
    seen: list[int] = []
    return {"on_row": lambda row: seen.append(row["step"]), "stop": lambda: bool(seen) and seen[-1] >= step}


def damage(path: Path, how: str) -> None:
    if how == "format":
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    elif how == "state":  # whole by its manifest, but not what a run can go on from
        found = load_checkpoint(path)
        shutil.rmtree(path)
        save_checkpoint(path.parent, found.tensors, {**found.state, "recent": None})
    else:
        (path / "tensors.safetensors").write_bytes(b"")


@pytest.mark.parametrize("how", [pytest.param("empty", marks=pytest.mark.long), "format", "state"])
def test_checkpoints_of_no_use_never_crowd_out_whole_ones(tmp_path: Path, how: str) -> None:
    """All that were kept are of no use, and the run is preempted again and again: it gets on all the same."""
    config, run = run_config(steps=36, checkpoint={**EVERY_STEP, "keep": 2}), tmp_path / "run"
    train(config, tmp_path / "calm")
    train(config, run, **stopping_at(21))
    folder = run / "checkpoints"
    kept = saved_steps(folder)
    for step in kept:
        damage(checkpoint_path(folder, step), how)
    (folder / "step-60.bak").mkdir()
    (folder / "step-000000000060 (copy)").mkdir()
    (folder / "step-000000000061").write_text("")
    with pytest.warns(UserWarning, match=r"set aside as unusable-step-\d+, which can be deleted"):
        assert train(config, run, **stopping_at(7)).state == "preempted"
    assert len([path for path in folder.iterdir() if path.name.startswith("unusable-")]) == len(kept)
    first = saved_steps(folder)[0]
    assert 7 <= first < kept[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(config, run, **stopping_at(14))
        assert saved_steps(folder)[0] > first
        train(config, run)
    assert [rows[0]["step"] for rows in attempts(run)][:3] == [0, 0, first]
    check_same(config, tmp_path / "calm", run)


def test_a_state_of_a_later_version_is_gone_on_from(tmp_path: Path) -> None:
    config, run = run_config(steps=20), tmp_path / "run"
    train(config, run, **stopping_at(7))
    newest = checkpoint_path(run / "checkpoints", saved_steps(run / "checkpoints")[0])
    found = load_checkpoint(newest)
    save_checkpoint(newest.parent, found.tensors, {**found.state, "mood": "fine"})
    assert train(config, run).state == "done"
    assert list(attempts(run))[1][0]["step"] == found.step


def test_a_checkpoint_that_cannot_be_read_now_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, run = run_config(steps=20), tmp_path / "run"
    train(config, run, **stopping_at(7))
    before = saved_steps(run / "checkpoints")

    def fail(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "sha256_of", fail)
        with pytest.raises(CheckpointError, match=r"cannot read the checkpoint: Input/output error; try again"):
            train(config, run)
    assert saved_steps(run / "checkpoints") == before
    assert train(config, run).state == "done"


def test_a_checkpoint_is_committed_after_the_rows_that_it_relies_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    rename, sync = os.rename, JournalWriter.sync

    def note_rename(old: Path, new: Path) -> None:
        done.append(Path(new).name)
        rename(old, new)

    def note_sync(self: JournalWriter) -> None:
        done.append("journal")
        sync(self)

    monkeypatch.setattr(checkpoints.os, "rename", note_rename)
    monkeypatch.setattr(JournalWriter, "sync", note_sync)
    train(run_config(steps=20), tmp_path / "run")
    places = [number for number, name in enumerate(done) if name.startswith("step-")]
    assert places
    assert all(done[number - 1] == "journal" for number in places)

    def fail(self: JournalWriter) -> None:
        path = tmp_path / "other/attempts/1/metrics-0001.jsonl"
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(JournalWriter, "sync", fail)
    with (
        pytest.warns(UserWarning, match=r"cannot save the checkpoint: .*Input/output error.*metrics"),
        pytest.raises(CheckpointError, match=r"metrics-0001.jsonl"),
    ):
        train(run_config(steps=20, seed=1), tmp_path / "other")
    assert not saved_steps(tmp_path / "other/checkpoints")
    assert read_status(tmp_path / "other").state == "running"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(60):
        folder = tmp_path / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(encoded(picture(number, 8, 8), "PNG"))
    return tmp_path / "images"


def on_images(folder: Path, **data: Any) -> RunConfig:
    source = {"source": f"folder:{folder}", "heldout": 8, "image_size": 8, **data}
    return run_config(steps=40, data=source, model={"name": "vit_w12d2p8"})


def test_data_that_have_moved_are_the_same_run(tmp_path: Path, images: Path) -> None:
    runs = tmp_path / "runs"
    calm = on_images(images)
    train(calm, tmp_path / "calm")
    for old in (False, True):
        first = on_images(images, seed=int(old))
        run = run_directory(runs, "name", first)
        assert run.parent == runs
        train(first, run, **stopping_at(14))
        if old:  # earlier versions wrote no hash without places
            found = json.loads((run / "identity.json").read_text())
            del found["config"]
            (run / "identity.json").write_text(json.dumps(found))
        moved = images.rename(tmp_path / f"moved-{old}")
        later = on_images(moved, seed=int(old))
        assert run_directory(runs, "name", later) == run
        assert run_directory(runs, "name", later.model_copy(update={"batch_size": 25})) != run
        assert run_directory(runs, "other", later) != run
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert train(later, run).state == "done"
        assert list(attempts(run))[1][0]["step"] >= 14
        assert json.loads((run / "config.json").read_text())["data"]["source"] == f"folder:{moved}"
        if not old:
            assert measured(run) == measured(tmp_path / "calm")
        images = moved
    (images / "a/0.png").write_bytes(encoded(picture(99, 8, 8), "PNG"))
    assert run_directory(runs, "name", later) != run
    with pytest.raises(CheckpointError, match="the data have changed"):
        train(later, run)


def test_a_shared_folder_of_checkpoints_serves_data_that_have_moved(tmp_path: Path, images: Path) -> None:
    def config(folder: Path) -> RunConfig:
        shared = {**EVERY_STEP, "folder": str(tmp_path / "shared")}
        return on_images(folder).model_copy(update={"checkpoint": run_config(checkpoint=shared).checkpoint})

    train(config(images), tmp_path / "run", **stopping_at(14))
    moved = images.rename(tmp_path / "moved")
    assert train(config(moved), tmp_path / "elsewhere").state == "done"
    assert next(attempts(tmp_path / "elsewhere"))[0]["step"] >= 14


def test_another_version_is_recorded_with_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, run = run_config(steps=30), tmp_path / "run"
    train(config, run, **stopping_at(7))
    now = identity.environment()
    monkeypatch.setattr("isoflop.train.record.environment", lambda: {**now, "torch": "99.0"})
    with pytest.warns(UserWarning, match="resumed under") as told:
        train(config, run, **stopping_at(14))
    assert [str(warning.message) for warning in told] == [
        f"{run}: resumed under torch 99.0 (before: {now['torch']}): its numbers may differ from here on"
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(config, run)
    assert [rows[0]["environment"]["torch"] for rows in attempts(run)] == [now["torch"], "99.0", "99.0"]


def test_a_signal_for_the_whole_group_saves_a_run_with_data_workers(tmp_path: Path) -> None:
    """SIGTERM and SIGINT reach command, data workers and their helpers alike, as schedulers and terminals send them."""
    file = tmp_path / "run.toml"
    file.write_text(
        'steps = 100000\nbatch_size = 24\nlog_every = 5\nthreads = 1\n[model]\nname = "vit_w12d2p8"\n'
        '[data]\nsource = "fractals?classes=20&images=1000"\nheldout = 64\nworkers = 2\n'
        "[checkpoint]\nevery_seconds = 1000\n"
    )
    command = [sys.executable, "-m", "isoflop", "train", str(file), "--output", str(tmp_path / "run")]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, cwd=tmp_path
    )
    journal = tmp_path / "run/attempts/1/metrics-0001.jsonl"
    while not (journal.exists() and b'"train"' in journal.read_bytes()):
        assert process.poll() is None, process.communicate()
    os.killpg(process.pid, signal.SIGTERM)
    _, told = process.communicate(timeout=300)
    assert process.returncode == PREEMPTED, told
    assert b"Traceback" not in told
    assert saved_steps(tmp_path / "run/checkpoints") == [read_status(tmp_path / "run").step]
    with pytest.raises(ProcessLookupError):  # nobody is left of the group
        os.killpg(process.pid, 0)


def test_a_healthy_move_at_the_start_is_no_leap_and_a_real_one_is() -> None:
    early = [math.log(10) + 0.002 * ((7 * k) % 5 - 2) for k in range(50)]
    assert robust_z(1.015 * math.log(10), early) < 2  # z = 10.6 before there was a floor
    assert robust_z(1.5 * math.log(10), early) > 8
    late = [0.30 + 0.01 * ((7 * k) % 5 - 2) for k in range(50)]
    assert robust_z(0.9, late) > 8


def test_a_full_disk_in_the_file_of_the_watchdog_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stuck").write_text("")  # no folder can be made
    with pytest.warns(UserWarning, match=r"stuck/rank-0.txt: cannot write: .*may not write its stack"):
        Watchdog(tmp_path, 0, 1000.0, ends=False).close()

    class Full(io.FileIO):
        def write(self, _content: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", lambda path, *_mode, **_more: Full(path, "w"))
    with pytest.warns(UserWarning, match=r"cannot write: No space left on device"):
        watchdog = Watchdog(tmp_path / "full", 0, 1000.0, ends=False)
    watchdog.beat()
    watchdog.close()


@pytest.mark.parametrize("place", ["data", "run"])
def test_what_failed_is_named_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    path = tmp_path / place / "file"

    def fail(*args: object, **more: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(attempt, "evaluate", fail)
    kind = CheckpointError if place == "run" else DataError
    with pytest.raises(kind) as caught:
        train(run_config(steps=10), tmp_path / "run")
    storage = "the storage failed: " if place == "run" else ""
    assert str(caught.value) == f"{path}: {storage}Input/output error"


def test_a_save_that_failed_on_several_ranks_is_one_line() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "shard-00001")
    try:
        raise full
    except OSError as error:
        failure = CheckpointException("save", {0: (error, error.__traceback__), 1: (error, error.__traceback__)})  # type: ignore[dict-item]
    assert _told(failure) == "[Errno 28] No space left on device: 'shard-00001'"
    assert len(_told(RuntimeError("line\n" * 1000))) < 600
    assert "\n" not in _told(RuntimeError("line\n" * 1000))


def test_far_storage_holds_the_journal_too(tmp_path: Path) -> None:
    config = run_config(steps=40, checkpoint={**EVERY_STEP, "folder": f"file://{tmp_path}/far"})
    train(config, tmp_path / "run", **stopping_at(21))
    rows = read_journal(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")  # the machine is gone
    train(config, tmp_path / "run")
    first, second = attempts(tmp_path / "run")
    assert [row for row in first if row["kind"] == "train"] == rows
    assert second[0]["step"] >= 21
    train(config, tmp_path / "calm")
    check_same(config, tmp_path / "calm", tmp_path / "run")
