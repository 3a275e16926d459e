"""What a run costs alone and in a stack (`src/isoflop/train/stacked.py`): seconds of CPU, everything included.

    python benchmarks/packing.py [PRESET...]

Whole steps of `train` are counted, data, optimizer, clipping and journal included, at batch 32 and 32 px on fractals;
runs of a stack differ in learning rate. The time of the process is counted, not the clock, so that neighbours on the
machine disturb less; the start of a process, which a worker pays once, is printed beside it.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from isoflop.config import RunConfig, SupervisedConfig, parse
from isoflop.objectives import objective_cost
from isoflop.train import train
from isoflop.train.stacked import Stack

STEPS, EVERY, BATCH = 60, 10, 32
SIZES = (3, 8)
PRESETS = (
    *("vit_w4d1p8", "vit_w8d2p8", "vit_w16d2p8", "vit_w24d2p8", "vit_w32d4p8"),
    *("poolformer_w4d1p8", "poolformer_w12d2p8", "poolformer_w8d2p4", "poolformer_w16d4p4"),
    *("nfnet_w4d1", "nfnet_w8d2", "nfnet_w16d2", "nfnet_w24d2", "nfnet_w32d2"),
)


def configs(preset: str, count: int) -> list[RunConfig]:
    optim = {"learning_rate": 1e-3} | ({"name": "sgd", "agc": 0.01} if preset.startswith("nfnet") else {})
    run = parse(
        {
            "model": {"name": preset},
            "steps": STEPS,
            "batch_size": BATCH,
            "log_every": EVERY,
            "threads": 1,
            "tensorboard": False,
            "data": {"source": "fractals?classes=1000&zipf=1.5", "heldout": 32},
            "optim": optim,
            "schedule": {"warmup": 5, "cooldown": 0.2},
        },
        RunConfig,
    )
    rates = [run.optim.model_copy(update={"learning_rate": 1e-3 * 1.1**k}) for k in range(count)]
    return [run.model_copy(update={"optim": optim}) for optim in rates]


class Timer:
    """Notes the CPU time of the process at two rows of the journal, well after the start and before the end."""

    def __init__(self) -> None:
        self.at: dict[int, float] = {}

    def __call__(self, row: dict[str, Any]) -> None:
        self.at[row["step"]] = time.process_time()

    @property
    def seconds_a_step(self) -> float:
        return (self.at[STEPS - EVERY] - self.at[EVERY]) / (STEPS - 2 * EVERY)


def alone(config: RunConfig, folder: Path) -> float:
    """CPU seconds a step."""
    timer = Timer()
    train(config, folder, on_row=timer)
    return timer.seconds_a_step


def together(runs: list[RunConfig], folder: Path) -> float:
    """CPU seconds a step of each run."""
    stack = Stack(len(runs), range(len(runs)))
    timers = [Timer() for _ in runs]

    def one(place: int) -> None:
        with stack.seat(place) as seat:
            train(runs[place], folder / str(place), seat=seat, on_row=timers[place])

    with ThreadPoolExecutor(len(runs)) as pool:
        list(pool.map(one, range(len(runs))))
    return sum(timer.seconds_a_step for timer in timers) / len(runs) ** 2


def start_of_a_process() -> float:
    """CPU seconds until a worker could train."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "import isoflop.train"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    presets = sys.argv[1:] or PRESETS
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        print(f"start of a process: {start_of_a_process():.1f} s of CPU\n")
        print("| preset | FLOPs a step | alone, ms a step |" + "".join(f" {k} stacked |" for k in SIZES))
        print("|---|---|---|" + "---|" * len(SIZES))
        for preset in presets:
            before = alone(configs(preset, 1)[0], folder / f"{preset}-a")
            stacks = [together(configs(preset, size), folder / f"{preset}-{size}") for size in SIZES]
            single = min(before, alone(configs(preset, 1)[0], folder / f"{preset}-b"))
            flops = objective_cost(SupervisedConfig(), preset, image_size=32).train_flops_per_image * BATCH
            row = "".join(f" {single / each:.2f}× |" for each in stacks)
            print(f"| `{preset}` | {flops:.1e} | {single * 1e3:.1f} |{row}", flush=True)


if __name__ == "__main__":
    main()
