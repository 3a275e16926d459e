"""Output never ends a run, whatever stdout leads to; and text is written in whatever encoding there is."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from isoflop.cli import main
from isoflop.cli.output import guard_streams, print_table
from isoflop.errors import ConfigError
from isoflop.train.ranks import launched_world

RUN = """
steps = 2
batch_size = 8
log_every = 1
[model]
name = "vit_w4d1p8"
[data]
source = "fractals?classes=4&images=64"
heldout = 16
image_size = 32
[optim]
learning_rate = 0.01
"""


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a shell makes of `command`, in which $I is isoflop."""
    variables = {**os.environ, "I": f"{sys.executable} -m isoflop", **environment}
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=folder, env=variables)


def here(*arguments: str) -> int:
    """The exit status of a command in this process."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)


def test_a_full_disk_behind_stdout_is_one_line_and_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    told = shell("$I config keys run > /dev/full", tmp_path)
    assert (told.returncode, told.stderr) == (2, "error: stdout cannot be written: No space left on device\n")
    (tmp_path / "run.toml").write_text(RUN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))  # noqa: SIM115
    assert here("train", "run.toml", "--output", "run") == 0
    assert capsys.readouterr().err == ""
    assert (tmp_path / "run/model.safetensors").is_file()
    # With --quiet there is the result, and nothing of the way there.
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert here("train", "run.toml", "--quiet", "--output", "quiet") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("done: held-out loss ")
    # With --json the object is the result, and losing it is an error; the run stays done.
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))  # noqa: SIM115
    assert here("train", "run.toml", "--output", "run", "--json") == 2
    assert capsys.readouterr().err == "error: stdout cannot be written: No space left on device\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_streams_that_are_closed_from_the_start(closed: str, tmp_path: Path) -> None:
    told = shell(f"$I config keys run {closed}", tmp_path)
    assert (told.returncode, told.stderr) == (0, "")
    told = shell(f"$I fit nothing.csv --x n --y loss {closed}", tmp_path)
    assert told.returncode == 2
    assert told.stderr == ("" if "2>" in closed else "error: nothing.csv: no such file\n")


def test_a_reader_who_has_seen_enough(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # before anything is written: what `head` does is a matter of time
    command = [sys.executable, "-m", "isoflop", "config", "keys", "study"]
    told = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    os.close(writer)
    assert (told.returncode, told.stderr) == (1, "")


@pytest.mark.parametrize("columns", [30, 44, 80])
def test_a_narrow_terminal_cuts_no_number(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    print_table(("class with a long name", "images", "accuracy"), [("a name of words", "12,345", "0.912–0.934")] * 2)
    shown = terminal.getvalue()
    assert shown.count("12,345") == shown.count("0.912–0.934") == 2
    assert "…" not in shown
    print_table(("none", "of them"), [])


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "koi8-r"])
def test_any_encoding_takes_any_text(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    guard_streams()
    print("0.241–0.716 … 3×3 ≥ \udce9 \U0001f600 Ж", flush=True)
    told = written.getvalue().decode(encoding).rstrip("\n")
    assert "\\udce9 \\U0001f600" in told
    if encoding == "ascii":
        assert told == "0.241-0.716 ... 3x3 >= \\udce9 \\U0001f600 \\u0416"


def test_a_terminal_without_unicode_shows_what_a_study_shows(tmp_path: Path) -> None:
    plain = shell("$I models", tmp_path, PYTHONIOENCODING="ascii", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", LC_ALL="C")
    assert (plain.returncode, plain.stderr) == (0, "")
    assert "..." in plain.stdout
    assert plain.stdout.isascii()


def test_a_tilde_is_the_home_wherever_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "run.toml").write_text(RUN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert here("train", "run.toml", "--output=~/run") == 0
    assert (tmp_path / "home/run/status.json").is_file()
    assert not (tmp_path / "~").exists()


def test_a_world_size_that_nobody_launched_is_told_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert launched_world() == 1
    for name, value in {"RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert launched_world() == 4
    monkeypatch.setenv("WORLD_SIZE", "four")
    with pytest.raises(ConfigError, match="WORLD_SIZE is 'four', not a whole number"):
        launched_world()
