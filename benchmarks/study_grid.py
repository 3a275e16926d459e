"""The ground truth of `benchmarks/study.py`: every size × budget × learning rate × seed of three families on fractals.

    python benchmarks/study_grid.py DIR [WORKERS]

Takes an hour or two on two cores; stopped and started again it goes on. Writes DIR/results.csv, of which
`benchmarks/study_grid.csv` is a copy: finished runs, and the columns that `benchmarks/study.py` reads.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from isoflop.config import StudyConfig, parse
from isoflop.study.executors import LocalPool, RunTask
from isoflop.study.planned import Catalogue, PlannedRun
from isoflop.study.store import Store

BUDGETS = (2e8, 5e8, 1.2e9, 2.9e9, 7e9)  # 1.54 decades
SEEDS = (0, 1, 2)
MIN_STEPS = 9

STUDY = {
    "study": {"name": "grid", "budgets": BUDGETS, "target_budget": 2.8e10},
    "batch_size": 32,
    "tensorboard": False,
    "data": {"source": "fractals?classes=1000&zipf=1.5&turn=0.1&zoom=0.7", "image_size": 32, "heldout": 2048},
    "optim": {"name": "adamw", "weight_decay": 1e-4},
    "schedule": {"name": "constant", "warmup": 50, "cooldown": 0.2},
    "families": {
        "vit": {
            "sizes": ("vit_w4d1p8", "vit_w8d1p8", "vit_w8d2p8", "vit_w12d2p8"),
            "learning_rates": (1e-2, 2e-2, 4e-2, 8e-2),
        },
        "poolformer": {
            "sizes": ("poolformer_w4d1p8", "poolformer_w4d2p8", "poolformer_w6d2p8", "poolformer_w8d2p8"),
            "learning_rates": (1e-2, 2e-2, 4e-2, 8e-2),
        },
        "nfnet": {
            "sizes": ("nfnet_w4d1", "nfnet_w6d1", "nfnet_w8d1", "nfnet_w8d2"),
            "learning_rates": (0.375, 0.75, 1.5, 3.0),
            "optim": {"name": "sgd", "momentum": 0.9, "agc": 0.01, "weight_decay": 2e-5},
        },
    },
}


def grid(config: StudyConfig, catalogue: Catalogue) -> list[list[PlannedRun]]:
    """The runs of each budget, small to large, so that the longer ones start from the shorter ones' steps."""
    rungs = []
    for budget in BUDGETS:
        runs = [
            catalogue.run(family, model, budget, rate)
            for family, options in config.families.items()
            for model in options.sizes
            if catalogue.steps(family, model, budget) >= MIN_STEPS
            for rate in options.learning_rates
        ]
        rungs.append([with_seed(run, seed) for seed in SEEDS for run in runs])
    return rungs


def with_seed(run: PlannedRun, seed: int) -> PlannedRun:
    return PlannedRun(**{**vars(run), "config": run.config.model_copy(update={"seed": seed})})


def main(directory: Path, workers: int) -> None:
    config = parse(STUDY, StudyConfig)
    catalogue = Catalogue(config)
    store = Store(directory)
    store.claim(config)
    rungs = grid(config, catalogue)
    began, known = time.time(), [run for rung in rungs for run in rung]
    with LocalPool(workers) as pool:
        for rung in rungs:
            todo = [run for run in rung if store.row(run, None)["status"] not in ("done", "diverged")]
            tasks = [RunTask(run, store.run_directory(run.run_id), store.trunk_directory(run)) for run in todo]
            for event in pool.run(tasks) if tasks else ():
                if event.kind == "ended" and event.state not in ("done", "diverged"):
                    raise SystemExit(f"{event.run_id}: {event.state}: {event.error}")
            store.write_rows(store.row(run, None) for run in known)
            print(f"{time.time() - began:.0f} s: the rung of {rung[0].budget:g} FLOPs is done", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2)
