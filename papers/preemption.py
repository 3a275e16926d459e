"""What a preempted run loses when its loader begins the epoch again (arXiv 2310.16764 had such runs).

    python papers/preemption.py parquet:PATH --out results/preemption --preemptions 20 --seeds 0 1

Three runs of `preemption.toml` with each seed: one that nothing stops; one that is killed (`kill -9`) so many times, at
equal distances, and resumed by the same command; and what a loader gives that does not keep its place. It shuffles with
the seed of the epoch and begins with the same images after each restart: a run on as many images as one attempt
reaches (`data.images`). Prints a table; finished runs are not trained again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from isoflop.config import load_run
from isoflop.runs.directory import Status, read_status
from isoflop.runs.journal import attempts, read_journal

RUN = Path(__file__).with_name("preemption.toml")
POLL = 0.05  # seconds


def trained(overrides: Sequence[str], directory: Path, kills: Sequence[int] = ()) -> Status:
    """The end of `isoflop train`, killed when it has passed each of the steps `kills`, and started again."""
    command = [sys.executable, "-m", "isoflop", "train", str(RUN), *overrides, "--output", str(directory)]
    for step in kills:
        if _reached(directory) > step:
            continue
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while _reached(directory) <= step and process.poll() is None:
            time.sleep(POLL)
        process.kill()
        process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    status = read_status(directory)
    assert status is not None
    return status


def _reached(directory: Path) -> int:
    journal = read_journal(directory) if directory.exists() else []
    return int(journal[-1]["step"]) if journal else 0


def main(arguments: Sequence[str] | None = None) -> dict[int, dict[str, Status]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="the images, as in data.source")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of preemption.toml")
    parser.add_argument("--out", type=Path, default=Path("preemption"))
    parser.add_argument("--preemptions", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args(arguments)
    found: dict[int, dict[str, Status]] = {}
    print("| seed | run | starts | held-out loss | held-out accuracy |\n|---|---|---|---|---|")
    for seed in args.seeds:
        overrides = [f"data.source={args.source}", f"seed={seed}", *args.overrides]
        run = load_run(RUN, overrides).config
        each = max(1, run.steps // (args.preemptions + 1))
        begins_again = f"data.images={each * run.batch_size}"
        plans = {
            "never stopped": (overrides, []),
            "preempted, exact resume": (overrides, [each * (number + 1) for number in range(args.preemptions)]),
            "preempted, epoch begins again": ([*overrides, begins_again], []),
        }
        found[seed] = {}
        for name, (values, kills) in plans.items():
            directory = args.out / f"{seed}-{name.replace(', ', '-').replace(' ', '_')}"
            status = found[seed][name] = trained(values, directory, kills)
            starts = len(list(attempts(directory)))
            accuracy = f"{100 * status.heldout_accuracy:.1f} %" if status.heldout_accuracy is not None else ""
            print(f"| {seed} | {name} | {starts} | {status.heldout_loss:.4f} | {accuracy} |", flush=True)
    return found


if __name__ == "__main__":
    main()
