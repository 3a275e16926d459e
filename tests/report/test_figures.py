import copy
import math
from typing import Any

import numpy as np
import pytest

from isoflop.laws import FrontierLaw
from isoflop.report import figures as draw
from isoflop.report import tables
from isoflop.report.figure import DARK, LIGHT, Figure, to_plotly
from isoflop.report.figures.curves import thin
from isoflop.report.law import family_laws
from isoflop.report.page import report_figures
from isoflop.report.text import quantity


def series_named(figure: Figure, name: str) -> Any:
    return next(s for p in figure.panels for s in p.series if s.name == name)


def test_the_frontier_shows_the_best_run_of_each_budget(planted: Any) -> None:
    shown = series_named(draw.frontier(planted.rows, planted.answer), "vit")
    best = {}
    for row in planted.rows:
        if row["family"] == "vit" and row["status"] == "done" and row["role"] == "ladder":
            best[row["budget"]] = min(best.get(row["budget"], math.inf), row["heldout_loss"])
    assert list(shown.y) == [best[budget] for budget in sorted(best)]


def test_the_star_is_the_run_that_trained_the_answer(planted: Any) -> None:
    star = series_named(draw.frontier(planted.rows, planted.answer), "the answer, measured")
    assert list(star.y) == [planted.answer["final"]["measured_loss"]]


def test_the_rings_of_the_profiles_are_the_bottoms_of_the_valleys(planted: Any) -> None:
    for panel in draw.profiles(planted.rows, planted.answer).panels:
        rings = [s for s in panel.series if s.symbol == "circle-open"]
        for ring in rings:
            valley = next(
                s
                for s in panel.series
                if s.group == ring.group and s.symbol == "circle" and s.kind == "points" and not s.name
            )
            assert ring.y[0] == min(valley.y)


def test_line_diamond_and_table_agree(planted: Any) -> None:
    """Up to the last run the line is the fitted law; beyond it leads to the prediction that the table says."""
    law = family_laws(planted.answer)["poolformer"]
    figure = draw.frontier(planted.rows, planted.answer)
    line = next(s for s in figure.panels[0].series if s.kind == "line" and s.group == "poolformer")
    fitted = FrontierLaw.from_dict(planted.answer["families"]["poolformer"]["frontier"])
    x, y, entry = np.array(line.x), np.array(line.y), planted.answer["families"]["poolformer"]
    fitted_part = x <= max(row["train_flops"] for row in planted.rows if row["role"] == "ladder")
    assert 30 < fitted_part.sum() < 60
    np.testing.assert_allclose(y[fitted_part], fitted.predict(x[fitted_part]), rtol=1e-9)
    diamond = next(s for s in figure.panels[0].series if s.symbol == "diamond-open" and s.group == "poolformer")
    assert (x[-1], y[-1]) == (pytest.approx(diamond.x[0]), pytest.approx(diamond.y[0]))
    band = next(s for s in figure.panels[0].series if s.kind == "band" and s.group == "poolformer")
    assert [band.lower[-1], band.upper[-1]] == pytest.approx(entry["interval"])
    assert f'<td data-order="{entry["predicted_loss"]:.8g}"' in tables.summary(planted.rows, planted.answer)
    without = copy.deepcopy(planted.answer)
    without["families"]["poolformer"] |= {"law": None, "frontier": None}
    series = draw.frontier(planted.rows, without).panels[0].series
    line = next(s for s in series if s.kind == "line" and s.group == "poolformer")
    assert (line.dash, line.y[-1]) == ("dash", pytest.approx(entry["predicted_loss"]))
    n, d = law.optimum(np.array([1e12]))
    np.testing.assert_allclose(n * d, 1e12)


def test_a_curve_that_is_thinned_keeps_its_ends_and_its_mean() -> None:
    x = np.arange(1.0, 100_001.0)
    thin_x, thin_y = thin(x, 5 * x**-0.3, 60)
    assert len(thin_x) <= 60
    np.testing.assert_allclose(thin_y, 5 * thin_x**-0.3, rtol=0.02)
    assert thin_x[0] < 2
    assert thin_x[-1] > 8e4


def test_every_figure_says_what_it_shows_in_words(planted: Any) -> None:
    for figure in report_figures(planted.rows, planted.answer, planted.curves):
        assert figure.title
        assert figure.alt.endswith(".")
        assert figure.caption.endswith(".")
        assert figure.panels
        assert all(panel.x.title and panel.y.title for panel in figure.panels)


def test_plotly_accepts_every_figure(planted: Any) -> None:
    """The figures are built without the plotly package; it is the judge of what plotly.js reads."""
    objects = pytest.importorskip("plotly.graph_objects", reason="plotly is not installed")

    def colored(value: Any) -> Any:
        if isinstance(value, str) and value.startswith("@"):
            return LIGHT[value[1:].split("/")[0]]
        if isinstance(value, dict):
            return {key: colored(item) for key, item in value.items()}
        return [colored(item) for item in value] if isinstance(value, list) else value

    for figure in report_figures(planted.rows, planted.answer, planted.curves):
        objects.Figure(colored(to_plotly(figure)))


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_stand_out_from_the_page(theme: dict[str, str]) -> None:
    """WCAG 2.2: 4.5:1 for text, 3:1 for what a figure needs; the ramp and families 4-6 have shapes as well."""
    for name in ("ink", "soft", "accent", "bad", "good"):
        assert contrast(theme[name], theme["page"]) >= 4.5, name
    for name in ("family0", "family1", "family2", "muted"):
        assert contrast(theme[name], theme["page"]) >= 3, name
    for name in [f"ramp{i}" for i in range(9)] + ["family3", "family4", "family5"]:
        assert contrast(theme[name], theme["page"]) >= 2, name


def test_the_bars_of_the_cost_add_up_to_what_was_spent(planted: Any) -> None:
    compute, _ = draw.cost(planted.rows, planted.answer).panels
    spent = sum(row["train_flops"] for row in planted.rows)
    assert sum(sum(s.y) for s in compute.series) == pytest.approx(spent)


def test_run_time_joins_only_runs_that_no_shorter_one_beat(planted: Any) -> None:
    figure = draw.hours(planted.rows, planted.answer)
    for line in (s for s in figure.panels[0].series if s.kind == "line"):
        assert list(line.x) == sorted(line.x)
        assert list(line.y) == sorted(line.y, reverse=True)


def test_ablations_are_differences_from_the_baseline() -> None:
    """Accuracies of the PoolFormer-S12 ablation (arXiv 2111.11418, table 5)."""
    rows = [{"name": "pooling", "top-1": 77.2}, {"name": "identity", "top-1": 74.3}, {"name": "random", "top-1": 75.8}]
    figure = draw.ablation("ablation", "Token mixers", rows, "top-1", "pooling")
    assert [round(v, 6) for v in figure.panels[0].series[0].x] == [-2.9, -1.4]
    assert "77.200" in figure.caption
    assert draw.ablation("ablation", "Token mixers", rows, "top-1", "attention").empty


def test_a_spike_and_a_restart_are_marked(planted: Any) -> None:
    run = planted.rows[0]["run_id"]
    curve = {key: list(values) for key, values in planted.curves[run].items()}
    curve["train_loss"][80] *= 3
    curve["restarts"] = [curve["images"][40]]
    figure = draw.curves(planted.rows[:1], {}, {run: curve})
    assert list(series_named(figure, "spike").x) == [curve["images"][80]]
    assert list(series_named(figure, "restart").x) == [curve["images"][40]]


def test_families_are_compared_at_the_largest_budget_that_all_have(planted: Any) -> None:
    figure = draw.families_compared(planted.rows, planted.answer)
    best = {}
    for row in planted.rows:
        if row["budget"] == 1e12 and row["status"] == "done" and row["role"] == "ladder":
            best[row["family"]] = min(best.get(row["family"], math.inf), row["heldout_loss"])
    (bars,) = figure.panels[0].series
    assert dict(zip(bars.y, bars.x, strict=True)) == pytest.approx(
        {family: best[family] - best["poolformer"] for family in ("vit", "nfnet")}  # the answer's
    )
    assert bars.colors == ["family1", "family2"]
    assert f"{min(best, key=lambda family: best[family])} is the best" in figure.caption
    ladder = [row for row in planted.rows if row["role"] == "ladder"]
    top = max(ladder, key=lambda row: row["budget"])
    finals = [top | {"role": "final", "budget": 4e12 * loss**0.01, "family": family, "heldout_loss": loss}
              for family, loss in (("poolformer", 1.0), ("vit", 1.25), ("nfnet", 0.5))]  # fmt: skip
    (bars,) = draw.families_compared([*ladder, *finals], planted.answer).panels[0].series
    assert dict(zip(bars.y, bars.x, strict=True)) == {"vit": 0.25, "nfnet": -0.5}  # those of the answers
    alone = [row for row in planted.rows if row["family"] == "vit"]
    assert "two families" in draw.families_compared(alone, {}).empty


def test_copies_of_a_run_give_the_bars_their_errors(planted: Any) -> None:
    rows = [row for row in planted.rows if row["budget"] == 1e12 and row["role"] == "ladder"]
    best = min((r for r in rows if r["family"] == "nfnet"), key=lambda r: r["heldout_loss"])
    copies = [best | {"seed": k, "heldout_loss": best["heldout_loss"] + 0.1 * k} for k in (1, 2)]
    (bars,) = draw.families_compared([*rows, *copies], {}).panels[0].series
    nfnet = list(bars.y).index("nfnet")
    assert bars.upper[nfnet] - bars.x[nfnet] == pytest.approx(0.1)


def test_the_price_of_a_study_is_told_where_it_is_known(planted: Any) -> None:
    seconds = sum(row["seconds"] for row in planted.rows)
    answer = {"study": {"config": {"study": {"price_per_hour": 2.0}}}}
    told = draw.cost(planted.rows, answer).caption
    assert told.endswith(f", which cost {quantity(2.0 * seconds / 3600, 3)} at 2.00 an hour.")
    assert draw.cost(planted.rows, {}).caption.endswith("of device time.")
