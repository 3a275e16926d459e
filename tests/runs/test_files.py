"""Files of ours are whole or absent, private while they are written, and read with one clear line where damaged."""

import errno
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from isoflop.errors import CheckpointError, StudyError
from isoflop.runs import files
from isoflop.runs.files import (
    private_path,
    read_json,
    read_json_value,
    remove_partial_files,
    replacing,
    write_atomically,
    write_json,
)


def test_a_write_replaces_all_or_nothing_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "status.json"
    write_json(path, {"step": 1})
    assert read_json(path, {"step": int}) == {"step": 1}
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(files.os, name, _fail)
            with pytest.raises(OSError, match=re.escape(str(path))) as caught:
                write_json(path, {"step": 2})
        assert caught.value.filename == str(path)
        assert read_json(path) == {"step": 1}
        assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def _fail(*args: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_order_is_content_then_name_then_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_sync(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else f"{os.fstat(handle).st_size} bytes")
        fsync(handle)

    def note_replace(old: Path, new: Path) -> None:
        done.append("name")
        replace(old, new)

    monkeypatch.setattr(files.os, "fsync", note_sync)
    monkeypatch.setattr(files.os, "replace", note_replace)
    write_atomically(tmp_path / "a", "twelve bytes")
    assert done == ["12 bytes", "name", "folder"]


def test_names_are_private_and_files_of_others_are_left(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250)  # as long as file systems take
    assert private_path(path) != private_path(path)
    (tmp_path / ".n.partial").write_text("of somebody else")
    with replacing(path) as one, replacing(path) as other:
        one.write_text("first")
        other.write_text("second")
        (tmp_path / private_path(path).name).write_text("killed")
    assert path.read_text() == "first"  # renamed last
    remove_partial_files(tmp_path, older_than=3600)
    assert len(list(tmp_path.iterdir())) == 3
    remove_partial_files(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {path.name, ".n.partial"}


def test_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    code = "import os, sys, pathlib; os.umask(0o027); from isoflop.runs.files import write_json; "
    code += "write_json(pathlib.Path(sys.argv[1]), {})"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.json")], check=True)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "not JSON, or damaged"),
        (b"\0" * 40, "not JSON, or damaged"),
        (b'{"step": 1', "not JSON, or damaged"),
        (b'{"step": "\xff"}', "not JSON, or damaged"),
        (b"[" * 100_000, "not JSON, or damaged"),
        (b'{"step": ' + b"1" * 5000 + b"}", "not JSON, or damaged"),
        (b"[1]", "a list where an object is expected"),
        (b"null", "null where an object is expected"),
        (b'{"loss": 1}', "it lacks `step`"),
        (b'{"step": null}', "`step` is null"),
        (b'{"step": true}', "`step` is true or false"),
        (b'{"step": 1.5}', "`step` is a number"),
        (b'{"step": 1, "loss": "a\\nb"}', "`loss` is text"),
    ],
)
def test_what_is_not_the_object_asked_for_is_one_line(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_json(path, {"step": int, "loss": float | None})
    assert str(caught.value).startswith(f"{path}: not readable: ")
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_folders_and_pipes_are_told_apart(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, what in (("none", "none: missing"), (".", "not a file"), ("pipe", "pipe: not readable: not a file")):
        with pytest.raises(StudyError, match=what):
            read_json(tmp_path / name, error=StudyError)


def test_integers_pass_for_floats_and_a_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('\ufeff{"loss": 2, "more": null}', encoding="utf-8")
    assert read_json(path, {"loss": float, "more": int | None}) == {"loss": 2, "more": None}
    path.write_text("[1, 2]")
    assert read_json_value(path) == [1, 2]
