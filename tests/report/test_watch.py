"""The live view against a folder that is written to while it is watched."""

import csv
import http.client
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from isoflop.errors import StudyError
from isoflop.report.interim import interim_answer
from isoflop.report.watch import Watch
from isoflop.report.watch.state import BINS_A_DECADE, Live, Tail


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_table(folder: Path, rows: list[dict[str, Any]], status: str = "planned") -> None:
    columns = list(rows[0])
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        blank = {"status": status, "heldout_loss": "", "heldout_accuracy": "", "seconds": "", "error": ""}
        writer.writerows({k: "" if v is None else v for k, v in (row | blank).items()} for row in rows)


def write_run(folder: Path, row: dict[str, Any], curve: dict[str, Any], share: float = 1.0) -> None:
    """The folder of a run that is `share` done."""
    run = folder / "runs" / row["run_id"]
    journal = run / "attempts" / "1" / "metrics-0001.jsonl"
    journal.parent.mkdir(parents=True, exist_ok=True)
    count = int(share * len(curve["step"]))
    lines = [{"kind": "start", "step": 0, "origin": "scratch"}]
    lines += [
        {"kind": "train", "step": s + 1, "images": x, "loss": loss, "lr": 0.01, "seconds": 0.1 * i}
        for i, (s, x, loss) in enumerate(
            zip(curve["step"][:count], curve["images"][:count], curve["train_loss"][:count], strict=True)
        )
    ]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    keys = ("heldout_loss", "heldout_accuracy", "seconds", "error")
    over = {key: row[key] for key in keys} if share == 1.0 else {}
    state = row["status"] if share == 1.0 else "running"
    write_json(run / "status.json", {"state": state, "step": int(share * row["steps"]), "steps": row["steps"], **over})


@pytest.fixture
def folder(planted: Any, tmp_path: Path) -> Path:
    """A study of which sixty runs are planned, thirty done and two at work."""
    config = {"study": {"budgets": [1e10, 3e10, 1e11], "target_budget": 6e12, "finals": 1}}
    write_json(tmp_path / "study.json", {"name": "live", "config": config})
    rows = planted.rows[:180:3]
    write_table(tmp_path, rows)
    for i, row in enumerate(rows[:32]):
        write_run(tmp_path, row, planted.curves[row["run_id"]], 1.0 if i < 30 else 0.4)
    return tmp_path


def test_a_folder_is_read_as_it_is(folder: Path) -> None:
    live = Live(folder)
    assert live.refresh()
    assert live.progress()["counts"]["running"] == 2
    assert live.progress()["counts"]["planned"] == 28
    assert 0 < live.progress()["share"] < 1
    assert live.progress()["seconds_left"] > 0
    assert not live.refresh(), "nothing has changed"


@pytest.mark.parametrize(
    "limit", [{"budget": 1e14}, {"device_hours": 1e14}, {"money": 2e14, "price_per_hour": 2.0}], ids=str
)
def test_the_time_left_of_a_study_with_a_limit_is_that_to_the_limit(folder: Path, limit: dict[str, float]) -> None:
    """Its rungs are chosen as it goes: what is planned says nothing of what is still to come."""
    config = {"study": {"budgets": None, "target_budget": 6e12, "finals": 1, **limit}}
    write_json(folder / "study.json", {"name": "live", "config": config})
    live = Live(folder)
    live.refresh()
    told = live.progress()
    assert told["at_most"]
    total = 1e14 if "budget" in limit else 1e14 * 3600 * told["flops"] / told["seconds"]
    assert told["share"] == pytest.approx(told["flops"] / total, rel=1e-6)
    assert told["seconds_left"] * 2 == pytest.approx(told["seconds"] * (1 / told["share"] - 1), rel=1e-6)


def test_the_answer_so_far_is_the_law_of_the_finished_runs(planted: Any) -> None:
    rows = [row for row in planted.rows if row["role"] == "ladder"]
    answer = interim_answer(rows, planted.answer["target_flops"])
    assert answer["best"] == planted.answer["best"]
    for family, entry in answer["families"].items():
        assert entry["predicted_loss"] == pytest.approx(planted.answer["families"][family]["predicted_loss"], rel=1e-6)
    assert sum(entry["p_best"] for entry in answer["families"].values()) == pytest.approx(1)


def test_too_few_runs_are_a_reason_and_not_an_error(planted: Any) -> None:
    answer = interim_answer(planted.rows[:2], 1e12)
    assert answer["families"] == {}
    assert "vit" in answer["left_out"]


def test_only_new_bytes_are_read_and_a_torn_line_waits_for_its_end(tmp_path: Path) -> None:
    journal = tmp_path / "attempts" / "1" / "metrics-0001.jsonl"
    journal.parent.mkdir(parents=True)
    tail = Tail(tmp_path)
    assert not tail.update()
    first = '{"kind": "train", "step": 10, "images": 640, "loss": 5.0}\n'
    journal.write_text('{"kind": "start", "step": 0}\n' + first + '{"kind": "train", "step": 20, "ima')
    assert tail.update()
    assert tail.curve()["train_loss"] == [5.0]
    with journal.open("a") as file:
        file.write(
            'ges": 1280, "loss": 4.0}\n[1]\nnot json\n{"kind": "train", "step": 30, "images": 1920, "loss": NaN}\n'
        )
    assert tail.update()
    assert tail.curve()["train_loss"] == [5.0, 4.0]
    assert tail.last["step"] == 30
    assert not tail.update()


def test_an_attempt_replaces_what_was_not_committed(tmp_path: Path) -> None:
    for attempt, start, losses in ((1, 0, [9.0, 8.0, 7.0, 99.0]), (2, 30, [6.5])):
        journal = tmp_path / "attempts" / str(attempt) / "metrics-0001.jsonl"
        journal.parent.mkdir(parents=True)
        lines = [{"kind": "start", "step": start}]
        lines += [
            {"kind": "train", "step": start + 10 * i, "images": 640 * i + 64 * start, "loss": v}
            for i, v in enumerate(losses, 1)
        ]
        journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tail = Tail(tmp_path)
    tail.update()
    assert tail.curve()["train_loss"] == [9.0, 8.0, 7.0, 6.5]
    assert tail.restarts == [640 * 3]


def test_a_journal_that_became_shorter_is_read_anew(tmp_path: Path) -> None:
    journal = tmp_path / "attempts" / "1" / "metrics-0001.jsonl"
    journal.parent.mkdir(parents=True)
    row = '{"kind": "train", "step": %d, "images": %d, "loss": %.1f}\n'
    journal.write_text(row % (10, 640, 5) + row % (20, 1280, 4))
    tail = Tail(tmp_path)
    tail.update()
    journal.write_text('{"kind": "train", "step": 10, "images": 640, "loss": 3.0}\n')
    tail.update()
    assert tail.curve()["train_loss"] == [3.0]


def test_a_long_journal_is_kept_in_little(tmp_path: Path) -> None:
    journal = tmp_path / "attempts" / "1" / "metrics-0001.jsonl"
    journal.parent.mkdir(parents=True)
    row = '{"kind": "train", "step": %d, "since": 0, "images": %d, "loss": %.5f, "lr": 0.02, "seconds": 0.3902}\n'
    with journal.open("w") as file:
        file.writelines(row % (i, 64 * i, 5 * i**-0.2) for i in range(1, 200_001))
    tail = Tail(tmp_path)
    assert tail.update()
    assert tail.last["step"] == 200_000
    curve = tail.curve()
    assert len(curve["images"]) <= 6 * BINS_A_DECADE + 1
    for images, loss in zip(curve["images"][12:], curve["train_loss"][12:], strict=True):
        assert loss == pytest.approx(5 * (images / 64) ** -0.2, rel=0.02)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder, run: (folder / "results.csv").unlink(),
        lambda folder, run: (folder / "results.csv").write_bytes(b"run_id,status\n\xff\xfe\x00"),
        lambda folder, run: (folder / "results.csv").write_text('run_id,status\n../../etc,running\n"..",done\nx'),
        lambda folder, run: (folder / "study.json").write_text("{"),
        lambda folder, run: (folder / "study.json").write_text('{"config": [1], "name": 7}'),
        lambda folder, run: (folder / "answer.json").write_text('{"families": '),
        lambda folder, run: (run / "status.json").write_text(""),
        lambda folder, run: (run / "status.json").write_text("[" * 100_000),
        lambda folder, run: (run / "status.json").write_text('{"state": 5, "step": "many", "seconds": null}'),
        lambda folder, run: (run / "attempts" / "1" / "metrics-0001.jsonl").write_bytes(os.urandom(5000)),
        lambda folder, run: [p.unlink() for p in run.rglob("*.jsonl")],
    ],
)
def test_half_written_and_damaged_files_are_survived(folder: Path, damage: Any) -> None:
    live = Live(folder)
    live.refresh()
    damage(folder, next((folder / "runs").iterdir()))
    live.refresh()
    with Watch(folder) as server:
        status, _, body = fetch(server, "/data")
        assert status == 200
        assert "trouble" not in json.loads(body)


def fetch(server: Watch, path: str, token: str | None = None, **headers: str) -> tuple[int, Any, bytes]:
    token = server.url.split("token=")[1] if token is None else token
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request(
        headers.pop("method", "GET"), f"{path}{'&' if '?' in path else '?'}token={token}", headers=headers
    )
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


def test_without_the_token_nothing_is_told(folder: Path) -> None:
    with Watch(folder) as server:
        assert fetch(server, "/")[0] == 200
        for token in ("", "wrong", "%00", "é"[:0] + "%C3%A9", server.url[-5:]):
            for path in ("/", "/data", "/nothing"):
                status, _, body = fetch(server, path, token)
                assert status == 403
                assert b"live" not in body
        assert fetch(server, "/nothing")[0] == 404
        assert fetch(server, "/../study.json")[0] == 404
        assert fetch(server, "/data", method="POST")[0] == 501
        assert fetch(server, "/data", Host="evil.example:80")[0] == 403


def test_answers_may_not_be_framed_cached_or_sniffed(folder: Path) -> None:
    with Watch(folder) as server:
        headers = fetch(server, "/data")[1]
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert server.url.startswith("http://127.0.0.1:")


def test_what_has_not_changed_is_not_sent_again(folder: Path) -> None:
    with Watch(folder) as server:
        version = json.loads(fetch(server, "/data")[2])["version"]
        assert fetch(server, f"/data?since={version}")[0] == 204


def test_a_port_in_use_is_said_in_one_line(folder: Path) -> None:
    with Watch(folder) as server, pytest.raises(StudyError, match=rf"port {server.port}.*--port"):
        Watch(folder, port=server.port)
    with pytest.raises(StudyError, match="--port"):
        Watch(folder, port=70_000)


def test_a_folder_that_is_no_study_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"not a study"):
        Watch(tmp_path)


def test_watching_writes_nothing(folder: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    with Watch(folder) as server:
        fetch(server, "/data")
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_no_thread_is_left_behind(folder: Path) -> None:
    before = set(threading.enumerate())
    with Watch(folder, every=0.05) as server:
        assert fetch(server, "/data")[0] == 200
        begun = set(threading.enumerate()) - before
        assert len(begun) >= 2
    for thread in begun:
        thread.join()
