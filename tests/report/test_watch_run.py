"""The live view of a single run, against a folder that is written to while it is watched."""

import json
from pathlib import Path
from typing import Any

import pytest

from isoflop.errors import StudyError
from isoflop.report.watch import Watch
from isoflop.report.watch.server import LiveRun, run_snapshot
from isoflop.report.watch.state import Tail
from isoflop.runs.journal import read_journal
from tests.report.conftest import HOSTILE
from tests.report.test_watch import fetch, write_json
from tests.report.test_watch_page import Visit


def write_rows(folder: Path, rows: list[dict[str, Any]], attempt: int = 1) -> None:
    journal = folder / "attempts" / str(attempt) / "metrics-0001.jsonl"
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def train_rows(first: int, last: int, every: int = 10) -> list[dict[str, Any]]:
    return [
        {"kind": "train", "step": s, "images": 64 * s, "loss": 5 * s**-0.2, "lr": 1e-3 * s, "seconds": 0.5 * s}
        for s in range(first, last + 1, every)
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 400 steps of which 200 are done."""
    write_json(tmp_path / "config.json", {"model": {"name": "vit_w8d1p8"}, "steps": 400, "seed": 3})
    write_json(tmp_path / "status.json", {"state": "running", "step": 100, "steps": 400})
    write_rows(tmp_path, [{"kind": "start", "step": 0, "origin": "scratch"}, *train_rows(10, 200)])
    return tmp_path


def test_a_run_tells_how_far_it_is_and_what_it_trains(run: Path) -> None:
    live = LiveRun(run)
    assert live.refresh()
    shown = run_snapshot(live)
    assert shown["title"] == "50 % · vit_w8d1p8"
    assert "200 of 400 steps · 1 min 40 s so far · about 1 min 40 s left" in shown["html"]["live-progress"]
    assert "<dt>seed</dt><dd>3</dd>" in shown["html"]["live-config"]
    assert set(shown["figures"]) == {"loss", "pace"}
    speeds = shown["figures"]["pace"]["data"][1]["y"]
    assert speeds == pytest.approx([128] * len(speeds))  # 64 images in half a second
    assert not live.refresh(), "nothing has changed"


def test_the_end_of_a_run_is_said_with_its_loss(run: Path) -> None:
    live = LiveRun(run)
    write_rows(run, train_rows(210, 400))
    over = {"state": "done", "step": 400, "steps": 400, "seconds": 200.0, "heldout_loss": 1.25, "heldout_accuracy": 0.5}
    write_json(run / "status.json", over)
    live.refresh()
    shown = run_snapshot(live)
    assert shown["title"].startswith("100 %")
    assert shown["text"]["live-sentence"].endswith("held-out loss 1.250, held-out accuracy 0.500.")
    write_json(run / "status.json", {"state": "diverged", "step": 250, "error": "the loss was not finite at step 250"})
    live.refresh()
    sentence = run_snapshot(live)["text"]["live-sentence"]
    assert sentence.startswith("Diverged: ")
    assert sentence.endswith("the loss was not finite at step 250")


def test_restarts_and_rollbacks_take_back_what_came_after_them(run: Path) -> None:
    write_rows(run, [{"kind": "start", "step": 150, "origin": "checkpoint"}, *train_rows(160, 300)], attempt=2)
    write_rows(run, [{"kind": "rollback", "step": 250, "from": 301, "loss": 99.0}], attempt=2)
    tail = Tail(run)
    tail.update()
    assert len(tail.restarts) == 2
    assert max(tail.curve()["images"]) <= 64 * 250
    assert max(v for v in tail.pace()["images"] if v) <= 64 * 250
    assert read_journal(run).restarts == (64 * 150, 64 * 250)  # what the report marks
    assert tail.restarts == pytest.approx(read_journal(run).restarts, rel=0.1)  # means of spans


@pytest.mark.parametrize("name", ["config.json", "status.json", "attempts/1/metrics-0001.jsonl"])
@pytest.mark.parametrize("damage", ["", "{", "[1]", "\x00\xff" * 50, '{"model": 5, "steps": "x", "state": [1]}'])
def test_damaged_files_of_a_run_are_survived(run: Path, name: str, damage: str) -> None:
    (run / name).write_text(damage)
    live = LiveRun(run)
    live.refresh()
    run_snapshot(live)


def test_a_folder_that_is_neither_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"not a study .* and not a run"):
        Watch(tmp_path)


def test_a_run_is_served_and_nothing_is_written(run: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    with Watch(run) as server:
        assert b"watching a run" in fetch(server, "/")[2]
        assert json.loads(fetch(server, "/data")[2])["text"]["live-title"] == "vit_w8d1p8"
        assert fetch(server, "/data", "wrong")[0] == 403
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


@pytest.mark.page
def test_the_page_of_a_run_follows_it_and_runs_nothing_that_it_says(chromium: Any, run: Path) -> None:
    write_json(run / "config.json", {"model": {"name": HOSTILE[0]}, "steps": 400, HOSTILE[2]: HOSTILE})
    with Watch(run, every=0.2) as server:
        visit = Visit(chromium, server)
        visit.until("200 of 400 steps")
        assert visit.page.locator("[data-figure] .main-svg .cartesianlayer").count() == 2
        write_rows(run, train_rows(210, 300))
        visit.until("300 of 400 steps")
        failed = {"state": "failed", "steps": 400, "step": 300, "error": "".join(HOSTILE)}
        write_json(run / "status.json", failed)
        visit.until("Failed: training loss")
        assert visit.page.locator("img, iframe, base, [onerror], [onload]").count() == 0
        assert visit.page.locator("script").count() == 4
        assert visit.noise == []
        visit.page.close()


def test_the_curve_of_a_long_journal_is_a_sample_with_every_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from isoflop.report.watch import state as reader
    from isoflop.runs.journal import encode_row

    rows: list[dict[str, Any]] = [{"kind": "start", "step": 0, "origin": "scratch"}]
    for step in range(1, 3001):
        row = {"kind": "train", "step": step, "since": step - 1, "images": 64 * step, "loss": 3.0 * step**-0.2}
        rows.append(row | ({"heldout_loss": 3.2 * step**-0.2} if step % 1000 == 0 else {}))
    rows.insert(2001, {"kind": "rollback", "step": 1990, "from": 2000, "loss": 9.0})
    (tmp_path / "attempts/1").mkdir(parents=True)
    (tmp_path / "attempts/1/metrics-0001.jsonl").write_bytes(b"".join(map(encode_row, rows)))
    exact = reader.read_curve(tmp_path)
    assert len(exact["images"]) > 2900
    monkeypatch.setattr(reader, "LONG", 1000)
    monkeypatch.setattr(reader, "BACKLOG", 20_000)
    drawn = reader.read_curve(tmp_path)
    assert len(drawn["images"]) < 200
    assert [loss for loss in drawn["heldout_loss"] if loss][-1] == pytest.approx(3.2 * 3000**-0.2)
    assert drawn["restarts"] == pytest.approx(exact["restarts"], rel=0.1)
    trained = [(x, y) for x, y in zip(drawn["images"], drawn["train_loss"], strict=True) if y]
    for images, loss in trained[-20:]:
        assert loss == pytest.approx(3.0 * (images / 64) ** -0.2, rel=0.01)
