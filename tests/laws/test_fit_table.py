"""Anybody's table gets a law, or one clear line about what is wrong with it."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from isoflop.errors import LawError
from isoflop.laws import TableFit, fit_table, markdown, picture, svg
from isoflop.laws.columns import TableSource
from isoflop.laws.fit_table import _unlike
from isoflop.laws.roles import read_runs
from isoflop.report import tabled_report


def ladder(noise=0.01):
    rng = np.random.default_rng(0)
    rows = []
    for family, scale in (("vit", 1.0), ("conv", 1.3)):
        for budget in np.geomspace(1e10, 1e12, 5):
            for n in np.geomspace(2e5, 5e6, 5):
                d = budget / n
                loss = scale * (0.3 + 25 * n**-0.35 + 80 * d**-0.35) * np.exp(noise * rng.standard_normal())
                rows.append((family, f"{n:.6g}", f"{d:.6g}", f"{loss:.6g}"))
    return {name: [row[k] for row in rows] for k, name in enumerate(("family", "flops_per_image", "images", "loss"))}


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "results.csv"
    path.write_text(text)
    return path


def curve_csv(rows: str) -> str:
    return "images,error\n" + rows


GOOD = "".join(f"{10**k},{0.9 * 10 ** (-0.1 * (k - 6)):.5f}\n" for k in range(6, 12))


def test_two_axes_and_a_budget_give_an_answer_for_each_family_and_a_comparison():
    fit = fit_table(ladder(), x=["flops_per_image", "images"], y="loss", by="family", budget=1e13)
    assert fit.comparison is not None
    assert fit.comparison.best == "vit"
    for group, scale in zip(fit.groups, (1.0, 1.3), strict=True):
        p = group.prediction
        assert p is not None
        assert p.n is not None
        assert p.d is not None
        assert p.n * p.d == pytest.approx(1e13)
        assert p.interval[0] < scale * (0.3 + 25 * p.n**-0.35 + 80 * p.d**-0.35) < p.interval[1]
    text = markdown(fit)
    for promised in ("P(best)", "Backtest:", "Naive ranking", "90% interval", "y: loss"):
        assert promised in text
    assert TableFit.from_dict(json.loads(json.dumps(fit.to_dict()))) == fit


def test_one_axis_gives_a_curve_and_an_accuracy_becomes_an_error(tmp_path):
    rows = "".join(f"{1000 * 2**k},{90 - 50 * 2 ** (-0.4 * k):.4f}\n" for k in range(9))
    path = write(tmp_path, "steps,top1_acc\n" + rows)
    fit = fit_table(path, x=["steps"], y="top1_acc", budget=1000 * 2**10)
    assert fit.unit.startswith("error in %")
    prediction = fit.groups[0].prediction
    assert prediction is not None
    assert prediction.interval[0] < 10 + 50 * 2**-4.0 < prediction.interval[1]


def test_the_picture_is_one_well_formed_document_that_escapes_its_text():
    columns = ladder()
    columns["family"] = [f"<b>{name}</b> & co" for name in columns["family"]]
    fit = fit_table(columns, x=["flops_per_image", "images"], y="loss", by="family")
    data = picture(fit)
    assert json.loads(json.dumps(data)) == data
    assert [s["kind"] for s in data["series"]] == ["band", "line", "points"] * 2
    document = svg(data)
    root = ET.fromstring(document)
    circles = root.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 50 + 2  # the runs and the two keys
    assert "<b>" not in document


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (curve_csv(GOOD), {"x": ["image"]}, "no column `image` - did you mean `images`"),
        (curve_csv(GOOD), {"x": ["Images"]}, "did you mean `images`"),
        (curve_csv(GOOD), {"y": "loss"}, "no column `loss`"),
        (curve_csv(GOOD + "1e12,nan\n"), {}, "results.csv:8: `error` must be positive and finite, not nan"),
        (curve_csv(GOOD + "1e12,inf\n"), {}, "must be positive and finite, not inf"),
        (curve_csv(GOOD + "1e12,0\n"), {}, "must be positive and finite, not 0"),
        (curve_csv(GOOD + "-5,0.1\n"), {}, "`images` must be positive"),
        ("images,error\n1e6,\n1e7,\n", {}, "`error` is empty in every row"),
        (curve_csv(GOOD + "1e12,low\n"), {}, "is not a number: 'low'"),
        (curve_csv(GOOD + "1e12\n"), {}, "results.csv:8: 1 cells where the first line names 2"),
        (curve_csv(GOOD + "1000000,0.90000\n"), {}, "results.csv:8 is the same run as line 2, listed twice"),
        (curve_csv("1000000,0.9\n"), {}, "at least 4 different x, not 1"),
        (curve_csv("".join(f"{10**k},0.5\n" for k in range(6, 12))), {}, "y is the same everywhere"),
        (curve_csv(""), {}, "no rows"),
        ("", {}, "is empty"),
        ("images,images\n1,2\n", {}, "appears twice"),
        ("images,acc\n" + "".join(f"{10**k},{60 + 9 * k}\n" for k in range(6)), {"y": "acc"}, "cannot be above 100"),
        ("images,acc\n" + "".join(f"{10**k},{0.5 + 0.1 * k}\n" for k in range(6)), {"y": "acc"}, "perfect accuracy"),
        (curve_csv(GOOD), {"budget": -1.0}, "budget must be positive"),
        (curve_csv(GOOD), {"x": ["images", "error", "error"]}, "one column as x"),
        (curve_csv(GOOD), {"x": ["images", "images"]}, "a column is given twice"),
        (curve_csv(GOOD), {"y": "images"}, "a column is given twice"),
        (curve_csv(GOOD), {"seed": -1}, "seed must be 0 or more"),
        (curve_csv(GOOD), {"at": (1e9, 1e9)}, "asks about a size and data: give two columns as x, or a budget"),
        (curve_csv(GOOD), {"at": (1e9, 1e9), "budget": 1e9}, "a budget or a size and data .--at., not both"),
        (curve_csv(GOOD), {"at": (1e9, -1.0)}, "size and data must be positive"),
        (curve_csv(GOOD), {"x": ["6*image"]}, "no column `image` - did you mean `images`"),
        (curve_csv(GOOD), {"x": ["x*images"]}, "`x[*]images` is no column"),
        (curve_csv(GOOD), {"level": float("nan")}, "level must be between 0 and 1"),
        (curve_csv(GOOD), {"budget": 1e300}, "budget must be between 1e-100 and 1e[+]100"),
        (curve_csv(GOOD + "1e300,0.1\n"), {}, "`images` must be between 1e-100 and 1e[+]100"),
        (curve_csv("\n\n" + GOOD + "\n1e12,nan\n"), {}, "results.csv:11: `error` must be positive"),
        (curve_csv(GOOD.replace(",0.", ",0,").replace("0,", "0;", 1)), {}, "3 cells where the first line names 2"),
        ("images;error\n10;3,141\n", {}, "`error` is 3,141, with a decimal comma or thousands separators: write"),
        ("images;error\n10;0,9,1\n", {}, "not a number: '0,9,1'"),
        (curve_csv("9" * 200_000 + ",0.5\n"), {}, "results.csv:2 is not CSV: field larger"),
        (curve_csv("word " * 20 + ",0.5\n"), {}, "not a number: 'word word [word ]*…'"),
        ("model,images,error\n,1,2\n", {"by": "model"}, "results.csv:2: `model` is empty"),
        ("images,acc\n1,0.5\n2,0.6\n3,1.05\n", {"y": "acc"}, "all fractions or all percents"),
        ("images,acc\n1,0.5\n2,60\n3,70\n", {"y": "acc"}, "70 and 0.5 in line 2: .*all fractions or all percents"),
        ("images,map\n1,50\n2,160\n", {"y": "map", "accuracy": True}, "cannot be above 100"),
    ],
)
def test_bad_tables_give_one_clear_line(tmp_path, text, options, message):
    with pytest.raises(LawError, match="(?s)" + message) as problem:
        fit_table(write(tmp_path, text), **{"x": ["images"], "y": "error", **options})
    assert "\n" not in str(problem.value)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path):
    with pytest.raises(LawError, match="there is no file"):
        fit_table(tmp_path / "nothing.csv", x=["a"], y="b")
    for content, message in (
        (b"\xff\xfe\x00\x01", "x.csv:1 cannot be read as text in UTF-8"),
        ("a,b\n1,2\nö,3\n".encode("latin-1"), "x.csv:3 cannot be read as text in UTF-8: save"),
        (b"a,b\n\x00,1\n", "zero bytes"),
    ):
        (tmp_path / "x.csv").write_bytes(content)
        with pytest.raises(LawError, match=message):
            fit_table(tmp_path / "x.csv", x=["a"], y="b")
    with pytest.raises(LawError, match="is a directory"):
        fit_table(tmp_path, x=["a"], y="b")
    with (tmp_path / "x.csv").open("wb") as huge:
        huge.truncate(300 * 2**20)
    with pytest.raises(LawError, match="300 MiB: that is no table"):
        fit_table(tmp_path / "x.csv", x=["a"], y="b")


@pytest.mark.parametrize(
    "disguise",
    [
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.replace(",", ";").encode(),
        lambda text: text.replace(",", "\t").encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace("\n", "\r").encode(),
        lambda text: text.replace(",", " , ").encode(),
        lambda text: text.replace("images", '"images"').encode(),
    ],
    ids=["byte-order mark", "semicolons", "tabs", "Windows", "old Mac", "spaces", "quotes"],
)
def test_the_same_table_in_other_clothes_gives_the_same_law(tmp_path, disguise):
    plain = fit_table(write(tmp_path, curve_csv(GOOD)), x=["images"], y="error")
    (tmp_path / "results.csv").write_bytes(disguise(curve_csv(GOOD)))
    assert fit_table(tmp_path / "results.csv", x=["images"], y="error") == plain


def test_an_error_is_not_taken_for_an_accuracy(tmp_path):
    path = write(tmp_path, "images,top1_error\n" + GOOD)
    assert fit_table(path, x=["images"], y="top1_error").unit == "top1_error"
    assert fit_table(path, x=["images"], y="top1_error", accuracy=True).unit == "error (1 - top1_error)"


def test_where_a_curve_says_nothing_there_is_no_answer_but_the_reason(tmp_path):
    path = write(tmp_path, curve_csv(GOOD))
    for budget, reason in ((1e3, "the points begin at 1e[+]06"), (1e90, "spans a factor of more than a million")):
        group = fit_table(path, x=["images"], y="error", budget=budget).groups[0]
        assert group.prediction is None
        assert re.search(reason, group.refusal)
    rising = "".join(f"{10**k},{0.1 * k}\n" for k in range(1, 8))
    group = fit_table(write(tmp_path, curve_csv(rising)), x=["images"], y="error", budget=1e8).groups[0]
    assert group.prediction is None
    assert "rises" in group.refusal
    valley = "".join(f"{x:.0f},{0.2 + np.log10(x / 5e6) ** 2:.5f}\n" for x in np.geomspace(1e5, 1e8, 40))
    group = fit_table(write(tmp_path, curve_csv(valley)), x=["images"], y="error", budget=1e9).groups[0]
    assert group.prediction is None
    assert "turns upwards" in group.refusal


def test_a_curve_that_turns_upwards_still_answers_inside_its_points(tmp_path):
    """The last point is above the lowest one: beyond it there is no answer, between the points there is."""
    x = np.geomspace(1e5, 1e8, 40)
    valley = "".join(f"{v:.0f},{0.2 + np.log10(v / 5e6) ** 2:.5f}\n" for v in x)
    path = write(tmp_path, curve_csv(valley))
    for budget in (2e5, 6e7):
        prediction = fit_table(path, x=["images"], y="error", budget=budget).groups[0].prediction
        assert prediction is not None, budget
    rising = "".join(f"{10**k},{0.1 * k}\n" for k in range(1, 8))
    group = fit_table(write(tmp_path, "images,score\n" + rising), x=["images"], y="score", budget=1e8).groups[0]
    assert "if `score` is an accuracy or a score of at most 1 or 100, add --accuracy" in group.refusal


def test_a_given_size_and_data_is_predicted_and_the_bias_correction_is_said():
    columns = ladder()
    table = {name: cells[:25] for name, cells in columns.items()}
    n, d = 8e6, 2e7 / 3
    fit = fit_table(table, x=["flops_per_image", "images"], y="loss", at=(n, d))
    p = fit.groups[0].prediction
    assert p is not None
    assert (p.n, p.d, p.budget) == (n, d, n * d)
    assert p.interval[0] < 0.3 + 25 * n**-0.35 + 80 * d**-0.35 < p.interval[1]
    law = fit.groups[0].size_data
    assert law is not None
    assert p.formula == pytest.approx(law.irreducible + law.a * n**-law.alpha + law.b * d**-law.beta)
    assert p.value == pytest.approx(float(law.predict(n, d)))
    biased = replace(fit, groups=(replace(fit.groups[0], prediction=replace(p, value=p.formula * 0.97)),))
    assert f"The formula alone gives {p.formula:.4g}; beyond the data the prediction is" in markdown(biased)


def test_a_small_group_is_named_and_the_others_answer(tmp_path):
    """LAION's open CLIP models (github.com/LAION-AI/scaling-laws-openclip), four data sets, one with three models."""
    path = Path(__file__).parent / "foreign" / "openclip_four_groups.csv"
    fit = fit_table(path, x=["gmacs_total"], y="acc1", by="upstream_dataset", budget=1e13)
    assert [g.name for g in fit.groups if g.prediction] == ["LAION-2B", "LAION-400M", "LAION-80M"]
    assert any("CLIP-WIT is left out, no law: a curve needs at least 4 different x, not 3" in n for n in fit.notes)
    assert svg(picture(fit)).count("<polygon") == 3
    page = tabled_report(path, x=["gmacs_total"], y="acc1", by="upstream_dataset").page
    assert "CLIP-WIT" in page


def test_all_runs_at_one_budget_are_refused():
    columns = ladder()
    one = {name: cells[:5] for name, cells in columns.items()}
    with pytest.raises(LawError, match="same budget"):
        fit_table(one, x=["flops_per_image", "images"], y="loss")


def test_a_fit_that_is_not_identifiable_says_so_instead_of_answering():
    """Size has no effect here, so no best size can be named."""
    rng = np.random.default_rng(0)
    columns = ladder()
    n, d = (np.array(columns[k], float)[:25] for k in ("flops_per_image", "images"))
    flat = (0.3 + 80 * d**-0.35) * np.exp(0.002 * rng.standard_normal(25))
    table = {"n": [str(v) for v in n], "d": [str(v) for v in d], "loss": [f"{v:.6g}" for v in flat]}
    group = fit_table(table, x=["n", "d"], y="loss", budget=1e13).groups[0]
    assert group.prediction is None
    assert "not identified" in group.refusal


def test_families_without_a_sound_law_are_left_out_of_the_comparison():
    columns = ladder()
    n, d = (np.array(columns[k], float)[:25] for k in ("flops_per_image", "images"))
    flat = (0.3 + 80 * d**-0.35) * np.exp(0.002 * np.random.default_rng(0).standard_normal(25))
    for name, cells in zip(columns, (["flat"] * 25, *([f"{v:.6g}" for v in c] for c in (n, d, flat))), strict=True):
        columns[name] = columns[name] + cells
    fit = fit_table(columns, x=["flops_per_image", "images"], y="loss", by="family", budget=1e13)
    assert fit.comparison is not None
    assert {s.family for s in fit.comparison.standings} == {"vit", "conv"}
    assert any(w.startswith("flat is left out: no answer") for w in fit.comparison.warnings)


def test_the_audit_names_every_trap_it_can_see():
    columns = ladder(noise=0.002)
    count = len(columns["loss"])
    columns["warmup"] = ["0.5"] * count
    columns["schedule"] = ["cosine", "constant"] * (count // 2)
    columns["horizon"] = [f"{3 * float(d)}" for d in columns["images"]]
    group = fit_table(columns, x=["flops_per_image", "images"], y="loss", by="family").groups[0]
    verdicts = {f.check: f.verdict for f in group.audit}
    assert verdicts["convergence"] == "ok"
    assert verdicts["agreement of starts"] == "ok"
    assert verdicts["identifiability"] == "ok"
    assert verdicts["residuals against compute"] == "ok"
    assert verdicts["warm-up share"] == "warning"
    assert verdicts["one schedule, decayed to the end"] == "warning"
    assert verdicts["best learning rate inside the grid"] == "unknown"
    assert verdicts["noise between seeds"] == "warning"
    assert any("one seed a run" in w for w in group.warnings)


def test_a_curve_is_audited_too(tmp_path):
    fit = fit_table(write(tmp_path, curve_csv(GOOD)), x=["images"], y="error")
    verdicts = {f.check: f.verdict for f in fit.groups[0].audit}
    assert set(verdicts) == {"agreement of forms", "residuals against x", "noise between seeds", "backtests"}
    assert verdicts["noise between seeds"] == "warning"


def test_a_bend_that_the_form_misses_is_seen_in_the_residuals():
    columns = ladder(noise=0.002)
    n, d = (np.array(columns[k], float) for k in ("flops_per_image", "images"))
    bent = np.array(columns["loss"], float) * np.exp(0.08 * np.abs(np.log(n * d / 1e11)) ** 2 / 5)
    columns["loss"] = [f"{v:.6g}" for v in bent]
    group = fit_table(columns, x=["flops_per_image", "images"], y="loss", by="family").groups[0]
    assert any(f.verdict == "warning" for f in group.audit if f.check.startswith("residuals"))


def test_the_laws_start_with_numpy_alone():
    code = "import sys, isoflop.laws; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "numpy" in loaded
    assert not loaded & {"torch", "torchvision", "timm", "pandas", "sklearn", "plotly", "duckdb", "pydantic"}


def test_groups_whose_losses_have_other_scales_are_compared_under_a_warning():
    compute = np.geomspace(1e10, 1e12, 16)
    loss = 0.5 + 40 * compute**-0.15

    def warnings(by: str, scale: float) -> tuple[str, ...]:
        cells = {"compute": (*compute, *compute), "loss": (*loss, *scale * loss), by: ["a"] * 16 + ["b"] * 16}
        runs = read_runs({c: [str(v) for v in column] for c, column in cells.items()}, TableSource("t.csv"), by=by)
        return _unlike(runs, {"a": np.arange(16), "b": np.arange(16, 32)})

    assert warnings("family", 1.1) == ()
    assert len(warnings("tokenizer", 1.1)) == 1
    assert "no loss of a" in warnings("family", 20.0)[0]
