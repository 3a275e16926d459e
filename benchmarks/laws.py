"""What the laws predict, and how often their intervals hold: every claim of docs/laws.md, measured.

    python benchmarks/laws.py [curves | damping | others | vit | figure2 | nfnet | planted | replay | repeats | start]…

Without arguments everything runs (about ten minutes on one core). The tables are those bundled with the package.
"""

import csv
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import curve_fit

from isoflop import laws
from isoflop.laws import curve as curve_module
from isoflop.laws import forms as forms_module
from isoflop.laws.fit_table import COLOURS
from isoflop.laws.forms import VIT_GFLOPS

Array = NDArray[np.float64]
Points = tuple[Array, Array]
PUBLISHED = {"M1": 0.082, "M2": 0.073, "M3": 0.045, "M4": 0.024, "broken law": 0.024}
"""Mean RMSE of log error of the published estimators on the same 36 curves, as measured for the project."""


def learning_curves() -> Iterator[tuple[str, str, Points, Points]]:
    """(task, model, points to fit, points to predict) of the 36 curves."""
    table = laws.load_table("learning_curves_vision")
    task, model = np.array(table["task"]), np.array(table["model"])
    x, y = np.array(table["seen_examples"], float), np.array(table["error"], float)
    training = np.array(table["training"]) == "1"
    for t, m in sorted({*zip(task.tolist(), model.tolist(), strict=True)}):
        here = (task == t) & (model == m)
        yield t, m, (x[here & training], y[here & training]), (x[here & ~training], y[here & ~training])


def rmse(predicted: Array, measured: Array) -> float:
    return float(np.sqrt(np.mean(np.log(predicted / measured) ** 2)))


def curves() -> None:
    """RMSE of log error on the held-out part of 36 real curves, and coverage of 90 % intervals."""
    rows = []
    for task, model, seen, later in learning_curves():
        law = laws.fit_curve(*seen)
        lo, hi = law.interval(later[0], 0.9)
        inside = float(np.mean((lo <= later[1]) & (later[1] <= hi)))
        rows.append((task, model, rmse(law.predict(later[0]), later[1]), inside))
    print("\n| curves | RMSE of log error | coverage of 90 % intervals |\n|---|---|---|")
    for name, prefix in (("CIFAR-100", "c_"), ("ImageNet", "inet_"), ("all 36", "")):
        part = [r for r in rows if r[0].startswith(prefix)]
        print(f"| {name} | {np.mean([r[2] for r in part]):.4f} | {np.mean([r[3] for r in part]):.1%} |")
    for model in dict.fromkeys(r[1] for r in rows):
        part = [r for r in rows if r[1] == model]
        print(f"| {model} | {np.mean([r[2] for r in part]):.4f} | {np.mean([r[3] for r in part]):.1%} |")
    print("published estimators: " + ", ".join(f"{name} {value}" for name, value in PUBLISHED.items()))


def damping() -> None:
    """Is the one constant of the mixture overfitted? Chosen on some curves, scored on those left out."""
    rates = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)
    windows = curve_module.WINDOWS
    curve_module.WINDOWS = {"damped": windows["damped"]}
    table: dict[float, dict[tuple[str, str], float]] = {}
    try:
        for rate in rates:
            forms_module.DAMPING = rate
            table[rate] = {
                (task, model): rmse(laws.fit_curve(*seen).predict(later[0]), later[1])
                for task, model, seen, later in learning_curves()
            }
    finally:
        forms_module.DAMPING, curve_module.WINDOWS = 0.35, windows
    print("\nRMSE by damping: " + ", ".join(f"{r:g} {np.mean(list(table[r].values())):.4f}" for r in rates))
    groups: dict[str, Callable[[tuple[str, str]], str]] = {
        "model": lambda key: key[1],
        "task": lambda key: key[0],
        "data set": lambda key: key[0].split("_")[0],
    }
    for name, group in groups.items():
        scores, chosen = [], []
        for left_out in dict.fromkeys(group(key) for key in table[0.35]):
            inside = [key for key in table[0.35] if group(key) != left_out]
            best = min(rates, key=lambda r: float(np.mean([table[r][k] for k in inside])))
            chosen.append(best)
            scores += [table[best][key] for key in table[0.35] if group(key) == left_out]
        print(f"leave one {name} out: RMSE {np.mean(scores):.4f}, damping chosen {sorted(set(chosen))}")


def others() -> None:
    """Curves that nothing was tuned on: sparse ones of arXiv 2106.04560, the last two points held back."""
    print("\n| metric | mixture | a·x^-b + c | coverage of 90 % intervals |\n|---|---|---|---|")
    for name, column in (("fewshot", "inet10"), ("fewshot", "inet5"), ("finetune", "imagenet")):
        table = laws.load_table(f"scaling_vit_{name}")
        model, unique = np.array(table["model"]), np.array(table["images"], float)
        steps, error = np.array(table["steps"], float), 100 - np.array(table[column], float)
        ours, plain, inside = [], [], []
        for m in dict.fromkeys(model.tolist()):
            for images in (1e9, 3e9):
                here = np.flatnonzero((model == m) & (unique == images))
                here = here[np.unique(steps[here], return_index=True)[1]]
                if here.size < 7:
                    continue
                x, y = steps[here], error[here]
                law, offset = laws.fit_curve(x[:-2], y[:-2]), laws.fit_form("offset", x[:-2], y[:-2])
                ours.append(rmse(law.predict(x[-2:]), y[-2:]))
                plain.append(rmse(offset.predict(x[-2:]), y[-2:]))
                lo, hi = law.interval(x[-2:], 0.9)
                inside += ((lo <= y[-2:]) & (y[-2:] <= hi)).tolist()
        scores = f"{np.mean(ours):.4f} | {np.mean(plain):.4f} | {np.mean(inside):.0%}"
        print(f"| {name} {column}, {len(ours)} curves | {scores} |")


def vit() -> None:
    """Scaling ViT: the giants from models up to L/16, and the peak of L/16 on 30 million images."""
    table = laws.load_table("scaling_vit_fewshot")
    model = np.array(table["model"])
    n = 3e9 * np.array([VIT_GFLOPS[m] for m in model])
    seen, unique = 4096 * np.array(table["steps"], float), np.array(table["images"], float)
    giant = np.isin(model, ["g/14", "G/14"])
    print("\n| metric | fitted rows | form chosen | RMSE, points | inside 90 % |\n|---|---|---|---|---|")
    for column in ("inet10", "inet5"):
        error = 1 - np.array(table[column], float) / 100
        for name, rows in (("3 billion images", unique == 3e9), ("1 and 3 billion", unique >= 1e9)):
            rows = rows & ~giant
            law = laws.fit_finite_data(n[rows], seen[rows], error[rows], top=1.0)
            points = 100 * (law.predict(n[giant], seen[giant]) - error[giant])
            lo, hi = law.interval(n[giant], seen[giant])
            inside = float(np.mean((lo <= error[giant]) & (error[giant] <= hi)))
            print(f"| {column} | {name} | {law.variant} | {np.sqrt(np.mean(points**2)):.2f} | {inside:.0%} |")
            if column == "inet10" and name.startswith("3"):
                print("  errors in points: " + " ".join(f"{v:+.2f}" for v in points), end="\n")
                choice = ", ".join(f"{k} {v:.3f}" for k, v in law.choice.items())
                print(f"  rolling-origin RMSE of log error inside the table: {choice}")
    error = 1 - np.array(table["inet10"], float) / 100
    law = laws.fit_finite_data(n[~giant], seen[~giant], error[~giant], unique[~giant], top=1.0)
    large = 3e9 * VIT_GFLOPS["L/16"]
    for images in (3e7, 3e8, 1e9):
        peak = law.best_duration(large, images, 4e6 * 4096)
        lost = 100 * float(law.predict(large, 4e6 * 4096, images) - law.predict(large, peak, images))
        print(f"L/16 on {images:.0e} images: best at {peak / 4096:,.0f} steps; at 4M steps {lost:.1f} points worse")


def figure2(path: Path = Path("docs/results/scaling_vit_figure2.svg")) -> None:
    """The frontier of arXiv 2106.04560, figure 2: 10-shot error against compute, law from models up to L/16."""
    table = laws.load_table("scaling_vit_fewshot")
    model = np.array(table["model"])
    compute = 3e9 * np.array([VIT_GFLOPS[m] for m in model]) * 4096 * np.array(table["steps"], float) / 1e21
    error = 100 - np.array(table["inet10"], float)
    giant = np.isin(model, ["g/14", "G/14"])
    best = laws.lower_envelope(compute[~giant], error[~giant])
    law = laws.fit_frontier(compute[~giant][best], error[~giant][best])
    print(f"\nfrontier up to L/16: {law.a:.3g}·(C + {law.d:.2g})^-{law.b:.2f} + {law.c:.3g} %, R² {law.r_squared:.4f}")
    on_frontier = np.flatnonzero(giant)[laws.lower_envelope(compute[giant], error[giant])]
    lo, hi = law.interval(compute[on_frontier])
    for k, low, high in zip(on_frontier, lo, hi, strict=True):
        said = f"law {law.predict(compute[k]):.1f} ({low:.1f} to {high:.1f}), measured {error[k]:.1f}"
        print(f"  {model[k]} at {compute[k]:.3g}e21: {said}")
    grid = np.geomspace(compute.min(), compute.max(), 120)
    lo, hi = law.interval(grid)
    line = {"name": "law up to L/16", "colour": "#222222", "x": grid.tolist()}
    series: list[dict[str, Any]] = [{**line, "kind": "band", "y": lo.tolist(), "y2": hi.tolist()}]
    series.append({**line, "kind": "line", "y": law.predict(grid).tolist()})
    sizes = {
        "Ti and s": ("s/28", "s/16", "Ti/16"),
        "S": ("S/32", "S/16"),
        "B": ("B/32", "B/28", "B/16"),
        "L/16": ("L/16",),
        "g/14, G/14 (not fitted)": ("g/14", "G/14"),
    }
    unique = np.array(table["images"], float)
    for (name, members), colour in zip(sizes.items(), COLOURS, strict=False):
        for images, radius in ((3e7, 1.6), (3e8, 2.2), (1e9, 2.8), (3e9, 3.6)):
            here = np.isin(model, members) & (unique == images)
            dots = {"x": compute[here].tolist(), "y": error[here].tolist(), "radius": radius}
            series += [{"name": name, "colour": colour, "kind": "points", **dots}] if here.any() else []
    axes = {"x": "training compute, 1e21 FLOPs", "y": "ImageNet 10-shot error, %"}
    title = "Scaling Vision Transformers, figure 2 (smaller dots: fewer different images)"
    draw(path, {"title": title, **axes, "series": series})


def draw(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(laws.svg(data))
    print(f"  {path}")


def nfnet(path: Path = Path("docs/results/nfnet_vit.svg")) -> None:
    """NFNets and ViTs at equal compute, as a statement and as a picture."""
    table = laws.load_table("nfnet_jft4b_digitised")
    hours = np.append(np.array(table["tpu_v4_core_hours"], float), 110e3)
    error = np.append(np.array(table["value"], float), 9.7)
    best = laws.lower_envelope(hours, error)
    law = laws.fit_frontier(hours[best], error[best])
    match = laws.match_at_equal_compute(
        law, [120e3, 280e3, 130e3], [9.8, 9.55, 9.7], names=("ViTs (g/14, G/14, SoViT-400m)", "NFNets"), unit=" points"
    )
    print(f"\n{match.statement}")
    print(f"law {law.a:.3g}·(C + {law.d:.0f})^-{law.b:.2f} + {law.c:.2f}, R² {law.r_squared:.4f}, {best.size} points")
    grid = np.geomspace(hours.min(), 3e5, 120)
    low, high = law.interval(grid)
    line = {"name": "law of the NFNets", "colour": "#222222", "x": grid.tolist()}
    series = [{**line, "kind": "band", "y": low.tolist(), "y2": high.tolist()}]
    series.append({**line, "kind": "line", "y": law.predict(grid).tolist()})
    for name, colour, x, y in (
        ("NFNets", COLOURS[0], hours, error),
        ("ViTs (g/14, G/14, SoViT)", COLOURS[4], np.array(match.compute), np.array(match.measured)),
    ):
        dots = {"x": x.tolist(), "y": y.tolist(), "radius": 3.6}
        series.append({"name": name, "colour": colour, "kind": "points", **dots})
    axes = {"x": "pretraining, TPU-v4 core-hours", "y": "ImageNet top-1 error after fine-tuning, %"}
    draw(path, {"title": "NFNets and ViTs pretrained on JFT-4B and JFT-3B", **axes, "series": series})
    before = hours[best] < 1e5
    blind = laws.fit_frontier(hours[best][before], error[best][before])
    lo, hi = blind.interval(110e3)
    said = f"{blind.predict(110e3):.2f} ({lo:.2f} to {hi:.2f})"
    print(f"F7+ at 110k hours from the digitised points alone: {said}; measured 9.70")


def planted(tables: int = 50) -> float:
    """Coverage of 95 % intervals of exponents over planted tables of four forms and three noise levels, printed and
    returned; `tables` is the number for each form and noise."""
    rng = np.random.default_rng(7)

    def one_axis(form: str, noise: float) -> list[bool]:
        b, points = rng.uniform(0.15, 0.6), int(rng.integers(10, 20))
        x = np.geomspace(1, 10 ** rng.uniform(2, 3.5), points)
        c, d = rng.uniform(0, 0.4), rng.uniform(0.2, 3)
        y = {"power": x**-b, "offset": x**-b + c, "double": (x + d) ** -b + c}[form]
        lo, hi = laws.fit_form(form, x, y * np.exp(noise * rng.standard_normal(points))).exponent_interval
        return [lo <= b <= hi]

    def two_axes(_: str, noise: float) -> list[bool]:
        alpha, beta = rng.uniform(0.2, 0.6, 2)
        sizes, budgets = int(rng.integers(4, 7)), np.geomspace(1e10, 1e12, int(rng.integers(4, 6)))
        n = np.concatenate([1e6 * np.sqrt(b / 1e11) * np.geomspace(0.2, 5, sizes) for b in budgets])
        d = np.repeat(budgets, sizes) / n
        loss = rng.uniform(0, 0.6) + (n / 1e6) ** -alpha + (d / 1e5) ** -beta
        law = laws.fit_size_data(n, d, loss * np.exp(noise * rng.standard_normal(n.size)), bootstrap=0)
        intervals = law.exponent_intervals
        return [
            intervals["alpha"][0] <= alpha <= intervals["alpha"][1],
            intervals["beta"][0] <= beta <= intervals["beta"][1],
        ]

    print("\n| form | noise | exponents | inside their 95 % interval |\n|---|---|---|---|")
    everything: list[bool] = []
    count = 0
    for form in ("power", "offset", "double", "size and data"):
        for noise in (0.005, 0.01, 0.03):
            make = two_axes if form == "size and data" else one_axis
            inside = [hit for _ in range(tables) for hit in make(form, noise)]
            count += tables
            everything += inside
            print(f"| {form} | {noise:.1%} | {len(inside)} | {np.mean(inside):.1%} |", flush=True)
    print(f"| all {count} tables | | {len(everything)} | {np.mean(everything):.1%} |")
    return float(np.mean(everything))


def replay() -> None:
    """The 720 runs of `study_grid.csv`: each family at each rate is an arm with four sizes.

    From its first three or four rungs: the best loss one and two rungs on, and the size for it; from the first three:
    which of two arms is better two rungs on.
    """
    from study_grid import STUDY

    from isoflop.config import StudyConfig, parse
    from isoflop.study.planned import Catalogue

    catalogue = Catalogue(parse(STUDY, StudyConfig))
    with (Path(__file__).parent / "study_grid.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    budgets = np.array(sorted({float(row["budget"]) for row in rows}))
    losses: dict[tuple[str, str], dict[str, Array]] = {}  # arm → model → log loss (seeds, budgets)
    for row in rows:
        arm = losses.setdefault((row["family"], row["learning_rate"]), {})
        seeds = arm.setdefault(row["model"], np.full((3, budgets.size), np.nan))
        seeds[int(row["seed"]), np.searchsorted(budgets, float(row["budget"]))] = np.log(float(row["heldout_loss"]))
    print(
        "\n| losses | arms | forecast | ratio | line | a·x^-b + c | covers | width | score | right | by the last rung"
        " | Brier | size regret | of the last size |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    )
    bins: list[tuple[float, bool]] = []
    for name, pick in (("mean of seeds", lambda v: v.mean(0)), *((f"seed {k}", lambda v, k=k: v[k]) for k in range(3))):
        arms = []
        for (family, _), models in losses.items():
            n = np.array([catalogue.flops_per_image(family, model) for model in models])
            arms.append((n, np.stack([pick(v) for v in models.values()])))
        scores = [_arm(n, z, budgets, k) for n, z in arms for k in (3, 4)]
        errors = np.concatenate([v[0] for v in scores])
        inside, width, points = (np.concatenate([v[1] for v in scores]).mean(0)).tolist()
        three = [v[3] for v in scores[::2]]
        right, last, brier = [], [], []
        for a, b in combinations(range(len(arms)), 2):
            tables = {str(k): _table(arms[k][0], arms[k][1], budgets, 3) for k in (a, b)}
            said = laws.compare(tables, budgets[4], laws={str(k): three[k] for k in (a, b)})
            p = next(s.p_best for s in said.standings if s.family == str(a))
            better = bool(arms[a][1][:, 4].min() < arms[b][1][:, 4].min())
            right.append((p > 0.5) == better)
            last.append(bool(arms[a][1][:, 2].min() < arms[b][1][:, 2].min()) == better)
            brier.append((p - better) ** 2)
            bins.append((max(p, 1 - p), right[-1]))
        regrets = np.concatenate([v[2] for v in scores])
        cells = [f"{v:.4f}" for v in np.sqrt((errors**2).mean(0))]
        print(
            f"| {name} | {len(arms)} | {' | '.join(cells)} | {inside:.0%} | {width:.3f} | {points:.3f} | "
            f"{np.mean(right):.1%} | {np.mean(last):.1%} | {np.mean(brier):.3f} | {regrets[:, 0].mean():.2%} (worst "
            f"{regrets[:, 0].max():.0%}) | {regrets[:, 1].mean():.2%} ({regrets[:, 1].max():.0%}) |",
            flush=True,
        )
    p, hit = np.array([b[0] for b in bins]), np.array([b[1] for b in bins])
    for lo, hi in pairwise((0.5, 0.6, 0.75, 0.9, 1.001)):
        here = (p >= lo) & (p < hi)
        print(
            f"P {lo:.0%} to {min(hi, 1):.0%}: {here.sum()}, {p[here].mean():.0%} stated, {hit[here].mean():.0%} right"
        )


def _table(n: Array, z: Array, budgets: Array, rungs: int) -> tuple[Array, Array, Array]:
    size, compute = np.repeat(n, rungs), np.tile(budgets[:rungs], n.size)
    return size, compute / size, np.exp(z[:, :rungs]).ravel()


def _arm(n: Array, z: Array, budgets: Array, rungs: int) -> tuple[Array, Array, Array, laws.SizeDataLaw]:
    """Errors (forecast, ratio, line, offset) of later rungs, (inside, width, score) of intervals, regrets of sizes."""
    law = laws.fit_size_data(*_table(n, z, budgets, rungs), bootstrap=40)
    t, best = np.log(budgets), z.min(0)
    seen = slice(0, rungs)
    slope = (best[rungs - 1] - best[rungs - 2]) / (t[rungs - 1] - t[rungs - 2])
    line = np.polyfit(t[seen], best[seen], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            start = (-line[0], np.exp(best[0]), 0.1)
            law3 = lambda x, b, a, c: a * np.exp(-b * (x - t[0])) + c  # noqa: E731
            box = ([0, 0, 0], [5, 100, np.exp(best[rungs - 1])])
            (b, a, c), _ = curve_fit(law3, t[seen], np.exp(best[seen]), start, bounds=box)
        except RuntimeError:
            b, a, c = -line[0], np.exp(best[0]), 0.0
    errors, marks, regrets = [], [], []
    for later in range(rungs, budgets.size):
        size, loss = law.size(budgets[later]), law.optimal(budgets[later])[2]
        lo, hi = np.log(law.optimal_interval(budgets[later])["loss"])
        truth = best[later]
        said = (np.log(loss), best[rungs - 1] + slope * (t[later] - t[rungs - 1]), np.polyval(line, t[later]),
                np.log(a * np.exp(-b * (t[later] - t[0])) + c))  # fmt: skip
        errors.append([v - truth for v in said])
        outside = max(lo - truth, truth - hi, 0.0)
        marks.append([outside == 0, hi - lo, hi - lo + 20 * outside])
        chosen = (int(np.argmin(np.abs(np.log(n / size)))), int(np.argmin(z[:, rungs - 1])))
        regrets.append([np.expm1(z[k, later] - truth) for k in chosen])
    return np.array(errors), np.array(marks), np.array(regrets), law


REPEATED = ("no harm", "saturating", "size too", "hurting", "larger hurt", "declining")
"""What is planted: repeats as good as new images; worth ever less (arXiv 2305.16264), size as well as images; adding to
the loss, alike for all sizes or more for larger ones; fewer effective images in the end."""


def repeated_truth(kind: str, rng: np.random.Generator) -> Callable[[Array, Array, float], Array]:
    """Loss of (n, d, different images U) of one drawn law of a kind."""
    e, a, b = rng.uniform(0.1, 0.6), rng.uniform(0.6, 1.4), rng.uniform(0.6, 1.4)
    alpha, beta = rng.uniform(0.28, 0.45, 2)
    limit, peak = np.exp(rng.uniform(np.log(3), np.log(20))), np.exp(rng.uniform(np.log(8), np.log(30)))
    harm, growth, by_size = (
        np.exp(rng.uniform(np.log(0.002), np.log(0.02))),
        rng.uniform(0.7, 1.5),
        rng.uniform(0.2, 0.5),
    )

    def loss(n: Array, d: Array, u: float) -> Array:
        epochs, size = d / u, n / 1e6
        again = np.maximum(epochs - 1.0, 0.0)
        images = d
        if kind in ("saturating", "size too", "hurting", "larger hurt"):
            images = u * (np.minimum(epochs, 1.0) + limit * (1.0 - np.exp(-again / limit)))
        if kind == "size too":  # parameters beyond those that U images would need count less
            enough = 10.0 * u / 1e5
            size = np.where(size > enough, enough * (1 + 5.3 * (1 - np.exp(-(size / enough - 1) / 5.3))), size)
        if kind == "declining":
            images = u * (np.minimum(epochs, 1.0) + again * np.exp(-again / peak))
        base = e + a * size**-alpha + b * (images / 1e5) ** -beta
        if kind == "hurting":
            base = base + harm * again**growth
        if kind == "larger hurt":
            base = base + harm * again**growth * (n / 1e7) ** by_size
        return np.asarray(base)

    return loss


def repeats(tables: int = 6) -> None:
    """Planted tables in which a run saw about 10 epochs: what a study would answer at 3 and 10 times the compute."""
    print(
        "\n| planted | compute | interval holds | its width | RMSE of log loss | without `unique` | size off by "
        f"| regret | epochs of the answer | twice the images holds | warned |\n{'|---' * 11}|"
    )
    everything: dict[float, list[list[float]]] = {3: [], 10: []}
    for kind in REPEATED:
        found: dict[float, list[list[float]]] = {3: [], 10: []}
        for k in range(tables):
            rng = np.random.default_rng([REPEATED.index(kind), k])
            truth, noise = repeated_truth(kind, rng), float(rng.choice([0.003, 0.01, 0.02]))
            budgets = np.geomspace(1e10, 10 ** rng.uniform(12, 12.7), int(rng.integers(4, 6)))
            sizes = int(rng.integers(4, 7))
            n = np.concatenate([1e6 * np.sqrt(c / 1e11) * np.geomspace(0.2, 5, sizes) for c in budgets])
            d = np.repeat(budgets, sizes) / n
            # About 10 epochs of the run that saw its images most often, or of a middle size with the largest budget.
            unique = float((d.max(), np.median(d[-sizes:]))[k % 2] / rng.uniform(7, 14))
            loss = truth(n, d, unique) * np.exp(noise * rng.standard_normal(n.size))
            law = laws.fit_size_data(n, d, loss, np.full(n.size, unique), bootstrap=100)
            plain = laws.fit_size_data(n, d, loss, bootstrap=1)
            for factor in found:
                target = factor * float(budgets[-1])
                size = law.size(target)
                real, (lo, hi) = float(truth(size, target / size, unique)), law.interval(size, target / size, best=True)
                grid = np.geomspace(1e4, 1e11, 3000)
                at_once, twice = truth(grid, target / grid, unique), truth(grid, target / grid, 2 * unique).min()
                low, high = law.more_images(target)[1]
                found[factor].append([
                    lo <= real <= hi, np.log(hi / lo),
                    np.log(float(law.predict(size, target / size, best=True)) / real) ** 2,
                    np.log(float(plain.predict(size, target / size, best=True)) / real) ** 2,
                    abs(np.log(size / grid[at_once.argmin()])), real / at_once.min() - 1, target / size / unique,
                    low - 1e-6 <= twice / at_once.min() <= high + 1e-6, bool(law.beyond_epochs(target / size)),
                ])  # fmt: skip
        for factor, rows in found.items():
            _repeated_row(kind, factor, rows)
            everything[factor] += rows
    for factor, rows in everything.items():
        _repeated_row("**all**", factor, rows)


def _repeated_row(kind: str, factor: float, rows: list[list[float]]) -> None:
    mean = np.mean(rows, axis=0)
    print(
        f"| {kind} | ×{factor} | {mean[0]:.0%} | {mean[1]:.3f} | {np.sqrt(mean[2]):.4f} | {np.sqrt(mean[3]):.4f} | "
        f"{np.exp(mean[4]):.2f} | {mean[5]:.2%} | {mean[6]:.1f} | {mean[7]:.0%} | {mean[8]:.0%} |",
        flush=True,
    )


def start() -> None:
    """Seconds from nothing to the answer of `isoflop fit`, in a new process: the median of five."""
    tables = Path(laws.__file__).parent / "tables"
    curve = [str(tables / "nfnet_jft4b_digitised.csv"), "--x", "tpu_v4_core_hours", "--y", "value", "--by", "model"]
    ladder = [str(tables / "fractal_grid.csv"), "--x", "flops_per_image", "--x", "images", "--y", "heldout_loss"]
    command = [sys.executable, "-c", "from isoflop.cli import main; main()", "fit"]
    programs = {
        "import isoflop.laws": [sys.executable, "-c", "import isoflop.laws"],
        "isoflop fit --help": [*command, "--help"],
        "isoflop fit, a table that is not there": [*command, "nothing.csv", "--x", "x", "--y", "y"],
        "isoflop fit, six curves of 4 points": [*command, *curve],
        "isoflop fit, two families of 27 runs": [*command, *ladder, "--by", "family", "--budget", "1e13"],
    }
    for name, program in programs.items():
        wall, used = [], []
        for _ in range(5):
            begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(program, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            wall.append(time.perf_counter() - begin)
            used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        said = f"{float(np.median(wall)):.2f} s, of which the processor worked {float(np.median(used)):.2f} s"
        print(f"{name}: {said}, exit {done.returncode}", flush=True)


SECTIONS: dict[str, Callable[[], object]] = {
    "curves": curves,
    "damping": damping,
    "others": others,
    "vit": vit,
    "figure2": figure2,
    "nfnet": nfnet,
    "planted": planted,
    "replay": replay,
    "repeats": repeats,
    "start": start,
}

if __name__ == "__main__":
    for section in sys.argv[1:] or SECTIONS:
        if section not in SECTIONS:
            sys.exit(f"no section `{section}`; there are {', '.join(SECTIONS)}")
        SECTIONS[section]()
