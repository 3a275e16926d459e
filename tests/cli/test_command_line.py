"""The command line answers fast, and tells an error in one line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from isoflop.cli import main

HEAVY = ("torch", "pydantic", "rich", "numpy", "scipy", "isoflop.config")

RUN = """\
steps = 12
batch_size = 8
threads = 1
tensorboard = false
[model]
name = "{model}"
[data]
source = "digits"
heldout = 64
"""


def isoflop(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0), *capsys.readouterr()


@pytest.fixture
def run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    from isoflop.models import family_ladder

    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text(RUN.format(model=family_ladder("vit")[0]))
    return "run.toml"


def test_help_is_quick_because_it_imports_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "isoflop", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & set(HEAVY)
    assert all(verb in done.stdout for verb in ("train", "study", "config"))


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["study"], ["config", "--help"], ["train", "-h"]])
def test_help_goes_to_stdout(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    status, out, err = isoflop(capsys, *arguments)
    assert (status, err) == (0, "")
    assert out.startswith("Usage: isoflop")


@pytest.mark.parametrize("arguments", [[], ["study"], ["data"], ["config"]])
def test_no_line_about_a_verb_is_cut_short(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    verbs = isoflop(capsys, *arguments, "--help")[1].partition("Commands:")[2]
    assert verbs
    assert "..." not in verbs


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert isoflop(capsys, "--version") == (0, f"isoflop {version('isoflop')}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["confg", "x"], "No such command 'confg'. Did you mean 'config'?"),
        (["study", "rnu"], "No such command 'rnu'. Did you mean 'run'?"),
        (["train"], "Missing argument 'FILE.toml'."),
        (["train", "--putput", "x"], "No such option: --putput. Did you mean '--output'?"),
        (["train", "gone/x.toml"], "gone/x.toml: no such file"),
        (["study", "status", "nowhere"], "nowhere: no such file"),
        (["study", "run", "gone/x.toml"], "gone/x.toml: no such file"),
        (["config", "show", "."], ".: cannot be read: is a directory"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_exits_2(
    capsys: pytest.CaptureFixture[str], run_file: str, arguments: list[str], message: str
) -> None:
    status, out, err = isoflop(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err == f"error: {message}\n"


def test_several_mistakes_are_told_at_once(capsys: pytest.CaptureFixture[str], run_file: str) -> None:
    with Path(run_file).open("a") as file:
        file.write('\n[schedule]\nname = "cosin"\n')
    status, out, err = isoflop(capsys, "train", run_file, "optim.wieght_decay=0.1")
    assert (status, out) == (2, "")
    assert err == (
        "error: 2 problems in the configuration\n"
        "  command line: unknown key `optim.wieght_decay` - did you mean `optim.weight_decay`?\n"
        '  run.toml:12: `schedule.name` = "cosin" must be one of "constant", "cosine", "rsqrt", "steps", "poly" - '
        "did you mean `cosine`?\n"
    )


def test_an_unknown_model_is_told_with_the_place_that_names_it(
    capsys: pytest.CaptureFixture[str], run_file: str
) -> None:
    status, out, err = isoflop(capsys, "train", run_file, "model.name=vit_w16p")
    assert (status, out) == (2, "")
    assert err.startswith("error: command line: ")
    assert "vit_w16p" in err
    assert err.count("\n") == 1
    assert not Path("runs").exists()
    assert isoflop(capsys, "train", run_file, "model.colour=3")[2].startswith("error: command line: ")


def test_train_trains_and_a_second_time_has_nothing_left_to_do(
    capsys: pytest.CaptureFixture[str], run_file: str
) -> None:
    status, out, err = isoflop(capsys, "train", run_file)
    assert (status, err) == (0, "")
    assert "step 12/12" in out
    (directory,) = Path("runs").iterdir()
    assert directory.name.startswith("run-")
    last = out.splitlines()[-1]
    assert last.startswith("done: held-out loss ")
    assert last.endswith(f"in {directory}")
    assert isoflop(capsys, "train", run_file, "threads=2", "--output", str(directory)) == (0, last + "\n", "")


def test_a_run_s_folder_is_not_given_to_another_run(capsys: pytest.CaptureFixture[str], run_file: str) -> None:
    assert isoflop(capsys, "train", run_file, "-o", "mine")[0] == 0
    status, out, err = isoflop(capsys, "train", run_file, "seed=1", "-o", "mine")
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_ctrl_c_ends_with_a_plain_line_and_130(
    capsys: pytest.CaptureFixture[str], run_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("isoflop.train.train", interrupted)
    assert isoflop(capsys, "train", run_file) == (130, "", "interrupted - run the same command to resume\n")


def test_a_reader_that_leaves_early_is_no_error(run_file: str) -> None:
    command = f"set -o pipefail; {sys.executable} -m isoflop config show {run_file} | true; sleep 0.1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_config_show_prints_every_value_and_its_origin(capsys: pytest.CaptureFixture[str], run_file: str) -> None:
    status, out, _ = isoflop(capsys, "config", "show", run_file, "optim.betas=[0.9, 0.95]")
    rows = {line.split()[0]: line.split("  ") for line in out.splitlines()}
    assert status == 0
    assert rows["key"][-1].strip() == "origin"
    assert rows["steps"][-1].strip() == "run.toml:1"
    assert rows["optim.betas"][-1].strip() == "command line"
    assert rows["optim.clip"][-1].strip() == "default"
    assert "[0.9, 0.95]" in out


def test_config_show_can_be_read_by_a_program(capsys: pytest.CaptureFixture[str], run_file: str) -> None:
    from isoflop.config import config_hash, load_run

    status, out, _ = isoflop(capsys, "config", "show", run_file, "--json", "optim.clip=2")
    shown = json.loads(out)
    assert status == 0
    assert shown["hash"] == config_hash(load_run(run_file, ["optim.clip=2"]).config)
    assert shown["values"]["optim.clip"] == {"value": 2.0, "origin": "command line"}
    assert shown["values"]["steps"] == {"value": 12, "origin": "run.toml:1"}


def test_config_keys_tells_what_every_key_means(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = isoflop(capsys, "config", "keys", "study")
    assert status == 0
    assert re.search(r"^study\.target_budget +number \| none +none +Training FLOPs ", out, re.MULTILINE)
    assert isoflop(capsys, "config", "keys", "studdy")[0] == 2


def test_config_show_is_a_table_on_a_terminal(run_file: str) -> None:
    import pty

    reader, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "isoflop", "config", "show", run_file],
        stdout=terminal,
        env=os.environ | {"COLUMNS": "100"},
    ) as process:
        os.close(terminal)
        text = b""
        while True:
            try:
                part = os.read(reader, 4096)
            except OSError:  # Linux reports the end of a terminal as an error
                break
            if not part:
                break
            text += part
        process.wait()
    os.close(reader)
    assert "──────" in text.decode()
    assert "run.toml:1" in text.decode()
