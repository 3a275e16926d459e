"""The verbs beside training: models, fit, data, watch."""

import csv
import json
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from isoflop.cli import main
from isoflop.cli.models import _short


def isoflop(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0), *capsys.readouterr()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of the law 0.5 + 80·n^-0.4 + 300·d^-0.5, exactly."""
    path = tmp_path / "runs.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["n", "d", "loss", "compute"])
        for compute in (1e9, 1e10, 1e11, 1e12):
            for size in (1e5, 3e5, 1e6, 3e6):
                d = compute / size
                writer.writerow([size, d, 0.5 + 80 * size**-0.4 + 300 * d**-0.5, compute])
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of two classes with three small images each."""
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        folder = tmp_path / "pictures" / "train" / name
        folder.mkdir(parents=True)
        for number in range(3):
            Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "pictures"


def test_the_families_are_listed_without_counting_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    from isoflop.models.presets import FAMILIES

    status, out, _ = isoflop(capsys, "models")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()[1 : 1 + len(FAMILIES)]] == list(FAMILIES)


def test_one_model_is_printed_with_its_published_size(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = isoflop(capsys, "models", "vit_b16")
    lines = out.splitlines()
    head = re.split(r"  +", lines[0])
    row = next(re.split(r"  +", line) for line in lines if line.startswith("vit_b16 "))
    assert status == 0
    assert head[:5] == ["model", "family", "parameters", "MACs", "forward FLOPs"]
    assert row[:3] == ["vit_b16", "vit", "86.6M"]  # 85.8 M (arXiv 2106.04560) and a classifier of 768 × 1000 + 1000
    assert float(row[4].rstrip("G")) == pytest.approx(35.1, rel=0.01)  # arXiv 2106.04560, Table 2


def test_models_are_searched_and_a_misspelt_one_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = isoflop(capsys, "models", "w16", "--family", "vit", "--image-size", "32", "--num-classes", "10")
    assert status == 0
    assert all(re.match(r"vit_w16\S* +vit ", line) for line in out.splitlines()[1:-3])
    status, out, _ = isoflop(capsys, "models", "convformer")  # without a size nothing is counted: the papers' numbers
    assert status == 0
    assert re.split(r" +", out.splitlines()[1]) == ["convformer_s18", "convformer", "27M", "3.9G", "224"]
    for arguments in (["models", "vitb16"], ["models", "--family", "vitt"]):
        status, _, err = isoflop(capsys, *arguments)
        assert status == 2
        assert re.fullmatch(r"error: .* - did you mean `\w+`\?\n", err)


@pytest.mark.parametrize(("count", "text"), [(12, "12"), (1234, "1.23k"), (86_567_656, "86.6M"), (123e9, "123G")])
def test_large_numbers_keep_three_digits(count: int, text: str) -> None:
    assert _short(count) == text


def test_fit_recovers_a_planted_law(capsys: pytest.CaptureFixture[str], table: Path) -> None:
    status, out, _ = isoflop(capsys, "fit", str(table), "--x", "n", "--x", "d", "--y", "loss", "--json")
    assert status == 0
    law = json.loads(out)["groups"][0]["size_data"]
    assert law["irreducible"] == pytest.approx(0.5, rel=0.05)
    assert law["alpha"] == pytest.approx(0.4, rel=0.05)
    assert law["beta"] == pytest.approx(0.5, rel=0.05)


def test_fit_predicts_and_draws(capsys: pytest.CaptureFixture[str], table: Path) -> None:
    drawing = table.with_suffix(".svg")
    status, out, _ = isoflop(
        capsys, "fit", str(table), "--x", "n", "--x", "d", "--y", "loss", "--budget", "1e13", "--picture", str(drawing)
    )
    assert status == 0
    assert "# Laws of runs.csv" in out
    assert "At 1e+13:" in out
    assert drawing.read_text().startswith("<svg ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--x", "m", "--y", "loss"], "runs.csv has no column `m`"),
        (["--x", "n", "--y", "los"], "runs.csv has no column `los` - did you mean `loss`?"),
        (["--x", "n", "--x", "d", "--y", "loss", "--level", "1.5"], "--level must be between 0 and 1, not 1.5"),
        (["--x", "n", "--x", "d", "--y", "loss", "--picture", "/no/x.svg"], "/no/x.svg: cannot be written: no such"),
        (["--speedup", "a", "b"], "a speedup is of two groups: add --by"),
    ],
)
def test_fit_tells_what_is_wrong_in_one_line(
    capsys: pytest.CaptureFixture[str], table: Path, arguments: list[str], message: str
) -> None:
    status, out, err = isoflop(capsys, "fit", str(table), *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_data_is_checked_and_converted_and_indexed(capsys: pytest.CaptureFixture[str], pictures: Path) -> None:
    status, out, _ = isoflop(capsys, "data", "check", str(pictures))
    assert status == 0
    assert "6 images" in out
    shards = pictures.with_name("shards")
    assert isoflop(capsys, "data", "convert", str(pictures), str(shards))[:2] == (0, f"6 images in {shards}\n")
    assert isoflop(capsys, "data", "index", str(shards))[:2] == (0, "images: 6, shards: 1\n")
    assert "6 images" in isoflop(capsys, "data", "check", str(shards))[1]


def test_data_that_a_run_would_refuse_exits_1(capsys: pytest.CaptureFixture[str], pictures: Path) -> None:
    (pictures / "train" / "cat" / "1.png").write_bytes(b"no picture")
    status, out, _ = isoflop(capsys, "data", "check", str(pictures))
    assert status == 1
    assert "verdict: a run would stop" in out


def test_data_that_is_not_there_is_told_in_one_line(capsys: pytest.CaptureFixture[str], pictures: Path) -> None:
    for arguments in (["check", "nowhere"], ["convert", str(pictures), str(pictures)]):
        status, out, err = isoflop(capsys, "data", *arguments)
        assert (status, out) == (2, "")
        assert re.fullmatch(r"error: [^\n]+\n", err)


def _first_object(command: list[str]) -> dict[str, str]:
    """What a command that does not end prints first."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            text += process.stdout.readline()
        process.kill()
    told: dict[str, str] = json.loads(text)
    return told


def test_watch_serves_a_study_until_it_is_interrupted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, _, err = isoflop(capsys, "watch", str(tmp_path))
    assert status == 2
    assert re.fullmatch(r"error: [^\n]+\n", err)
    (tmp_path / "study.json").write_text(json.dumps({"study": "0" * 12, "name": "s", "config": {}}))
    command = [sys.executable, "-u", "-m", "isoflop", "watch", str(tmp_path)]
    pipe = subprocess.PIPE
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a test run in the background ignores Ctrl-C
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, preexec_fn=listening) as process:
        assert process.stdout is not None
        address = next(line for line in process.stdout if line.startswith("open ")).split()[1]
        with urlopen(address) as answer:
            assert b"<title>" in answer.read()
        told = _first_object([*command, "--json"])
        assert told["directory"] == str(tmp_path)
        assert told["url"].startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        try:
            out, err = process.communicate()
        finally:
            process.kill()
    assert (process.returncode, err) == (0, "")
    assert "no longer watching" in out
