"""Tables in the formats of other people get a law without an option, and say what was taken for what."""

from pathlib import Path

import numpy as np
import pytest

from isoflop.errors import LawError
from isoflop.laws import Prediction, TableFit, fit_table
from isoflop.laws.columns import TableSource, is_accuracy, positive_column
from isoflop.laws.roles import read_runs

PARAMS = np.repeat([1e7, 3e7, 1e8, 3e8, 1e9], 5)
TOKENS = np.tile(np.geomspace(1e9, 2e10, 5), 5)
LOSS = 1.7 + 400 * PARAMS**-0.34 + 410 * TOKENS**-0.28
"""The law of arXiv 2203.15556 without noise."""


def runs_of(**columns: object):
    return read_runs({name: [str(c) for c in cells] for name, cells in columns.items()}, TableSource("t.csv"))  # type: ignore[attr-defined]


def texts(read) -> tuple[str, ...]:
    return (*(axis.text for axis in read.x), read.y)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("params", "tokens", "val_loss"), ("6*params", "tokens", "val_loss")),
        (("N", "D", "L"), ("6*N", "D", "L")),
        (("$N$", "$D$", r"$\mathcal{L}$"), ("6*$N$", "$D$", r"$\mathcal{L}$")),
        (("n_params", "train_tokens", "eval/loss"), ("6*n_params", "train_tokens", "eval/loss")),
        (("num_parameters", "n_tokens", "Validation Loss"), ("6*num_parameters", "n_tokens", "Validation Loss")),
        (("params", "images_seen", "error"), ("params", "images_seen", "error")),
        (("flops_per_token", "tokens", "loss"), ("flops_per_token", "tokens", "loss")),
        (("n", "d", "loss"), ("n", "d", "loss")),
    ],
)
def test_size_data_and_loss_are_found_by_their_names(names, expected):
    assert texts(runs_of(**dict(zip(names, (PARAMS, TOKENS, LOSS), strict=True)))) == expected


def test_compute_decides_what_a_parameter_costs():
    table = {"params": PARAMS, "tokens": TOKENS, "loss": LOSS}
    dense, other = runs_of(flops=6.02 * PARAMS * TOKENS, **table), runs_of(flops=11.0 * PARAMS * TOKENS, **table)
    assert texts(dense) == ("6*params", "tokens", "loss")
    assert texts(other) == ("flops/tokens", "tokens", "loss")
    np.testing.assert_allclose(other.axes[0] * other.axes[1], 11.0 * PARAMS * TOKENS)
    alone = runs_of(budget=6 * PARAMS * TOKENS, params=PARAMS, loss=LOSS)
    assert texts(alone) == ("6*params", "budget/6*params", "loss")
    np.testing.assert_allclose(alone.axes[1], TOKENS)


@pytest.mark.parametrize(
    ("names", "scale"),
    [
        (("params_M", "tokens_B"), (1e6, 1e9)),
        (("Params (M)", "Tokens (B)"), (1e6, 1e9)),
        (("model size [billions]", "tokens_in_billions"), (1e9, 1e9)),
        (("params_B", "tokens (1e9)"), (1e9, 1e9)),
    ],
)
def test_units_in_names_are_counted(names, scale):
    read = runs_of(**{names[0]: PARAMS / scale[0], names[1]: TOKENS / scale[1], "loss": LOSS})
    np.testing.assert_allclose(read.axes[0], 6 * PARAMS)
    np.testing.assert_allclose(read.axes[1], TOKENS)


def test_parameters_and_tokens_are_counted_as_six_flops_unless_said_otherwise():
    table = {"params": [str(v) for v in PARAMS], "tokens": [str(v) for v in TOKENS], "loss": [str(v) for v in LOSS]}

    def predicted(x: list[str], **asked) -> tuple[TableFit, Prediction]:
        fit = fit_table(table, x=x, y="loss", **asked)
        (group,) = fit.groups
        assert group.prediction is not None
        return fit, group.prediction

    fit, counted = predicted(["params", "tokens"], budget=1e20)
    _, product = predicted(["1*params", "tokens"], budget=1e20 / 6)
    assert "compute is 6*params × tokens: training FLOPs of a dense transformer" in " ".join(fit.notes)
    assert counted.n == pytest.approx(6 * product.n, rel=1e-3)
    assert counted.value == pytest.approx(product.value, rel=1e-4)
    _, given = predicted(["params", "tokens"], at=(2e9, 1e10))
    assert (given.n, given.budget) == (1.2e10, 1.2e20)
    assert given.interval[0] < 1.7 + 400 * 2e9**-0.34 + 410 * 1e10**-0.28 < given.interval[1]


@pytest.mark.parametrize(
    ("cells", "value"),
    [
        (["1,234,567", "2,000"], 1234567),
        (["1.234.567,5", "2,5"], 1234567.5),
        (["1.234.567", "900.000"], 1234567),
        (["0,125", "0,250"], 0.125),
        (["1 234 567", "2"], 1234567),
        (["1\u202f234", "2"], 1234),
        (["70B", "410M"], 70e9),
        (["1.4T", "2"], 1.4e12),
        ([r"$6.4 \times 10^{18}$", "$10^{19}$"], 6.4e18),
        ([r"\textbf{2.31}", "2.40"], 2.31),
        (["2.31 ± 0.02", "2.4"], 2.31),
        ([r"$2.31 \pm 0.02$", "2.4"], 2.31),
        (["71.5%", "70 %"], 71.5),
    ],
)
def test_numbers_as_people_write_them(cells, value):
    assert positive_column({"x": cells}, "x", TableSource("t"), suffixes=True)[0] == pytest.approx(value)


@pytest.mark.parametrize(
    "name",
    [
        "mIoU",
        "val_mIoU",
        "mAP",
        "mAP@0.5",
        "AP50",
        "box_AP",
        "F1",
        "f1_score",
        "macro-F1",
        "AUC",
        "roc_auc",
        "AUROC",
        "top1",
        "top-5",
        "Top 1",
        "acc@1",
        "accuracy",
        "val_acc",
        "test/accuracy",
        "knn_accuracy",
        "precision",
        "Recall@5",
        "R@1",
        "dice",
        "IoU",
        "pass@1",
        "hit_rate",
        "exact_match",
        "nDCG@10",
    ],
)
def test_measures_that_are_better_when_larger_are_known(name):
    assert is_accuracy(name)


@pytest.mark.parametrize(
    "name", ["top1_error", "loss", "f1_loss", "wer", "ppl", "perplexity", "error_rate", "accumulated", "mapping", "fid"]
)
def test_others_are_not(name):
    assert not is_accuracy(name)


def test_two_segmentation_scores_become_errors():
    miou = 0.85 - 0.5 * (np.geomspace(1e6, 1e9, 8) / 1e6) ** -0.2
    table = {"images": [f"{v:g}" for v in np.geomspace(1e6, 1e9, 8)], "mIoU": [f"{v:.5f}" for v in miou]}
    fit = fit_table(table, budget=2e9)
    assert fit.unit == "error (1 - mIoU)"
    p = fit.groups[0].prediction
    assert p is not None
    assert p.interval[0] < 0.15 + 0.5 * 2000**-0.2 < p.interval[1]


def test_families_are_found_but_not_sizes_seeds_or_splits():
    def table(**more: list[str]) -> dict[str, list[str]]:
        columns = {"params": PARAMS, "tokens": TOKENS, "loss": LOSS}
        return {k: [str(v) for v in np.tile(c, 2)] for k, c in columns.items()} | more

    two = ["moe"] * 25 + ["dense"] * 25
    sizes = [f"{p:g}" + "M" for p in np.tile(PARAMS, 2)]
    seeds = [str(k) for k in range(50)]
    read = read_runs(table(model=sizes, arch=two, seed=seeds), TableSource("t"))
    assert read.by == "arch"
    assert "--by arch" in read.notes[0]
    assert read_runs(table(model=sizes, seed=seeds), TableSource("t")).by is None
    assert read_runs(table(arch=two, seed=seeds), TableSource("t"), by="none").by is None
    assert read_runs(table(arch=two, seed=seeds), TableSource("t"), ("params", "tokens"), "loss").by is None


def test_rows_without_a_value_are_left_out_and_named(tmp_path: Path):
    """An export of Weights & Biases: a crashed run has no loss, and every step has a row."""
    lines = ["Name,State,params,tokens,train/loss,val/loss"]
    lines += [
        f"r{k},finished,{n:g},{d:g},{v + 0.1:.4f},{v:.4f}"
        for k, (n, d, v) in enumerate(zip(PARAMS, TOKENS, LOSS, strict=True))
    ]
    lines.insert(3, "bad,crashed,1e7,1e9,,")
    path = tmp_path / "wandb.csv"
    path.write_text("\n".join(lines) + "\n")
    fit = fit_table(path, budget=1e20)
    assert fit.y == "val/loss"
    assert "1 row without `val/loss` left out (line 4)" in fit.notes
    assert fit.groups[0].rows == 25


def test_charts_of_tensorboard_and_of_weights_and_biases_are_curves(tmp_path: Path):
    steps = [100 * 2**k for k in range(9)]
    board = tmp_path / "board.csv"
    board.write_text(
        "Wall time,Step,Value\n" + "".join(f"17{k}.5,{s},{0.4 + 3 * s**-0.3:.5f}\n" for k, s in enumerate(steps))
    )
    fit = fit_table(board, budget=1e5)
    assert (fit.x, fit.y) == (("Step",), "Value")
    assert fit.groups[0].prediction is not None
    chart = tmp_path / "chart.csv"
    head = '"Step","vit - val/loss","vit - val/loss__MIN","vit - val/loss__MAX","nfnet - val/loss"\n'
    chart.write_text(head + "".join(f"{s},{0.4 + 3 * s**-0.3:.5f},,,{0.5 + 3 * s**-0.35:.5f}\n" for s in steps))
    assert [g.name for g in fit_table(chart, budget=1e5).groups if g.prediction] == ["vit", "nfnet"]


def test_a_spreadsheet_with_semicolons_and_decimal_commas_is_the_same_table(tmp_path: Path):
    rows = list(zip(PARAMS, TOKENS, LOSS, strict=True))
    plain, sheet = tmp_path / "plain.csv", tmp_path / "sheet.csv"
    plain.write_text("params,tokens,loss\n" + "".join(f"{n:.0f},{d:.0f},{v:.4f}\n" for n, d, v in rows))
    german = [f"{n:,.0f};{d:,.0f};".replace(",", ".") + f"{v:.4f}\n".replace(".", ",") for n, d, v in rows]
    sheet.write_text("params;tokens;loss\n" + "".join(german))
    assert fit_table(plain).groups[0].size_data == fit_table(sheet).groups[0].size_data


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"params": PARAMS, "tokens": TOKENS},
            "no column looks like a loss, an error or an accuracy: name it with --y",
        ),
        ({"colour": PARAMS, "loss": LOSS}, "no column looks like compute, .*: name it with --x. It has: colour"),
    ],
)
def test_what_cannot_be_guessed_is_asked_for(columns, message):
    with pytest.raises(LawError, match=message):
        runs_of(**columns)


@pytest.mark.parametrize(
    ("name", "cells", "option"),
    [
        ("unique_tokens", np.minimum(TOKENS, 4e9), "unique_tokens"),
        ("dataset size", np.full(25, 4e9), "dataset size"),
        ("unique_tokens_B", np.full(25, 4.0), "1e+09*unique_tokens_B"),
        ("epochs", TOKENS / 4e9, "tokens/epochs"),
    ],
)
def test_different_data_are_found_by_name_and_said(name, cells, option):
    table = {"params": PARAMS, "tokens": TOKENS, "loss": LOSS, name: cells}
    read = runs_of(**table)
    assert read.unique is not None
    np.testing.assert_allclose(read.unique, np.minimum(TOKENS, 4e9) if name == "unique_tokens" else 4e9)
    assert any(option in note for note in read.notes)
    assert texts(read) == ("6*params", "tokens", "loss")
    columns = {c: [str(v) for v in values] for c, values in table.items()}
    assert read_runs(columns, TableSource("t.csv"), unique="none").unique is None


def test_runs_without_a_number_of_different_data_repeat_none():
    cells = ["", "-", *["4e9"] * 23]
    unique = runs_of(params=PARAMS, tokens=TOKENS, loss=LOSS, unique_tokens=cells).unique
    assert np.isnan(unique[:2]).all()
    assert (unique[2:] == 4e9).all()
    assert runs_of(params=PARAMS, tokens=TOKENS, loss=LOSS, unique_params=PARAMS / 2).unique is None
    with pytest.raises(LawError, match="`who` must have positive numbers"):
        read_runs({"n": ["1", "2"], "d": ["1", "2"], "loss": ["3", "2"], "who": ["a", "b"]}, TableSource("t.csv"),
                  ["n", "d"], "loss", unique="who")  # fmt: skip
