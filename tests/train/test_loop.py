"""The training loop: it learns, it refuses what cannot be, and it records what went wrong."""

import hashlib
import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from isoflop.config import config_hash
from isoflop.config.study import stored_run
from isoflop.errors import CheckpointError, ConfigError, DataError
from isoflop.runs import directory
from isoflop.runs.directory import read_status
from isoflop.train import RunResult, read_journal, train
from isoflop.train.checkpoints import saved_steps
from isoflop.transfer.backbones import load_backbone
from tests.promises.chaos import run_config

ONE_CHECKPOINT = {"every_seconds": 60}


def test_training_on_fractals_learns(tmp_path: Path) -> None:
    data = {"source": "fractals?classes=20", "heldout": 256}
    result = train(run_config(steps=150, data=data, checkpoint=ONE_CHECKPOINT), tmp_path / "run")
    first, last = read_journal(tmp_path / "run")[0]["loss"], result.heldout_loss
    assert result.state == "done"
    assert last < 0.8 * first
    assert result.heldout_accuracy > 2 / 20


@pytest.mark.parametrize("family", ["poolformer_w8d2p8", "nfnet_w8d2", "resnet_w8d8p2"])
def test_other_families_learn_too(tmp_path: Path, family: str) -> None:
    optim = {"learning_rate": 0.01}
    if not family.startswith("poolformer"):
        optim = {"name": "sgd", "learning_rate": 0.3, "agc": 0.01 if family.startswith("nfnet") else "none"}
    data = {"source": "fractals?classes=20", "heldout": 256}
    config = run_config(steps=120, model={"name": family}, optim=optim, data=data, checkpoint=ONE_CHECKPOINT)
    result = train(config, tmp_path / "run")
    assert result.heldout_loss < 0.9 * read_journal(tmp_path / "run")[0]["loss"]


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    config = run_config(steps=20)
    first = train(config, tmp_path / "run")
    rows: list[object] = []
    again = train(config, tmp_path / "run", on_row=rows.append)
    assert again == first
    assert rows == []


def test_a_directory_belongs_to_one_run(tmp_path: Path) -> None:
    train(run_config(steps=20), tmp_path / "run")
    with pytest.raises(CheckpointError, match="belongs to another run"):
        train(run_config(steps=21), tmp_path / "run")


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"not a run \(it holds thesis.txt\)"):
        train(run_config(steps=20), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "thesis.txt"]


@pytest.mark.parametrize("name", ["status.json", "env.json", "config.json", "data.json", "identity.json"])
def test_files_that_a_resume_does_not_need_are_written_again_with_a_warning(tmp_path: Path, name: str) -> None:
    config, run = run_config(steps=10), tmp_path / "run"
    first = train(config, run)
    path, weights = run / name, (run / "model.safetensors").read_bytes()
    whole = json.loads(path.read_text())
    later = [json.dumps({**whole, "state": state}) for state in ("done", "running")] if name == "status.json" else []
    null = '{"state": "done", "step": 10, "steps": 10, "seconds": 1.0, "heldout_loss": null, "error": ""}'
    for content in ("{", "", "\0\0", null if name == "status.json" else "[]", *later):
        path.write_text(content)
        if content in later:  # whole, but of a time before the end
            assert train(config, run).heldout_loss == first.heldout_loss
            continue
        with pytest.warns(UserWarning, match=rf"run/{name}: not readable: .*; it is written again"):
            again = train(config, run)
        assert again.heldout_loss == first.heldout_loss
        assert (run / "model.safetensors").read_bytes() == weights
        assert json.loads(path.read_text()).keys() == whole.keys()


def test_an_identity_that_nothing_else_confirms_is_refused_in_one_line(tmp_path: Path) -> None:
    train(run_config(steps=10), tmp_path / "run")
    (tmp_path / "run/identity.json").write_text("{")
    (tmp_path / "run/config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"run/identity.json: not readable: .+"):
        train(run_config(steps=10), tmp_path / "run")


def test_a_status_of_a_later_version_is_read(tmp_path: Path) -> None:
    first = train(run_config(steps=10), tmp_path / "run")
    path = tmp_path / "run/status.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "mood": "fine"}))
    assert train(run_config(steps=10), tmp_path / "run") == first


def test_a_run_that_an_earlier_version_stopped_halfway_goes_on_to_its_end(tmp_path: Path) -> None:
    config, run = run_config(steps=10), tmp_path / "run"
    first = train(config, run)
    found = json.loads((run / "status.json").read_text())
    stopped = {**found, "state": "stopped", "step": 5, "heldout_loss": None, "halfway_loss": 2.0, "expected_loss": 1.9}
    (run / "status.json").write_text(json.dumps(stopped))
    status = read_status(run)
    assert status is not None
    assert (status.state, status.is_over) == ("preempted", False)
    assert train(config, run).heldout_loss == first.heldout_loss


@pytest.mark.parametrize("old", [False, True])
def test_damaged_weights_of_a_finished_run_are_published_again(tmp_path: Path, old: bool) -> None:
    config, run = run_config(steps=10), tmp_path / "run"
    first = train(config, run)
    path, status = run / "model.safetensors", run / "status.json"
    weights = path.read_bytes()
    assert json.loads(status.read_text())["files"] == {path.name: hashlib.sha256(weights).hexdigest()}
    if old:  # earlier versions left no hash
        found = json.loads(status.read_text())
        del found["files"]
        status.write_text(json.dumps(found))
    for damage in (bytes(len(weights)), weights[:-9], b"", None):
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
            if not old:
                with pytest.raises(CheckpointError, match=r"model.safetensors: damaged: its SHA-256"):
                    load_backbone(run)
        with pytest.warns(UserWarning, match="published again from the last checkpoint"):
            assert train(config, run).heldout_loss == first.heldout_loss
        assert path.read_bytes() == weights
    path.write_bytes(b"")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="without a whole checkpoint to publish them from"), pytest.warns():
        train(config, run)


def test_a_claim_that_was_killed_is_finished_at_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at each file that the claim writes; and as earlier versions left it, whose identity came last."""
    config = run_config(steps=10)
    write, count = directory.write_json, 0
    for kill in range(5):

        def killed(path: Path, value: object, kill: int = kill, **more: bool) -> None:
            nonlocal count
            count += 1
            if count > kill:
                raise KeyboardInterrupt
            write(path, value, **more)

        count = 0
        with monkeypatch.context() as patch:
            patch.setattr(directory, "write_json", killed)
            with pytest.raises(KeyboardInterrupt):
                train(config, tmp_path / f"run{kill}")
        assert train(config, tmp_path / f"run{kill}").state == "done"
    for names in (["config.json"], ["config.json", "env.json", "data.json"]):
        run = tmp_path / f"old{len(names)}"
        run.mkdir()
        for name in names:
            shutil.copy(tmp_path / "run0" / name, run)
        assert train(config, run).state == "done"
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(tmp_path / "run0/config.json", other)
    with pytest.raises(CheckpointError, match="belongs to another run"):
        train(run_config(steps=11), other)


@pytest.mark.parametrize(
    "torn", [b"", b"\xff\x00\x9a", b"3\n", b"[]", b'{"kind": "train", "step": 2}', b'{"step": 1, "im']
)
def test_a_journal_is_read_up_to_what_is_no_row(tmp_path: Path, torn: bytes) -> None:
    attempt = tmp_path / "attempts" / "1"
    attempt.mkdir(parents=True)
    whole = {"kind": "train", "step": 1, "images": 8, "loss": 2.5}
    (attempt / "metrics-0001.jsonl").write_bytes(json.dumps(whole).encode() + b"\n" + torn)
    assert read_journal(tmp_path) == [whole]
    assert read_journal(tmp_path).restarts == ()


def test_one_image_is_no_batch_for_batch_normalisation(tmp_path: Path) -> None:
    config = run_config(model={"name": "timm:resnet10t"}, batch_size=1, steps=10)
    with pytest.raises(ConfigError, match="`batch_size` of 2 or more"):
        train(config, tmp_path / "run")


def test_changed_data_are_noticed_at_resume(tmp_path: Path) -> None:
    config = run_config(steps=20)
    train(config, tmp_path / "run")
    identity = tmp_path / "run" / "identity.json"
    identity.write_text(identity.read_text().replace('"samples": 1000', '"samples": 999'))
    with pytest.raises(CheckpointError, match="the data have changed"):
        train(config, tmp_path / "run")


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(tmp_path: Path) -> None:
    optim = {"name": "sgd", "learning_rate": 1e9, "clip": 1e30, "momentum": 0.0}
    result = train(run_config(optim=optim), tmp_path / "run")
    assert result.state == "diverged"
    assert math.isnan(result.heldout_loss)
    assert "not finite" in read_status(tmp_path / "run").error
    again = train(run_config(optim=optim), tmp_path / "run")
    assert repr(again) == repr(result)  # NaN is no equal of itself


def test_a_run_that_was_asked_to_stop_ends_the_same_at_second_sight(tmp_path: Path) -> None:
    asked = iter([False, False, True])
    first = train(run_config(steps=20), tmp_path / "run", stop=lambda: next(asked))
    status = read_status(tmp_path / "run")
    assert status is not None
    assert (first.state, repr(RunResult.of(status))) == ("preempted", repr(first))


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path: Path) -> None:
    config = run_config(steps=40)
    train(config, tmp_path / "calm")
    train(config, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    newest = saved_steps(folder)[0]
    file = folder / f"step-{newest:012d}" / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    (tmp_path / "run" / "status.json").unlink()
    with pytest.warns(UserWarning, match="using the checkpoint before it"):
        train(config, tmp_path / "run")
    ours, calm = load_file(tmp_path / "run/model.safetensors"), load_file(tmp_path / "calm/model.safetensors")
    assert all(torch.equal(ours[name], calm[name]) for name in calm)


def test_two_processes_cannot_write_one_run(tmp_path: Path) -> None:
    from isoflop.runs.lock import sole_writer

    held = sole_writer(tmp_path / "run", CheckpointError)
    with held, pytest.raises(CheckpointError, match="another isoflop process"):
        train(run_config(steps=20), tmp_path / "run")


def test_an_absent_device_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has the device that is asked for")
    with pytest.raises(ConfigError, match="no CUDA device"):
        train(run_config(device="cuda"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"randaugment": "foo"}, "randaugment `foo` must start with"),
        ({"augment": "flip"}, "unknown augmentation `flip`"),
    ],
)
def test_an_augmentation_that_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, data: dict[str, str], message: str
) -> None:
    config = run_config()
    with pytest.raises(DataError, match=message):
        train(config.model_copy(update={"data": config.data.model_copy(update=data)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_of_the_earlier_randaugment_is_read_and_not_continued(tmp_path: Path) -> None:
    """It has no `data.randaugment`, and keeps its id."""
    now = run_config(data={"source": "fractals?classes=4&images=64", "heldout": 8, "augment": "deit"})
    stored = now.model_dump(mode="json")
    del stored["data"]["randaugment"]
    earlier = stored_run(stored)
    assert config_hash(earlier) != config_hash(now)
    assert config_hash(stored_run(earlier.model_dump(mode="json"))) == config_hash(earlier)
    with pytest.raises(DataError, match="RandAugment of a third of the strength") as caught:
        train(earlier, tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        with pytest.raises(CheckpointError, match="No space left"):
            train(run_config(), folder / "run")
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_tensorboard_has_the_curves(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(run_config(steps=40, tensorboard=True), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    rows = read_journal(tmp_path / "run")
    losses = events.Scalars("train/loss")
    assert [event.step for event in losses] == [row["step"] for row in rows]
    assert [event.value for event in losses] == pytest.approx([row["loss"] for row in rows])
    assert len(events.Scalars("heldout/loss")) == 1
