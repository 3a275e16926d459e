"""What a run costs alone and in a stack (`src/isoflop/train/stacked.py`): seconds of CPU, everything included.

    python benchmarks/packing.py [PRESET...]

Each run takes STEPS steps of batch 32 at 32 px (fractals), evaluates once and writes its checkpoint; runs of a stack
differ in learning rate. The time of the process is counted, not the clock, so that neighbours on the machine disturb
less; the start of a process, which a worker pays once, is printed beside it.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from isoflop.config import RunConfig, parse
from isoflop.train import train
from isoflop.train.stacked import Stack

STEPS = 100
SIZES = (3, 6, 12)
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
            "batch_size": 32,
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


def alone(runs: list[RunConfig], folder: Path) -> float:
    """CPU seconds a run."""
    began = time.process_time()
    for k, config in enumerate(runs):
        train(config, folder / str(k))
    return (time.process_time() - began) / len(runs)


def together(runs: list[RunConfig], folder: Path) -> float:
    """CPU seconds a run."""
    began = time.process_time()
    stack = Stack(len(runs), range(len(runs)))

    def one(place: int) -> None:
        with stack.seat(place) as seat:
            train(runs[place], folder / str(place), seat=seat)

    with ThreadPoolExecutor(len(runs)) as pool:
        list(pool.map(one, range(len(runs))))
    return (time.process_time() - began) / len(runs)


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
        alone(configs(presets[0], 1), folder / "warm")
        print(f"start of a process: {start_of_a_process():.1f} s of CPU\n")
        print("| preset | alone, ms a step |" + "".join(f" {k} stacked |" for k in SIZES))
        print("|---|---|" + "---|" * len(SIZES))
        for preset in presets:
            cells = []
            before = alone(configs(preset, 2), folder / f"{preset}-a")
            for size in SIZES:
                cells.append(together(configs(preset, size), folder / f"{preset}-{size}"))
            after = alone(configs(preset, 2), folder / f"{preset}-b")
            single = min(before, after)
            row = "".join(f" {single / cell:.2f}× |" for cell in cells)
            print(f"| `{preset}` | {single / STEPS * 1e3:.1f} |{row}", flush=True)


if __name__ == "__main__":
    main()
