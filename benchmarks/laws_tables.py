"""Laws on tables of other people: budgets held out, beside what others fit. Writes the table of docs/results/laws.md.

    python benchmarks/laws_tables.py FOLDER

FOLDER has isoflops.csv (github.com/Open-Athena/scaling-law-analysis, data/isoflops/extract/isoflops.csv),
scalebench_farseer.csv and scalebench_data_constrained.csv (ScaleBench, arXiv 2604.22753, CC BY 4.0): they are read
there because not all of them may be copied. Tables that the project has are added. The package `chinchilla` is a
column where it is installed.
"""

import contextlib
import csv
import io
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isoflop import laws
from isoflop.errors import LawError
from isoflop.laws.forms import VIT_GFLOPS
from isoflop.laws.size_data_fit import size_data_model
from isoflop.laws.solve import minimise

Array = NDArray[np.float64]
Table = tuple[Array, ...]
"""n, d, loss; and the different data behind d where some repeat."""
TESTS = Path(__file__).parent.parent / "tests"
HELD_OUT = (2, 5, 10)
PUBLISHED = {
    "arXiv 2203.15556": (406.4, 410.7, 1.69, 0.34, 0.28),
    "arXiv 2404.10102": (482.01, 2085.43, 1.8172, 0.3478, 0.3658),
}
"""A, B, E, α, β of parameters and tokens; fitted to all budgets, those held out here too."""


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def columns(
    rows: list[dict[str, str]], n: str, d: str, loss: str, factor: float = 1.0, unique: str | None = None
) -> Table:
    names = (d, loss, *([unique] if unique else []))
    kept = {(factor * float(r[n]), *(float(r[name]) for name in names)) for r in rows if r[n] and r[d] and r[loss]}
    return tuple(np.array(sorted(kept)).T)


def tables(folder: Path) -> Iterator[tuple[str, Table]]:
    """(name, table) of every table."""
    isoflops = rows_of(folder / "isoflops.csv")
    for name in sorted({r["experiment"] for r in isoflops}):
        yield (
            name.replace("__", " "),
            columns([r for r in isoflops if r["experiment"] == name], "params", "tokens", "loss", 6),
        )
    for name in ("farseer", "data_constrained"):
        rows = rows_of(folder / f"scalebench_{name}.csv")
        unique = "unique_tokens" if name == "data_constrained" else None
        yield f"ScaleBench {name}", columns(rows, "flops_per_token", "tokens", "loss", unique=unique)
    chinchilla = rows_of(TESTS / "report" / "chinchilla_234.csv")
    yield "Chinchilla, as digitised in arXiv 2404.10102", columns(chinchilla, "N", "D", "loss", 6)
    clip = rows_of(TESTS / "laws" / "foreign" / "openclip_four_groups.csv")
    errors = [r | {"error": f"{1 - float(r['acc1']):.6f}"} for r in clip]
    for name in ("LAION-2B", "LAION-400M", "LAION-80M"):
        here = [r for r in errors if r["upstream_dataset"] == name]
        yield f"open CLIP {name}, zero-shot error", columns(here, "gmacs", "samples_seen", "error", 1e9)
    vit = laws.load_table("scaling_vit_fewshot")
    for metric in ("inet10", "inet5"):
        runs = [
            {"n": f"{3e9 * VIT_GFLOPS[m]}", "d": f"{4096 * float(s)}", "error": f"{100 - float(e)}"}
            for m, s, e, u in zip(vit["model"], vit["steps"], vit[metric], vit["images"], strict=True)
            if float(u) == 3e9
        ]
        yield f"Scaling ViT {metric} error, 3 billion images", columns(runs, "n", "d", "error")


def approach_3(table: Table) -> Array:
    """(log A, log B, E, α, β) by the objective of arXiv 2203.15556 (Huber of log loss, δ 1e-3), of 60 starts."""
    x, y, z = (np.log(v) for v in table[:3])
    rng = np.random.default_rng(0)
    floor = float(np.exp(z.min()))
    starts = np.column_stack(
        [rng.uniform(low, high, 200) for low, high in ((-6, 3), (-6, 3), (0, floor), (0, 2), (0, 2))]
    )
    lower, upper = np.array([-30, -30, 0, 0, 0.0]), np.array([30, 30, floor, 5, 5.0])
    found = minimise(size_data_model(x - x.mean(), y - y.mean()), starts, z, delta=1e-3, lower=lower, upper=upper)
    return np.asarray(found.theta[int(np.argmin(found.objective))])


def by_chinchilla(table: Table, later: Table) -> Array | None:
    """Predictions of the package `chinchilla` with its own loss and optimiser; None if not installed."""
    try:
        from chinchilla import Chinchilla
    except ImportError:
        return None
    n, d, loss = table[:3]
    grid = {"e": [0.0, 0.5], "a": [5.0, 15.0], "b": [5.0, 15.0], "alpha": [0.3, 0.6], "beta": [0.3, 0.6]}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        seeds = {"C": (1e18, 1e19), "N_to_D": (1, 100)}
        package = Chinchilla(folder, param_grid=grid, seed_ranges=seeds, log_level=50)
        for row in zip(n * d, n / 6, d, loss, strict=True):
            package.database.append(**dict(zip(("C", "N", "D", "loss"), map(float, row), strict=True)))
        package.fit(parallel=False)
        return np.asarray(package.predict_loss(later[0] / 6, later[1]), dtype=np.float64)


def rmse(predicted: Array, measured: Array) -> float:
    return float(np.sqrt(np.mean(np.log(predicted / measured) ** 2)))


def score(name: str, table: Table, factor: float) -> tuple[list[str], dict[str, float]] | None:
    """A row of the page: every run with more than 1/`factor` of the largest compute is predicted from the others."""
    compute = table[0] * table[1]
    past = compute <= compute.max() / factor * (1 + 1e-6)
    if past.sum() < 6 or (~past).sum() < 1:
        return None
    seen, later = (tuple(v[rows] for v in table) for rows in (past, ~past))
    try:
        law = laws.fit_size_data(*seen)
    except LawError:
        return None
    unique = later[3] if len(later) > 3 else None
    lo, hi = law.interval(later[0], later[1], unique=unique)
    inside = float(np.mean((lo <= later[2]) & (later[2] <= hi)))
    theta = approach_3(seen)
    centre = np.log(seen[0]).mean(), np.log(seen[1]).mean()
    third = np.exp(size_data_model(np.log(later[0]) - centre[0], np.log(later[1]) - centre[1])(theta[None])[0][0])
    scores = {
        "ours": rmse(law.predict(later[0], later[1], unique=unique), later[2]),
        "approach 3": rmse(third, later[2]),
        "inside": inside,
        "said": law.runs.coverage if law.runs and law.runs.coverage is not None else float("nan"),
        "width": float(np.median(hi / lo) - 1),
    }
    other = by_chinchilla(seen, later)  # type: ignore[arg-type]
    scores["chinchilla"] = rmse(other, later[2]) if other is not None else float("nan")
    published = ""
    if "hinchilla" in name:
        for source, (a, b, e, alpha, beta) in PUBLISHED.items():
            value = e + a * (later[0] / 6) ** -alpha + b * later[1] ** -beta
            published += f"{rmse(value, later[2]):.4f} ({source}) "
    cells = [name, f"top/{factor}", f"{int(past.sum())} → {int((~past).sum())}", f"{scores['ours']:.4f}"]
    cells += [f"{inside:.0%}", f"{scores['width']:.1%}", f"{scores['approach 3']:.4f}"]
    cells += ["–" if np.isnan(scores["chinchilla"]) else f"{scores['chinchilla']:.4f}", published.strip() or "–"]
    return cells, scores


def main(folder: Path) -> None:
    print(
        "| table | held out: above | runs | ours, RMSE of log loss | 90 % interval holds | its width | approach 3 | "
        "package `chinchilla` | published laws |\n|---|---|---|---|---|---|---|---|---|"
    )
    every: list[dict[str, float]] = []
    for name, table in tables(folder):
        for factor in HELD_OUT:
            if found := score(name, table, factor):
                print("| " + " | ".join(found[0]) + " |", flush=True)
                every.append(found[1])
    means = {key: float(np.nanmean([s[key] for s in every])) for key in every[0]}
    better = sum(s["ours"] < s["approach 3"] for s in every)
    print(f"\n{len(every)} rows; mean RMSE {means['ours']:.4f}, approach 3 {means['approach 3']:.4f}, chinchilla "
          f"{means['chinchilla']:.4f}; ours lower than approach 3 in {better}; coverage {means['inside']:.1%} "
          f"({means['said']:.1%} by the printed backtests), width {means['width']:.1%}")  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("python benchmarks/laws_tables.py FOLDER")
    main(Path(sys.argv[1]))
