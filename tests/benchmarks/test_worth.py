"""benchmarks/worth.py: every rival trains and is judged on the test part, and finished cells are not run again."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from isoflop.errors import DataError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def worth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    return import_module("worth")


def plain_colours(worth: Any, folder: Path, count: int = 64) -> str:
    """Noise with a red or a blue cast, as Parquet; the labels of the test part alternate."""

    def rows(seed: int) -> Any:
        rng = np.random.default_rng(seed)
        for number in range(count):
            pixels = rng.integers(0, 128, (16, 16, 3), dtype=np.uint8)
            pixels[..., 2 * (number % 2)] += 127
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            yield file.getvalue(), number % 2

    sets = import_module("worth_sets")
    return str(sets.write_parquet(folder, ("red", "blue"), {"train": lambda: rows(0), "test": lambda: rows(1)}))


@pytest.mark.parametrize("rival", ["resnet9", "fixed", pytest.param("timm_resnet18", marks=pytest.mark.long)])
def test_a_rival_learns_in_a_few_steps_and_is_judged_on_the_test_part(worth: Any, tmp_path: Path, rival: str) -> None:
    source = plain_colours(worth, tmp_path / "images")
    cell = worth.Cell("colours", source, 16, 1.0, rival, 0, str(tmp_path / "out"), steps=8)
    found = worth.run_cell(cell)
    assert found["status"] == "done"
    assert found["epochs"] == 4.0  # 8 steps of 32 over 64 images
    assert found["accuracy"] * 64 == pytest.approx(round(found["accuracy"] * 64))
    if rival == "resnet9":
        assert found["accuracy"] > 0.9


def test_the_learning_rate_follows_the_clock_to_zero(worth: Any, tmp_path: Path) -> None:
    cell = worth.Cell(
        "colours", plain_colours(worth, tmp_path / "images"), 16, 1.0, "resnet9", 0, str(tmp_path), steps=4
    )
    source, rates = cell.open(), []
    model = worth.ResNet9(2, source)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    recipe = worth.Recipe(8)
    images = worth.fit(
        model, source, optimizer, lambda progress: 1 - progress, worth.Clock(0.0, 4), recipe, 0,
        lambda progress: rates.append(optimizer.param_groups[0]["lr"]),
    )  # fmt: skip
    assert (images, rates) == (32, [1.0, 0.75, 0.5, 0.25])
    assert worth.fit(model, source, optimizer, lambda progress: 1.0, worth.Clock(0.0), recipe, 0) == 0  # time is over


def test_the_package_s_weights_get_timm_s_names_only_where_they_fit(worth: Any) -> None:
    theirs = {"_conv_stem.weight": torch.ones(2, 3), "_bn0.bias": torch.zeros(2)}
    found = worth.renamed(theirs, {"conv_stem.weight": torch.empty(2, 3), "bn1.bias": torch.empty(2)})
    assert found["conv_stem.weight"] is theirs["_conv_stem.weight"]
    with pytest.raises(DataError, match="do not fit"):
        worth.renamed(theirs, {"conv_stem.weight": torch.empty(2, 4), "bn1.bias": torch.empty(2)})


def test_finished_cells_are_not_run_again_and_the_table_has_the_gap_to_the_best(
    worth: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (out / "cells").mkdir(parents=True)
    source = plain_colours(worth, tmp_path / "images")
    monkeypatch.setattr(worth, "missing", lambda rival: "optuna is not there" if rival == "optuna" else "")
    run: list[str] = []

    def planted(cell: Any) -> dict[str, Any]:
        run.append(cell.name)
        accuracies = {"isoflop": 0.7, "resnet9": 0.72, "fixed": 0.5, "frozen": 0.9}
        row = {**worth.asdict(cell), "status": "done", "accuracy": accuracies[cell.rival] + 0.02 * cell.seed}
        row |= {"wall_seconds": 60.0, "cpu_seconds": 100.0}
        if cell.rival == "fixed":
            return {**row, "status": "failed", "reason": "it | broke"}
        (out / "cells" / f"{cell.name}.json").write_text(json.dumps(row))
        return row

    monkeypatch.setattr(worth, "in_process", planted)
    arguments = [source, "--minutes", "1", "--seeds", "2", "--out", str(out), "--rivals", "isoflop", "resnet9", "fixed"]
    assert worth.main([*arguments, "frozen", "optuna"]) == 1
    assert len(run) == 8
    run.clear()
    worth.main([*arguments, "frozen", "optuna"])
    assert all("fixed" in name for name in run)  # what failed is tried again
    table = (out / "worth.md").read_text(encoding="utf-8")
    assert "| 71.0 ± 1.0 (2) | 73.0 ± 1.0 (2) | – | – | 91.0 ± 1.0 (2) | -2.0 |" in table
    assert "it \\| broke" in table
    assert "optuna is not there" in table
    assert "failed: it | broke" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["bccd"], "give --data FOLDER"), (["folder:nowhere"], "nowhere"), (["bccd", "--data", "."], "no folder bccd")],
)
def test_data_that_is_not_there_is_said_in_one_line(
    worth: Any, arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=says):
        worth.main(arguments)


@pytest.mark.long
def test_a_rehearsal_runs_every_rival_to_its_end(worth: Any, tmp_path: Path) -> None:
    source, out = plain_colours(worth, tmp_path / "images", 200), tmp_path / "out"
    command = [sys.executable, str(BENCHMARKS / "worth.py"), source, "--image-size", "16", "--rehearse", "--seeds", "1"]
    ended = subprocess.run(
        [*command, "--minutes", "1", "--out", str(out)], capture_output=True, text=True, env=os.environ
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    cells = json.loads((out / "worth.json").read_text(encoding="utf-8"))["cells"]
    everywhere = {name for name, rival in worth.RIVALS.items() if not rival.needs}  # all but those of other packages
    assert {cell["rival"] for cell in cells if cell["status"] == "done"} >= everywhere
    assert (out / "worth.md").read_text(encoding="utf-8") in ended.stdout
