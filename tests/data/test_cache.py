"""What is kept on disk is whole or made again, holds no failed attempt to read, and is made by many at once."""

import errno
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from isoflop.data import batches, check, open_source
from isoflop.data import cache as caches
from isoflop.data.cache import content_hash
from isoflop.data.records import fingerprint_files, is_fingerprint_of
from isoflop.data.sources.folder import FolderRecords
from isoflop.errors import CheckpointError, DataError
from isoflop.train.identity import claim_run
from tests.processes import at_once, failures
from tests.promises.chaos import run_config


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("isoflop.data.records._WAITS", (0.0, 0.0))
    return tmp_path / "cache"


def pixels(folder: Path) -> torch.Tensor:
    source = open_source(f"folder:{folder}?decode=once", split="train", image_size=16, heldout=0)
    return source.read(np.arange(len(source)))[0]


def break_reads(monkeypatch: pytest.MonkeyPatch, number: int, *, index: int = 7, times: int = 10**6) -> None:
    """From now on, so many reads of one record fail with this errno."""
    read, left = FolderRecords.read, [times]

    def broken(self: FolderRecords, at: int) -> bytes:
        if at == index and left[0] > 0:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return read(self, at)

    monkeypatch.setattr(FolderRecords, "read", broken)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EACCES])
def test_an_error_of_the_storage_is_raised_and_never_kept(
    number: int, cache: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        break_reads(patch, number)
        with pytest.raises(DataError, match=rf"cat/07\.png: {os.strerror(number)}; the storage cannot be read"):
            pixels(image_folder)
        source = open_source(f"folder:{image_folder}?decode=each", split="train", image_size=16, heldout=0)
        with pytest.raises(DataError, match=rf"cat/07\.png: {os.strerror(number)}; the storage cannot be read"):
            list(batches(source, seed=0, batch_size=60, start_step=0, stop_step=1))
        with pytest.raises(DataError, match="the storage cannot be read"):
            check(f"folder:{image_folder}")
    assert not list(cache.glob("decoded/*"))
    found = pixels(image_folder)
    assert all(image.any() for image in found)


def test_a_read_that_fails_twice_is_tried_a_third_time(
    cache: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        break_reads(patch, errno.EIO, times=2)
        found = pixels(image_folder)
    caches.shutil.rmtree(cache)
    assert torch.equal(found, pixels(image_folder))


def test_an_image_that_was_gone_is_looked_for_again(
    cache: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isoflop.data.records.Quarantine.add", lambda *rest: None)
    with monkeypatch.context() as patch:
        break_reads(patch, errno.ENOENT)
        source = open_source(f"folder:{image_folder}?decode=once", split="train", image_size=16, heldout=0)
        assert [damage.reason for damage in source.damages] == ["No such file or directory"]  # type: ignore[attr-defined]
    source = open_source(f"folder:{image_folder}?decode=once", split="train", image_size=16, heldout=0)
    assert source.damages == ()  # type: ignore[attr-defined]


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: flip(entry / "images.npy", 10),
        lambda entry: flip(entry / "images.npy", 5000),
        lambda entry: flip(entry / "images.npy", -1),
        lambda entry: (entry / "images.npy").write_bytes(bytes((entry / "images.npy").stat().st_size)),
        lambda entry: os.truncate(entry / "images.npy", 3000),
        lambda entry: (entry / "images.npy").unlink(),
        lambda entry: (entry / "damaged.json").write_bytes(b""),
        lambda entry: (entry / "damaged.json").write_text('{"damages": [[0, "a", "b"]], "gone": []}'),
        lambda entry: (entry / "manifest.json").write_bytes(b""),
        lambda entry: (entry / "manifest.json").write_text('{"format": 1, "files": {"images.npy": 3}}'),
        lambda entry: (entry / "manifest.json").write_text("[" * 100_000),
        lambda entry: (entry / "manifest.json").unlink(),
        lambda entry: (caches.shutil.rmtree(entry), entry.write_bytes(b"a file")),
    ],
)
def test_a_damaged_entry_is_made_again(damage: Callable[[Path], object], cache: Path, image_folder: Path) -> None:
    expected = pixels(image_folder)
    (entry,) = (cache / "decoded").iterdir()
    damage(entry)
    assert torch.equal(pixels(image_folder), expected)
    assert list((cache / "decoded").iterdir()) == [entry]
    before = entry.stat().st_ino
    assert torch.equal(pixels(image_folder), expected)
    assert entry.stat().st_ino == before  # whole again


def test_a_flip_that_leaves_size_and_time_is_found_by_another_process(cache: Path, image_folder: Path) -> None:
    expected = pixels(image_folder)
    path = next((cache / "decoded").glob("*/images.npy"))
    times = path.stat()
    flip(path, 5000)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    (other,) = at_once(lambda: pixels(image_folder).numpy())
    assert np.array_equal(other, expected.numpy())


def test_decoded_images_of_another_way_to_decode_are_not_taken(
    cache: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels(image_folder)
    monkeypatch.setattr("isoflop.data.sources.arrays.DECODING", 10**6)
    pixels(image_folder)
    assert len(list((cache / "decoded").iterdir())) == 2


def test_what_cannot_be_kept_is_used_and_said(cache: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = pixels(image_folder)
    monkeypatch.setenv("ISOFLOP_CACHE", str(image_folder / "train" / "cat" / "00.png" / "below a file"))
    with pytest.warns(UserWarning, match="cannot be written .*ISOFLOP_CACHE .*delete caches"):
        assert torch.equal(pixels(image_folder), expected)


def test_a_full_disk_leaves_nothing_behind(cache: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(caches, "sync", full)
        with pytest.warns(UserWarning, match="No space left on device"):
            found = pixels(image_folder)
    assert not list((cache / "decoded").iterdir())
    assert torch.equal(pixels(image_folder), found)


def test_content_is_synced_before_it_has_a_name(
    cache: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def note(handle: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    monkeypatch.setattr("os.fsync", note)
    monkeypatch.setattr("os.rename", lambda old, new: (done.append("renamed"), rename(old, new)))
    pixels(image_folder)
    assert done.index("images.npy") < done.index("renamed")
    assert done.index("damaged.json") < done.index("renamed")
    assert any("manifest.json" in name for name in done[: done.index("renamed")])
    assert done[-1] == "decoded"


@pytest.mark.parametrize("is_damaged", [False, True])
def test_eight_processes_make_one_entry(is_damaged: bool, cache: Path, image_folder: Path) -> None:
    expected = pixels(image_folder).numpy()
    (entry,) = (cache / "decoded").iterdir()
    if is_damaged:
        flip(entry / "images.npy", 5000)
    else:
        caches.shutil.rmtree(entry)
    found = at_once(*[lambda: pixels(image_folder).numpy()] * 8)
    assert not failures(found)
    assert all(np.array_equal(one, expected) for one in found)
    assert list((cache / "decoded").iterdir()) == [entry]


def test_a_hash_is_remembered_until_the_content_changes(cache: Path, tmp_path: Path) -> None:
    """Also where size and time are set to what they were."""
    path = tmp_path / "large"
    path.write_bytes(bytes(2_000_000))
    times = path.stat()
    first = content_hash(path)
    (kept,) = (cache / "hashes").iterdir()
    assert json.loads(kept.read_text())["sha256"] == first
    kept.write_text(kept.read_text().replace(first, "0" * 64))
    assert content_hash(path) == "0" * 64  # not read again
    for damage in ("", "{}", '{"signature": 1, "sha256": 2}'):
        kept.write_text(damage)
        assert content_hash(path) == first
    with path.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"x")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert content_hash(path) != first


def test_large_files_count_byte_by_byte_and_runs_of_before_go_on(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then, 64 blocks of a large file were its fingerprint."""
    path = tmp_path / "large"
    path.write_bytes(bytes(8_000_000))
    monkeypatch.setattr("isoflop.data.records._HASHED_WHOLE", 1 << 20)
    first = fingerprint_files([path])
    with path.open("r+b") as file:
        file.seek(100_000)  # between the blocks
        file.write(b"x")
    second = fingerprint_files([path])
    sampled = first.partition("-")[0]
    assert first != second
    assert second.startswith(sampled)
    assert is_fingerprint_of(sampled, first)
    assert not is_fingerprint_of(second, first)
    config, directory = run_config(steps=60), tmp_path / "run"
    directory.mkdir()
    source = open_source("digits", split="train", image_size=8)
    source.fingerprint = sampled
    claim_run(config, directory, source)
    source.fingerprint = first
    claim_run(config, directory, source)
    source.fingerprint = f"{'0' * 32}-{'0' * 32}"
    with pytest.raises(CheckpointError, match="the data have changed"):
        claim_run(config, directory, source)


def test_no_warning_where_all_is_well(cache: Path, image_folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels(image_folder)
        pixels(image_folder)
