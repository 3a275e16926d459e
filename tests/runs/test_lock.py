"""One writer a directory: forked workers hold nothing, and the living and the dead are told apart."""

import errno
import json
import os
import select
import signal
import subprocess
import sys
import time
import warnings
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from isoflop.errors import CheckpointError
from isoflop.runs import lock
from isoflop.runs.lock import sole_writer, this_process

HOLD = r"""
import os, sys, time, pathlib
from isoflop.errors import CheckpointError
from isoflop.runs.lock import sole_writer
with sole_writer(pathlib.Path(sys.argv[1]), CheckpointError):
    child = os.fork()
    os.write(1, f"{'main' if child else 'worker'} {os.getpid()}\n".encode())
    time.sleep(600)  # the worker hangs in its own code, as a data worker in a read
"""


def held(directory: Path) -> "subprocess.Popen[str]":
    """A process that holds `directory`, with a forked worker that hangs."""
    return subprocess.Popen([sys.executable, "-c", HOLD, str(directory)], stdout=subprocess.PIPE, text=True)


def test_a_killed_writer_lets_go_though_its_forked_worker_hangs(tmp_path: Path) -> None:
    process = held(tmp_path)
    assert process.stdout
    worker = int(dict(process.stdout.readline().split() for _ in range(2))["worker"])
    try:
        with pytest.raises(CheckpointError) as told, sole_writer(tmp_path, CheckpointError):
            pass
        assert f"another isoflop process is writing here: process {process.pid} on {os.uname().nodename}" in str(
            told.value
        )
        process.kill()
        process.wait()
        os.kill(worker, 0)  # it lives
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing to wait for
            with sole_writer(tmp_path, CheckpointError):
                assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
        assert (tmp_path / ".lock").read_text() == ""
    finally:
        process.kill()
        os.kill(worker, signal.SIGKILL)
        process.stdout.close()


def foreign(directory: Path, **changes: Any) -> None:
    """Leaves in `directory` what a writer on another host leaves there."""
    writer = replace(this_process(), boot="0badcafe", host="node7", **changes)
    (directory / ".lock").write_text(json.dumps(asdict(writer)))


def test_a_writer_on_another_host_lives_while_its_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds: list[float] = []

    def beat(pause: float) -> None:
        seconds.append(pause)
        if len(seconds) == 7:
            os.utime(tmp_path / ".lock", (1, 1))  # whatever the clock there says

    monkeypatch.setattr(lock.time, "sleep", beat)
    foreign(tmp_path)
    with (
        pytest.warns(UserWarning, match=r"process \d+ on node7 .*waiting up to 30 s"),
        pytest.raises(CheckpointError, match=r"process .* on node7"),
        sole_writer(tmp_path, CheckpointError),
    ):
        pass
    assert len(seconds) == 7
    with pytest.warns(UserWarning, match="waiting"), sole_writer(tmp_path, CheckpointError):
        assert sum(seconds[7:]) == lock.PATIENCE_SECONDS  # it has given no sign
    with sole_writer(tmp_path, CheckpointError):  # and a writer that has let go is not waited for
        pass
    foreign(tmp_path, pid=1)
    monkeypatch.setattr(lock.time, "sleep", lambda pause: (tmp_path / ".lock").write_text(""))
    with pytest.warns(UserWarning, match="waiting"), sole_writer(tmp_path, CheckpointError):
        pass  # it let go while we looked


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_storage_without_locks_has_another_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    run = tmp_path / str(number)
    with ExitStack() as first:
        with pytest.warns(UserWarning, match="has no locks"):
            first.enter_context(sole_writer(run, CheckpointError))
        assert json.loads((run / ".lock.exclusive").read_text())["pid"] == os.getpid()
        with pytest.raises(CheckpointError, match=f"process {os.getpid()} on"), sole_writer(run, CheckpointError):
            pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        with sole_writer(run, CheckpointError):
            pass
    assert not (run / ".lock.exclusive").exists()
    dead = replace(this_process(), began=1)
    (run / ".lock.exclusive").write_text(json.dumps(asdict(dead)))
    with sole_writer(run, CheckpointError):
        pass
    slept: list[float] = []
    monkeypatch.setattr(lock.time, "sleep", slept.append)
    (run / ".lock.exclusive").write_text("")  # killed before it could sign, or on another host
    with pytest.warns(UserWarning, match="an unknown host"), sole_writer(run, CheckpointError):
        assert sum(slept) == lock.PATIENCE_SECONDS
    assert sorted(path.name for path in run.iterdir()) == [".lock"]


def test_a_lock_that_fails_otherwise_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with pytest.raises(CheckpointError, match=r"\.lock: cannot lock: Input/output error"):
        sole_writer(tmp_path, CheckpointError).__enter__()


def test_the_holder_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.001)
    with sole_writer(tmp_path, CheckpointError):
        os.utime(tmp_path / ".lock", (1, 1))
        deadline = time.monotonic() + 60
        while (tmp_path / ".lock").stat().st_mtime <= 1:
            assert time.monotonic() < deadline
            select.select([], [], [], 0.001)


def test_a_process_is_told_from_a_later_one_of_its_number() -> None:
    me = this_process()
    assert me.lives()
    assert replace(me, began=me.began - 1).lives() is False
    assert replace(me, boot="0badcafe").lives() is None
    assert replace(me, namespace="4026531999").lives() is None  # of a container
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert replace(me, pid=ended.pid).lives() is False
