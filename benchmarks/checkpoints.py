"""What checkpoints cost: the same training with and without asynchronous saves, in turns.

    python benchmarks/checkpoints.py [--model vit_s16] [--batch-size 8] [--interval 30] [--pairs 4]

Training goes on in stretches of `--interval` seconds of its thread (30 is `checkpoint.every_seconds` when left out);
every other one begins with a save. Seconds are those of processors, so that a machine that others use gives the same
figures. What a save takes of the step budget is told three ways: what training spends on the copy; what a step takes in
stretches with and without, threads that save included; and what saves take by themselves.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from isoflop.config import RunConfig, parse
from isoflop.data import batches, open_split
from isoflop.train.checkpoints import Progress, pack
from isoflop.train.layout import arrange, built
from isoflop.train.loop import build_objective
from isoflop.train.ranks import Ranks
from isoflop.train.saver import Saver
from isoflop.train.step import Step


def measure(config: RunConfig, folder: Path, interval: float, pairs: int) -> None:
    """Prints a table of the stretches and the three shares."""
    ranks = Ranks(torch.device("cpu"))
    source = open_split(config.data, "train")
    objective = arrange(built(lambda: build_objective(config, source)), config, ranks)
    step, saver = Step(objective, source, config, ranks), Saver(folder, config.checkpoint, ranks)
    feed = batches(source, seed=0, batch_size=config.batch_size, start_step=0, stop_step=1_000_000)
    progress = Progress()

    def save() -> None:
        saver.save(pack(objective, step.optimizer), progress.to_dict())

    def train(seconds: float) -> int:
        end, before = time.thread_time() + seconds, progress.step
        while time.thread_time() < end:
            step(next(feed), 1e-3)
            progress.step += 1
            saver.check()
        return progress.step - before

    objective.train()
    train(5)
    save()
    saver.wait()  # once for the optimizer's state and the page cache
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{config.model.name}, {config.optim.name}: {size / 1e6:,.0f} MB a checkpoint, every {interval:g} s\n")
    print("| stretch | steps | copies, s | waits by the clock, s | a step, ms |\n|---|---|---|---|---|")
    per_step: dict[bool, list[float]] = {True: [], False: []}
    copies: list[float] = []
    for number in range(2 * pairs):
        saves = number % 4 in (1, 2)  # without, with, with, without: a machine that slows down favours neither
        cpu, own, began = time.process_time(), time.thread_time(), time.perf_counter()
        if saves:
            save()
        wait, copy = time.perf_counter() - began, time.thread_time() - own
        steps = train(interval - copy)
        saver.wait()  # what is left of a save belongs to its own stretch
        milliseconds = 1000 * (time.process_time() - cpu) / steps
        per_step[saves].append(milliseconds)
        copies += [copy] * saves
        kind = "with a save" if saves else "without"
        print(f"| {kind} | {steps} | {copy:.2f} | {wait:.2f} | {milliseconds:.1f} |", flush=True)
    alone = [_cpu(lambda: (save(), saver.wait())) for _ in range(pairs)]
    saver.close()
    without, with_saves = (statistics.median(per_step[kind]) for kind in (False, True))
    copy, cost = statistics.median(copies), statistics.median(alone)
    print(f"\ntraining spends {copy:.2f} s on a save: {copy / interval:.2%} of the time")
    print(f"a step with saves: {with_saves / without - 1:+.2%}")
    print(f"saves by themselves: {cost:.2f} s, {cost / interval:.2%} of a core")


def _cpu(action: Callable[[], object]) -> float:
    began = time.process_time()
    action()
    return time.process_time() - began


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_s16")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--interval", type=float, default=30.0)
    parser.add_argument("--pairs", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    values = {
        "model": {"name": arguments.model},
        "data": {"source": "fractals?classes=20&images=2000", "image_size": arguments.image_size, "heldout": 10},
        "batch_size": arguments.batch_size,
        "steps": 1_000_000,
        "threads": 1,
        "precision": "float32",
    }
    with tempfile.TemporaryDirectory() as place:
        measure(parse(values, RunConfig), Path(place), arguments.interval, arguments.pairs)
