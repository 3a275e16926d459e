"""`isoflop report` and `isoflop watch` from the command line: of folders and of tables."""

import json
from pathlib import Path

import pytest

from isoflop.cli import main

POINTS = "model,hours,loss\n" + "".join(
    f"F{m},{10 * 2**k},{3 * (10 * 2**k) ** -0.2 + m}\n" for m in (0, 1) for k in range(8)
)


def isoflop(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0), *capsys.readouterr()


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("points.csv").write_text(POINTS)


def test_a_table_of_anybody_becomes_a_page_and_figures(capsys: pytest.CaptureFixture[str]) -> None:
    columns = ("--x", "hours", "--y", "loss", "--by", "model", "--budget", "5000")
    told = isoflop(capsys, "report", "points.csv", *columns, "--figures", "figures")
    assert told == (0, "report: points.html\nfigures: 6 files in figures\n", "")
    assert "predicted at 5,000" in Path("points.html").read_text()
    status, out, _ = isoflop(capsys, "report", "points.csv", *columns, "--json")
    assert (status, json.loads(out)) == (0, {"report": "points.html", "figures": []})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("report", "points.csv", "--x", "hours", "--y", "los"), "no column `los` - did you mean `loss`?"),
        (("report", "points.csv", "--x", "hour", "--y", "loss"), "no column `hour` - did you mean `hours`?"),
        (("report", "point.csv"), "point.csv: no such file"),
        (("report", "points.csv", "points.csv"), "one table, or folders"),
        (("report", ".", "--x", "hours"), "name columns of a table"),
        (("report", "."), "not a study (no study.json)"),
        (("watch", "."), "not a study (no study.json) and not a run (no status.json)"),
        (("watch", "nowhere"), "nowhere: no such file"),
    ],
)
def test_what_cannot_be_shown_is_one_line_and_status_two(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    status, out, err = isoflop(capsys, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
