"""A study that nobody ran: losses from planted laws, with noise, failures, learning rates and curves."""

import copy
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from isoflop.laws import fit_frontier, fit_learning_rate, fit_size_data, frontier_points

# family: (E, A, B, alpha, beta)
PLANTED = {
    "vit": (0.30, 1.2e3, 60.0, 0.50, 0.38),
    "poolformer": (0.22, 4.0e3, 40.0, 0.58, 0.37),
    "nfnet": (0.35, 2.6e3, 70.0, 0.55, 0.40),
}
BUDGETS = (1e10, 3e10, 1e11, 3e11, 1e12)
TARGET = 6e12


@dataclass
class Study:
    """What `write_report` takes."""

    rows: list[dict[str, Any]]
    answer: dict[str, Any]
    curves: dict[str, dict[str, Any]]


def loss_of(family: str, n: float, d: float) -> float:
    e, a, b, alpha, beta = PLANTED[family]
    return e + a * n**-alpha + b * d**-beta


def plant(sizes: int = 6, rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2), seed: int = 0, points: int = 120) -> Study:
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    curves: dict[str, dict[str, Any]] = {}
    for family in PLANTED:
        for width, n in enumerate(np.geomspace(3e5, 3e7, sizes)):
            for budget in BUDGETS:
                images = budget / n
                if not 2e3 < images < 3e6:
                    continue
                for rate in rates:
                    off = np.log(rate / (2e-2 * (n / 3e5) ** -0.25))
                    loss = loss_of(family, n, images) * np.exp(0.03 * off**2 + rng.normal(0, 0.008))
                    run = f"{family[:1]}{len(rows):04x}f00d"
                    rows.append(_row(run, family, f"{family}_w{4 * (width + 1)}", n, images, budget, rate, loss))
                    curves[run] = _curve(family, n, images, loss, rng, points)
    bad = rows[7]
    bad.update(status="diverged", heldout_loss=None, heldout_accuracy=None, error="loss was not finite at step 120")
    rows[11].update(
        status="failed", heldout_loss=None, heldout_accuracy=None, error="worker process 3 was killed (signal 9)"
    )
    answer = _answer(rows)
    best = answer["families"][answer["best"]]
    measured = loss_of(answer["best"], best["flops_per_image"], best["images"]) * 1.01
    final = _row(
        "fina1f00d", answer["best"], best["model"], best["flops_per_image"], best["images"], TARGET, 1.1e-2, measured
    )
    final["role"] = "final"
    rows.append(final)
    curves["fina1f00d"] = _curve(answer["best"], best["flops_per_image"], best["images"], measured, rng, points)
    low, high = best["interval"]
    answer["final"] = {
        "run_id": "fina1f00d",
        "measured_loss": measured,
        "measured_accuracy": 0.8,
        "inside_interval": low <= measured <= high,
    }
    return Study(rows, answer, curves)


def _row(
    run: str, family: str, model: str, n: float, images: float, budget: float, rate: float, loss: float
) -> dict[str, Any]:
    return {
        "run_id": run, "family": family, "model": model, "status": "done", "role": "ladder",
        "flops_per_image": float(n), "images": int(images), "unique_images": None,
        "train_flops": float(n * int(images)),
        "budget": budget, "learning_rate": rate, "seed": 0, "batch_size": 64, "steps": int(images // 64),
        "heldout_loss": float(loss), "heldout_accuracy": float(np.exp(-0.5 * loss)),
        "seconds": float(budget / 1e10 * 1.3), "parameters": int(n / 40), "error": "",
    }  # fmt: skip


def _curve(family: str, n: float, images: float, last: float, rng: np.random.Generator, points: int) -> dict[str, Any]:
    seen = np.linspace(64, images, points)
    loss = np.array([loss_of(family, n, d) for d in seen])
    loss = np.minimum(loss * last / loss[-1], 6.9) * np.exp(rng.normal(0, 0.04, points))
    held = [None] * points
    held[-1] = last
    return {
        "step": (seen // 64).astype(int).tolist(),
        "images": seen.astype(int).tolist(),
        "train_loss": loss.tolist(),
        "heldout_loss": held,
    }


def _answer(rows: list[dict[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for family in PLANTED:
        best: dict[Any, dict[str, Any]] = {}
        for row in rows:
            if row["family"] == family and row["status"] == "done":
                key = (row["model"], row["budget"])
                if key not in best or row["heldout_loss"] < best[key]["heldout_loss"]:
                    best[key] = row
        n, d, loss = (np.array([r[c] for r in best.values()]) for c in ("flops_per_image", "images", "heldout_loss"))
        law = fit_size_data(n, d, loss, bootstrap=40)
        points = frontier_points(n, d, loss)
        frontier = fit_frontier(points.compute, points.loss, bootstrap=40)
        size, images, predicted = law.optimal(TARGET)
        tried = [row for row in rows if row["family"] == family and row["status"] == "done"]
        columns = ([row[c] for row in tried] for c in ("flops_per_image", "learning_rate", "heldout_loss", "images"))
        rates = fit_learning_rate(*columns)
        entries[family] = {
            "model": f"{family}_w20", "flops_per_image": size, "images": int(images), "steps": int(images // 64),
            "learning_rate": 1.1e-2, "predicted_loss": predicted,
            "interval": list(law.optimal_interval(TARGET)["loss"]), "level": 0.9,
            "p_best": {"vit": 0.06, "poolformer": 0.93, "nfnet": 0.01}[family],
            "law": law.to_dict(),
            "frontier": frontier.to_dict(), "learning_rate_law": rates.to_dict(), "warnings": [],
        }  # fmt: skip
    entries["nfnet"]["warnings"] = ["at 2 of 5 budgets the best size is the smallest one tried"]
    best_family = min(entries, key=lambda f: entries[f]["predicted_loss"])
    return {
        "target_flops": TARGET,
        "families": entries,
        "best": best_family,
        "transfer": {
            "rows": [
                {"name": name, "protocol": protocol, "dataset": "digits", "shots": 10, "accuracy_mean": mean,
                 "accuracy_std": 0.012, "seeds": 3}
                for name, protocol, mean in [
                    ("the answer", "ridge", 0.871), ("random weights", "ridge", 0.748),
                    ("the answer", "fine-tune", 0.892), ("random weights", "fine-tune", 0.702),
                ]
            ]
        },
        "study": {
            "name": "fractals in four minutes", "command": "isoflop study run examples/demo.toml",
            "config": {"data": {"source": "fractals?classes=1000&zipf=1.5"}, "budgets": list(BUDGETS), "batch": 64},
            "created": "2026-11-21T22:45:00+00:00", "machine": "2 cores, no GPU", "seconds": 221.0, "version": "0.1.0",
        },
    }  # fmt: skip


@pytest.fixture(scope="session")
def planted() -> Study:
    return plant()


@pytest.fixture(scope="session")
def plant_study() -> Any:
    return plant


HOSTILE = [
    "</script><script>document.title='owned'</script>",
    "<!--<script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "\"><svg onload=document.title='owned'>",
    "javascript:document.title='owned'",
    "<a href='javascript:document.title=1'>x</a>",
    "%{customdata} %{x}<extra>owned</extra>",
    "@family0",
    "\u2028document.title='owned'\u2029",
    '=HYPERLINK("http://203.0.113.1")',
    "${document.title='owned'} {{7*7}} ' ' \x00 \x1b[31m",
    "../../etc/passwd",
    "<base href=http://203.0.113.1/>",
    "<style>*{display:none}</style>",
    "<meta http-equiv=refresh content='0;url=http://203.0.113.1'>",
]


@pytest.fixture
def hostile(planted: Any) -> Any:
    """The planted study with hostile text in every cell that is text."""
    study = copy.deepcopy(planted)
    bad = iter(HOSTILE * 1000)
    names = {family: next(bad) + family for family in study.answer["families"]}
    for row in study.rows:
        run = row["run_id"]
        row.update(run_id=next(bad) + run, family=names[row["family"]], model=next(bad), error=next(bad))
        study.curves[row["run_id"]] = study.curves.pop(run)
    study.rows[3].update(status=HOSTILE[0], role=HOSTILE[2])
    study.answer["families"] = {names[family]: entry for family, entry in study.answer["families"].items()}
    study.answer["best"] = names[study.answer["best"]]
    for entry in study.answer["families"].values():
        entry.update(model=next(bad), warnings=HOSTILE)
    study.answer["study"] = {"name": HOSTILE[0], "command": HOSTILE[1], "config": {HOSTILE[2]: {HOSTILE[3]: HOSTILE}},
                             "machine": {HOSTILE[5]: HOSTILE[0]}, "version": HOSTILE[0]}  # fmt: skip
    study.answer["transfer"]["rows"][0].update(name=HOSTILE[0], protocol=HOSTILE[2], dataset=HOSTILE[3])
    return study


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless Chromium of this machine, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as engine:
        # Chromium refuses to start its sandbox as root, as in most containers.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = engine.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()
