"""A study from the command line: planned, trained, told, and told again from its folder."""

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from isoflop.cli import main
from isoflop.cli.narration import TerminalNarrator
from isoflop.cli.output import duration, power, print_table
from isoflop.report import write_figures
from isoflop.study.adaptive import FamilyStanding, Outlook, Stage
from isoflop.study.belief import Trial

STUDY = """\
batch_size = 36
tensorboard = false
[study]
name = "tiny"
budgets = [1e8, 2e8, 4e8]
target_budget = 8e8
workers = 1
[data]
source = "fractals?classes=10"
heldout = 64
[families.vit]
sizes = ["vit_w4d1p8", "vit_w4d2p8"]
learning_rates = [1e-2]
[laws]
bootstrap = 20
[transfer]
shots = 2
seeds = [0]
finetune_steps = 2
"""


def isoflop(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0), *capsys.readouterr()


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The one object that a command prints with `--json`."""
    status, out, _ = isoflop(capsys, *arguments, "--json")
    assert status == 0
    document: dict[str, Any] = json.loads(out)
    return document


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny.toml").write_text(STUDY)
    return folder


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_before_a_study_has_run_its_verbs_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("status", "answer"):
        status, out, err = isoflop(capsys, "study", verb, "tiny.toml")
        assert (status, out) == (2, "")
        assert re.fullmatch(r"error: studies/tiny: not a study .*\n", err)


def test_plan_prints_runs_flops_and_minutes_and_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = isoflop(capsys, "study", "plan", "tiny.toml")
    assert status == 0
    assert "training FLOPs/image" in out
    assert "minutes" in out
    assert re.findall(r"^[1248]e8 ", out, re.MULTILINE) == ["1e8 ", "2e8 ", "4e8 "]
    planned = as_json(capsys, "study", "plan", "tiny.toml")
    assert [rung["budget"] for rung in planned["rungs"]] == [1e8, 2e8, 4e8]
    assert {run["family"] for run in planned["first"]} == {"vit"}
    assert not Path("studies").exists()
    twice = as_json(capsys, "study", "plan", "tiny.toml", "--scale", "2")
    assert [rung["budget"] for rung in twice["rungs"]] == [2e8, 4e8, 8e8]
    remote = as_json(capsys, "study", "plan", "tiny.toml", "study.executor=slurm", "study.workers=none")
    assert remote["workers"] == 16  # as docs/planner.md says


def test_an_address_without_ray_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = isoflop(capsys, "study", "run", "tiny.toml", "--address", "head:6379")
    message = "--address applies only to Ray, not to executor local: add --executor ray"
    assert (status, err) == (2, f"error: {message}\n")


def test_the_plan_of_a_limited_study_shows_what_is_reserved(capsys: pytest.CaptureFixture[str]) -> None:
    limited = ("batch_size=8", "study.budgets=none", "study.budget=1.2e10", "study.target_budget=2.4e9")
    status, out, _ = isoflop(capsys, "study", "plan", "tiny.toml", *limited)
    assert status == 0
    assert re.search(r"^training the answer \(reserved\) +2.4e9 +20%$", out, re.MULTILINE)
    assert re.search(r"^the ladder +9.6e9 +80%$", out, re.MULTILINE)
    assert "At most about" in out


def test_what_changed_after_a_rung_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Trial("vit", "vit_w8d2p8", 1e5, 1e6, 1e11, 0.01)
    standings = (
        FamilyStanding(answer, 0.0, 0.02, 0.99, 0.0131),
        FamilyStanding(replace(answer, family="nfnet", model="nfnet_w8d1"), 0.3, 0.02, 0.01, 0.3),
    )
    trials = (replace(answer, budget=2e9), replace(answer, budget=2e9, copy=1), replace(answer, budget=4e9))
    before = Stage(trials, Outlook(standings), 0.0131 - 0.0062)
    TerminalNarrator().thought(replace(before, dropped=("nfnet",)), before)
    assert capsys.readouterr().out.splitlines() == [
        "P(best): vit 0.99 (vit_w8d2p8, loss 1.000), nfnet 0.01 (nfnet_w8d1, loss 1.350)",
        "dropped nfnet: P(best) 0.01",
        "next: 3 runs (vit_w8d2p8 at 2e9 ×2, vit_w8d2p8 at 4e9): expected regret 0.0131 → 0.0062",
    ]
    TerminalNarrator().thought(Stage((), Outlook(standings), stop="the budget is spent"), before)
    assert capsys.readouterr().out.splitlines()[1] == "the ladder ends: the budget is spent (expected regret 0.0131)"


def test_run_answers_and_status_answer_report_and_transfer_tell_it_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, err = isoflop(capsys, "study", "run", "tiny.toml", "--predict")
    assert (status, err) == (0, "")
    assert "measured" not in out
    assert out.endswith("\npredictions: studies/tiny/report.html\nanswers: isoflop study run tiny.toml\n")
    predicted = as_json(capsys, "study", "answer", "tiny.toml")["families"]["vit"]
    assert not any(run["role"] == "final" for run in as_json(capsys, "study", "status", "tiny.toml")["runs"])

    status, out, err = isoflop(capsys, "study", "run", "tiny.toml")
    assert (status, err) == (0, "")
    kept = as_json(capsys, "study", "answer", "tiny.toml")["families"]["vit"]
    assert [kept[name] for name in ("model", "predicted_loss", "interval")] == [
        predicted[name] for name in ("model", "predicted_loss", "interval")
    ]
    answer = re.search(r"The answer: train (\w+) on ([\d,]+) images at learning rate [\d.e-]+\.", out)
    assert answer is not None
    assert re.search(r"predicted [\d.]+, measured [\d.]+, (inside|outside) the 90% interval", out)
    assert "2-shot accuracy on digits" in out
    place = re.search(r"^weights: (\S+)$", out, re.MULTILINE)
    assert place is not None
    assert (Path(place[1]) / "model.safetensors").exists()
    assert out.endswith("report: studies/tiny/report.html\n")
    page = Path("studies/tiny/report.html")
    assert page.stat().st_size > 10_000

    for place in ("tiny.toml", "studies/tiny"):
        status, told, _ = isoflop(capsys, "study", "answer", place)
        assert status == 0
        assert answer[0] in told
        assert "2-shot accuracy on digits" in told

    status, told, _ = isoflop(capsys, "study", "status", "tiny.toml")
    assert status == 0
    assert told.startswith("tiny: ")
    assert "final" in told

    page.unlink()
    assert isoflop(capsys, "report", "studies/tiny") == (0, "report: studies/tiny/report.html\n", "")
    assert page.stat().st_size > 10_000

    run = next(path for path in Path("studies/tiny/runs").iterdir() if (path / "model.safetensors").exists())
    status, told, _ = isoflop(capsys, "transfer", str(run), "shots=1", "seeds=[0]", 'protocols=["ridge"]')
    assert status == 0
    assert re.search(r"digits +ridge +1 +0\.\d+", told)

    status, told, _ = isoflop(capsys, "inspect", str(run), "--images", "4")
    assert status == 0
    assert "on 4 images: pictures and inspect.json in" in told
    assert (run / "inspect" / "inspect.json").exists()

    monkeypatch.setattr("isoflop.report.write_figures", partial(write_figures, formats=("svg",)))
    status, told, _ = isoflop(capsys, "report", "studies/tiny", "--figures", "figures")
    assert status == 0
    assert (Path("figures") / "frontier.svg").stat().st_size > 1000

    shutil.copytree("studies/tiny", "studies/other")
    status, told, _ = isoflop(capsys, "report", "studies/tiny", "studies/other")
    assert (status, told) == (0, "comparison: comparison.html\n")
    assert Path("comparison.html").stat().st_size > 10_000

    best = json.loads(Path("studies/tiny/answer.json").read_text())["best"]
    told = as_json(capsys, "study", "run", "tiny.toml")
    assert (told["report"], told["answer"]["best"]) == ("studies/tiny/report.html", best)
    assert as_json(capsys, "study", "answer", "tiny.toml")["best"] == best
    for damaged in ("{}", '{"best": "vit", "families": {"vit": 3}}'):
        Path("studies/other/answer.json").write_text(damaged)
        status, _, err = isoflop(capsys, "study", "answer", "studies/other")
        assert (status, err.count("\n")) == (2, 1)
        assert "answer.json: damaged, or edited: its SHA-256 is not that in published.json" in err
    for name in ("answer.json", "published.json"):  # which has the hash of the other
        shutil.copy(f"studies/tiny/{name}", "studies/other")
    assert {run["status"] for run in as_json(capsys, "study", "status", "studies/tiny")["runs"]} == {"done"}
    assert as_json(capsys, "report", "studies/tiny")["report"] == "studies/tiny/report.html"
    assert as_json(capsys, "report", "studies/tiny", "studies/other")["comparison"] == "comparison.html"
    assert as_json(capsys, "inspect", str(run), "--images", "4")["images"] == 4
    judged = as_json(capsys, "transfer", str(run), "shots=1", "seeds=[0]", 'protocols=["ridge"]')
    assert 0 < judged["rows"][0]["accuracy_mean"] <= 1


def test_transfer_refuses_what_is_not_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = isoflop(capsys, "transfer", ".")
    assert status == 2
    assert err.count("\n") == 1
    assert isoflop(capsys, "transfer", ".", "shot=1")[2] == (
        "error: command line: unknown key `shot` - did you mean `shots`?\n"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations_are_told_in_the_units_that_matter(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1.5e12, "1.5e12"), (1e9, "1e9"), (3e-5, "3e-5"), (0.01, "0.01"), (0, "0"), (64, "64")]
)
def test_powers_of_ten_are_short(value: float, text: str) -> None:
    assert power(value) == text


def test_a_plain_table_is_aligned_and_numbers_are_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "loss"), [("a", "1.25"), ("long name", "10.5")])
    assert capsys.readouterr().out == "name       loss\na          1.25\nlong name  10.5\n"
