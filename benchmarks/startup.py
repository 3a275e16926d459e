"""Host memory and processor time that one process of many takes to start: the model built, initialised and sharded.

    python benchmarks/startup.py MODEL [--worlds 1 2 8 64] [--sharding full]

Each row is a fresh process, rank 1 of a group whose other members are imagined, since nothing is exchanged before the
first step. `1` builds the whole. Memory is what the process has written to (RssAnon) above that of the imports, seen
every few milliseconds.
"""

import argparse
import subprocess
import sys
import threading
import time
from pathlib import Path

CLASSES, IMAGE_SIZE = 1000, 224


def resident() -> int:
    """Memory of this process that no file stands behind, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class Peak:
    """The most that `resident` has told since."""

    def __init__(self) -> None:
        self.value, self._ended = resident(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.003):
            self.value = max(self.value, resident())

    def close(self) -> int:
        self._ended.set()
        self._thread.join()
        return self.value


def measure(model: str, world: int, sharding: str) -> None:
    """Starts as one of `world` processes and prints the row."""
    import torch
    import torch.distributed as dist
    import torch.distributed.fsdp
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from isoflop.config import RunConfig, parse
    from isoflop.models import create_model
    from isoflop.objectives import Supervised
    from isoflop.train.layout import build_and_arrange
    from isoflop.train.ranks import Ranks

    torch.set_num_threads(1)
    config = parse({"model": {"name": model}, "steps": 1, "parallel": {"sharding": sharding}}, RunConfig)
    ranks = Ranks(torch.device("cpu"))
    if world > 1:
        dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=world)
        ranks = Ranks(torch.device("cpu"), rank=1, world=world, local_world=min(world, 8))

    def build() -> Supervised:
        return Supervised(create_model(model, num_classes=CLASSES, image_size=IMAGE_SIZE, seed=0))

    with torch.device("meta"):
        weights = sum(4 * p.numel() for p in build().parameters())
    before, began, watch = resident(), time.process_time(), Peak()
    objective = build_and_arrange(build, config, ranks)
    seconds, peak, kept = time.process_time() - began, watch.close() - before, resident() - before
    assert objective is not None
    mebibytes = " | ".join(f"{size / 2**20:,.0f}" for size in (weights, peak, kept))
    print(f"| {model} | {world} | {mebibytes} | {seconds:.1f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 8, 64])
    parser.add_argument("--sharding", default="full")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure(arguments.model, arguments.worlds[0], arguments.sharding)
        sys.exit()
    print(
        "| model | processes | weights, MiB | peak, MiB | kept, MiB | seconds |\n|---|---|---|---|---|---|", flush=True
    )
    for number in arguments.worlds:
        options = ["--worlds", str(number), "--sharding", arguments.sharding, "--one"]
        subprocess.run([sys.executable, __file__, arguments.model, *options], check=True)
