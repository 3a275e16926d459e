"""What a grid's learning curves tell halfway: a table for `benchmarks/study.py --give-up`, or how often it misleads.

    python benchmarks/study_curves.py DIR > TABLE
    python benchmarks/study_curves.py --judge TABLE

DIR is the folder of `benchmarks/study_grid.py`. A run that knows its own loss halfway (column `halfway_loss`) is taken
at its word; of older ones it is the mean of the journal's rows over the same steps, with those of the run it branched
off. `--judge` stops the runs of every rung but the first by the curves of the lower rungs alone, as a study would, were
the best loss of the rung known: how many, how many of them in vain because they were the best or within 1 % of it, and
how far the ends that were expected are off.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from study_grid import STUDY

from isoflop import laws
from isoflop.config import StudyConfig, parse
from isoflop.study.hopeless import TIE, beyond
from isoflop.study.planned import Catalogue
from isoflop.train import read_journal
from isoflop.train.halfway import LOOK_BACK, halfway

COLUMNS = ("family", "model", "budget", "learning_rate", "seed", "halfway_loss", "heldout_loss")
Steps = list[tuple[int, int, float]]  # after which step, up to which, their mean loss


def loss_between(steps: Iterable[tuple[int, int, float]], mark: int) -> float | None:
    """The mean loss of the rows that end by `mark` and begin after half of it, to a row of ten steps."""
    rows = [(end - start, loss) for start, end, loss in steps if end <= mark + 5 and start >= LOOK_BACK * mark - 5]
    count = sum(width for width, _ in rows)
    return sum(width * loss for width, loss in rows) / count if count else None


def main(directory: Path) -> None:
    with (directory / "results.csv").open(newline="", encoding="utf-8") as file:
        table = [row for row in csv.DictReader(file) if row["status"] in ("done", "diverged")]
    trunks: dict[tuple[str, ...], Steps] = {}
    writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in sorted(table, key=lambda row: float(row["budget"])):
        trunk = tuple(row[name] for name in ("family", "model", "learning_rate", "seed"))
        journal = read_journal(directory / "runs" / row["run_id"])
        own = [(r["since"], r["step"], r["loss"]) for r in journal if r["kind"] == "train"]
        began = own[0][0] if own else 0
        steps = [found for found in trunks.get(trunk, []) if found[1] <= began] + own
        trunks[trunk] = steps
        known = row.get("halfway_loss") or loss_between(steps, halfway(int(row["steps"])))
        writer.writerow({**row, "halfway_loss": known or ""})


def judge(table: Path) -> None:
    """Prints a row for each rung and probability."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["halfway_loss"] and row["heldout_loss"]]
    runs = [
        (r["family"], float(r["budget"]), float(r["halfway_loss"]), features(r), float(r["heldout_loss"])) for r in rows
    ]
    budgets = sorted({budget for _, budget, *_ in runs})
    print("| rung | runs | give up below | stopped | of the good ones | error of the expected end | said |")
    print("|---|---|---|---|---|---|---|")
    for rung in budgets[1:]:
        for chance in (0.01, 0.02, 0.05):
            stopped = false = good = 0
            errors, said = [], []
            for family in sorted({family for family, *_ in runs}):
                below = [run for run in runs if run[0] == family and run[1] < rung]
                ends = laws.fit_curve_ends(*([run[k] for run in below] for k in (2, 3, 4)))
                here = [run for run in runs if run[0] == family and run[1] == rung]
                best = min(run[4] for run in here)
                for _, _, halfway_loss, its, end in here:
                    mean, deviation = ends.predict(halfway_loss, its)
                    good += end <= best * (1 + TIE)
                    errors.append(math.log(end) - mean[0])
                    doubt = beyond(rung, [run[1] for run in below])
                    said.append(math.hypot(deviation[0], doubt))
                    if ends.probability_below(best * (1 + TIE), halfway_loss, its, doubt)[0] < chance:
                        stopped += 1
                        false += end <= best * (1 + TIE)
            off, sure = np.sqrt(np.mean(np.square(errors))), np.sqrt(np.mean(np.square(said)))
            print(f"| {rung:g} | {len(errors)} | {chance:g} | {stopped} | {false} of {good} | {off:.1%} | {sure:.1%} |")


def features(row: dict[str, str]) -> tuple[float, float, float]:
    """Of a run of the grid, as `isoflop.study.hopeless` takes them: logs of rate, size and images."""
    size = SIZES[row["family"], row["model"]]
    return math.log(float(row["learning_rate"])), math.log(size), math.log(float(row["budget"]) / size)


def sizes() -> dict[tuple[str, str], float]:
    catalogue = Catalogue(parse(STUDY, StudyConfig))
    names = {family: options.sizes for family, options in catalogue.config.families.items()}
    return {(f, m): catalogue.flops_per_image(f, m) for f, models in names.items() for m in models}  # type: ignore[union-attr]


if __name__ == "__main__":
    if sys.argv[1] == "--judge":
        SIZES = sizes()
        judge(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))
