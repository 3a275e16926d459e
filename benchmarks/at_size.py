"""What large inputs cost: processor seconds and memory of the commands that only read.

    python benchmarks/at_size.py [--folder FOLDER] [--only WORD] [--rows 2000000]

Each row is one command in a process of its own, imports included. Inputs are planted and made first: a study of 5,000
runs, a run whose journal has two million rows, tables of 30,000 and of a million rows.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from isoflop.laws import fit_frontier, fit_learning_rate, fit_size_data, frontier_points
from isoflop.runs.journal import ROWS_PER_FILE, encode_row
from isoflop.runs.results import COLUMNS, publish, write_results

FAMILIES = {"vit": (0.30, 1.2e3, 60.0, 0.50, 0.38), "poolformer": (0.22, 4e3, 40.0, 0.58, 0.37),
            "nfnet": (0.35, 2.6e3, 70.0, 0.55, 0.40)}  # fmt: skip
BUDGETS = np.geomspace(1e10, 1e12, 8)
RATES = np.geomspace(1e-3, 1e-1, 10)
SIZES, RUNS, POINTS = 21, 5_000, 100
Row = dict[str, object]


def loss_of(family: str, n: float, d: float, rate: float = 1e-2) -> float:
    e, a, b, alpha, beta = FAMILIES[family]
    return (e + a * n**-alpha + b * d**-beta) * math.exp(0.03 * math.log(rate / 1e-2) ** 2)


def journal(folder: Path, rows: int, images: float, loss: Callable[[float], float], rng: np.random.Generator) -> None:
    """A run of one attempt with `rows` rows of training; ten of them beside an evaluation."""
    (folder / "attempts" / "1").mkdir(parents=True)
    noise = np.exp(rng.normal(0, 0.04, rows))
    lines = [encode_row({"kind": "start", "step": 0, "origin": "new"})]
    for k in range(rows):
        seen = max(1, round(images * (k + 1) / rows))
        row: Row = {"kind": "train", "step": k + 1, "since": k, "images": seen, "loss": loss(seen) * noise[k]}
        row |= {"lr": 1e-2, "grad_norm": 0.5, "seconds": 0.1 * k, "samples": "0123456789abcdef0123456789abcdef"}
        if (k + 1) % max(1, rows // 10) == 0:
            row["heldout_loss"] = loss(seen)
        lines.append(encode_row(row))
        if len(lines) == ROWS_PER_FILE or k + 1 == rows:
            number = 1 + k // ROWS_PER_FILE
            (folder / "attempts" / "1" / f"metrics-{number:04d}.jsonl").write_bytes(b"".join(lines))
            lines = []


def study(folder: Path, runs: int, points: int) -> None:
    """A study's folder as `isoflop study run` leaves it: `runs` finished runs, each with a journal of `points` rows."""
    folder.mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    (folder / "study.json").write_text(json.dumps({"study": "0" * 16, "name": "at size", "config": {}}))
    for place in range(runs):
        family = list(FAMILIES)[place % 3]
        rate, cell = divmod(place // 3, SIZES * len(BUDGETS))
        width, rung = divmod(cell, len(BUDGETS))
        n, budget = 3e5 * 1.25**width, BUDGETS[rung]
        loss = loss_of(family, n, budget / n, RATES[rate]) * math.exp(rng.normal(0, 0.005))
        row: Row = dict.fromkeys(COLUMNS)
        row |= {
            "run_id": f"{place:016x}", "family": family, "model": f"{family}_w{4 * (width + 1)}", "status": "done",
            "role": "ladder", "flops_per_image": n, "images": int(budget / n),
            "train_flops": float(n * int(budget / n)), "budget": budget, "learning_rate": RATES[rate], "seed": 0,
            "batch_size": 64, "heldout_loss": loss,
            "steps": int(budget / n / 64), "heldout_accuracy": math.exp(-0.5 * loss), "target": loss,
            "seconds": budget / 1e10, "parameters": int(n / 40), "error": "", "trunk_steps": 0,
        }  # fmt: skip
        rows.append(row)
        curve = lambda seen, n=n, family=family: loss_of(family, n, seen)  # noqa: E731
        journal(folder / "runs" / f"{place:016x}", points, budget / n, curve, rng)
    write_results(folder, rows)
    publish(folder, "answer.json", json.dumps(answer(rows)))


def answer(rows: list[Row]) -> Row:
    entries = {}
    for family in FAMILIES:
        best: dict[object, Row] = {}
        own = [row for row in rows if row["family"] == family]
        for row in own:
            key = (row["model"], row["budget"])
            best[key] = min(best.get(key, row), row, key=lambda row: row["heldout_loss"])
        n, d, loss = (np.array([r[c] for r in best.values()]) for c in ("flops_per_image", "images", "heldout_loss"))
        law, points = fit_size_data(n, d, loss, bootstrap=40), frontier_points(n, d, loss)
        rates = fit_learning_rate(
            *([r[c] for r in own] for c in ("flops_per_image", "learning_rate", "heldout_loss", "images"))
        )
        size, images, predicted = law.optimal(6e12)
        entries[family] = {
            "model": f"{family}_w40", "flops_per_image": size, "images": int(images), "steps": int(images // 64),
            "learning_rate": 1e-2, "predicted_loss": predicted, "level": 0.9, "p_best": 1 / 3,
            "interval": list(law.optimal_interval(6e12)["loss"]), "law": law.to_dict(), "warnings": [],
            "frontier": fit_frontier(points.compute, points.loss, bootstrap=40).to_dict(),
            "learning_rate_law": rates.to_dict(),
        }  # fmt: skip
    best_family = min(entries, key=lambda name: entries[name]["predicted_loss"])
    return {"target_flops": 6e12, "families": entries, "best": best_family, "study": {"name": "at size"}}


def table(path: Path, rows: int) -> None:
    """A table of `rows` runs of one family, at ten budgets, no two alike."""
    rng = np.random.default_rng(0)
    n = np.exp(rng.uniform(np.log(3e5), np.log(3e7), rows))
    d = np.geomspace(1e11, 1e14, 10)[rng.integers(10, size=rows)] / n
    e, a, b, alpha, beta = FAMILIES["vit"]
    loss = (e + a * n**-alpha + b * d**-beta) * np.exp(rng.normal(0, 0.01, rows))
    with path.open("w") as file:
        file.write("n,images,compute,loss\n")
        file.writelines(f"{x:.8g},{z:.8g},{x * z:.8g},{y:.8g}\n" for x, z, y in zip(n, d, loss, strict=True))


# The most memory of a process counts from that of its parent, so a small process starts it.
MEASURE = """
import os, sys
log, *command = sys.argv[1:]
file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
child = os.posix_spawn(command[0], command, os.environ,
                       file_actions=[(os.POSIX_SPAWN_DUP2, file, 1), (os.POSIX_SPAWN_DUP2, file, 2)])
_, status, used = os.wait4(child, 0)
print(status, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
"""


def cost(arguments: list[str], log: Path) -> tuple[float, float]:
    """Processor seconds and the most memory (MiB) of `isoflop` with these arguments."""
    command = [sys.executable, "-S", "-c", MEASURE, str(log), sys.executable, "-m", "isoflop", *arguments]
    status, seconds, memory = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    if int(status):
        sys.exit(f"isoflop {' '.join(arguments)}: {log.read_text()}")
    return float(seconds), float(memory)


def commands(folder: Path, rows: int) -> Iterator[tuple[Path, Callable[[], None], list[list[str]], str]]:
    """What is read, how it is made, the commands that read it, and what they may cost."""
    many, long, small, large = folder / "study", folder / "long", folder / "30000.csv", folder / "1000000.csv"
    page = ["--output", str(folder / "report.html")]
    yield many, lambda: study(many, RUNS, POINTS), [["study", "status", str(many)]], "1 s, 200 MB"
    yield many, lambda: None, [["report", str(many), *page]], "5 s, 500 MB"
    yield many, lambda: None, [["report", str(many), str(many), *page]], "5 s, 500 MB"

    def one_long_run() -> None:
        study(long, 504, POINTS)
        run = long / "runs" / f"{0:016x}"
        (run / "attempts" / "1" / "metrics-0001.jsonl").unlink()
        (run / "attempts" / "1").rmdir()
        journal(run, rows, 1e9, lambda seen: loss_of("vit", 3e7, seen), np.random.default_rng(1))

    yield long, one_long_run, [["report", str(long), *page]], "10 s, 500 MB"
    two = ["--x", "n", "--x", "images", "--y", "loss", "--budget", "1e15"]
    one = ["--x", "compute", "--y", "loss", "--budget", "1e15"]
    for path, count, bar in ((small, 30_000, "2 s, 300 MB"), (large, 1_000_000, "30 s, 2 GB")):
        make = lambda path=path, count=count: table(path, count)  # noqa: E731
        yield path, make, [["fit", str(path), *two], ["fit", str(path), *one]], bar


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where inputs are kept for the next time")
    parser.add_argument("--only", default="", help="commands that contain this")
    parser.add_argument("--rows", type=int, default=2_000_000, help="of the long journal")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="at-size-"))
    folder.mkdir(parents=True, exist_ok=True)
    print("| command | CPU s | MB | at most |\n|---|---|---|---|", flush=True)
    for made, make, lines, bar in commands(folder, options.rows):
        if not made.exists():
            make()
        for line in lines:
            shown = " ".join(line).replace(f"{folder}/", "")
            if options.only in shown:
                seconds, memory = cost(line, folder / "log.txt")
                print(f"| `isoflop {shown}` | {seconds:.2f} | {memory:.0f} | {bar} |", flush=True)
