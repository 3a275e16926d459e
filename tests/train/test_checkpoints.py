"""A checkpoint is whole or it is not used."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from isoflop.errors import CheckpointError
from isoflop.runs.lock import this_process, unfinished_path
from isoflop.train.checkpoints import checkpoint_path, latest_checkpoint, load_checkpoint, save_checkpoint, saved_steps


def save(folder: Path, step: int, keep: int | None = None) -> Path:
    generator = torch.Generator().manual_seed(step)
    tensors = {"model.w": torch.randn(64, 64, generator=generator), "optimizer.0.step": torch.tensor(float(step))}
    return save_checkpoint(folder, tensors, {"step": step, "samples": "ab"}, keep=keep)


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    loaded = load_checkpoint(path)
    assert loaded.step == 3
    assert loaded.state == {"step": 3, "samples": "ab"}
    torch.testing.assert_close(loaded.tensors["optimizer.0.step"], torch.tensor(3.0), rtol=0, atol=0)


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step, keep=2)
    assert saved_steps(tmp_path) == [4, 3]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "empty"])
def test_damage_is_noticed_and_the_checkpoint_before_is_used(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, 1)
    file = save(tmp_path, 2) / name
    content = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[len(content) // 3] ^= 0x10
        file.write_bytes(content)
    elif damage == "delete":
        file.unlink()
    else:
        file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=name.split(".")[0]):
        load_checkpoint(checkpoint_path(tmp_path, 2))
    with pytest.warns(UserWarning, match="using the checkpoint before it"):
        found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1


def test_every_flipped_bit_of_the_tensors_is_noticed(tmp_path: Path) -> None:
    file = save(tmp_path, 1) / "tensors.safetensors"
    whole = file.read_bytes()
    for position in range(0, len(whole), len(whole) // 40):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            load_checkpoint(checkpoint_path(tmp_path, 1))


def test_a_writer_that_was_killed_leaves_nothing_that_counts(tmp_path: Path) -> None:
    save(tmp_path, 1)
    dead = replace(this_process(), began=1)  # of a process whose number another has now
    foreign = replace(this_process(), boot="0badcafe")  # of a writer on another host, which cannot be asked
    names = [unfinished_path(checkpoint_path(tmp_path, 2), writer.tag) for writer in (dead, foreign, this_process())]
    names.append(tmp_path / ".step-000000000002.999999999")  # as earlier versions named it
    for leftover in names:
        leftover.mkdir()
        (leftover / "tensors.safetensors").write_bytes(b"half")
    assert saved_steps(tmp_path) == [1]
    save(tmp_path, 2)
    assert [leftover.exists() for leftover in names] == [False, True, True, True]
    for leftover in (*names[1:], *names[1].iterdir(), *names[3].iterdir(), *names[2].iterdir()):
        os.utime(leftover, (0, 0))
    save(tmp_path, 3)
    assert [leftover.exists() for leftover in names] == [False, False, True, False]


def test_no_checkpoint_at_all_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nowhere") is None


@pytest.fixture
def small_disk(tmp_path: Path):  # type: ignore[no-untyped-def]
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = (
        os.geteuid() == 0
        and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
        == 0
    )
    if not mounted:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_checkpoint_before_whole(small_disk: Path) -> None:
    save(small_disk, 1)
    big = {"model.w": torch.zeros(512, 512)}
    with pytest.raises(CheckpointError, match=r"cannot save the checkpoint: .*(space|No space)"):
        save_checkpoint(small_disk, big, {"step": 2})
    assert saved_steps(small_disk) == [1]
    assert load_checkpoint(checkpoint_path(small_disk, 1)).step == 1
    assert [p.name for p in small_disk.iterdir()] == ["step-000000000001"]


def test_the_manifest_names_every_file(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    assert set(manifest["sha256"]) == {p.name for p in path.iterdir()} - {"manifest.json"}
