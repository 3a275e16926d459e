"""Runs that are killed: real processes, real SIGKILLs, random moments."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from isoflop.config import RunConfig, parse
from isoflop.train.run_directory import read_status

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["isoflop.train"])


def run_config(**changes: Any) -> RunConfig:
    """A run of about a second that checkpoints all the time, its last rows between two checkpoints."""
    values: dict[str, Any] = {
        "model": {"name": "vit_w12d2p8", "drop_path": 0.1},
        "steps": 150,
        "batch_size": 24,
        "seed": 3,
        "threads": 1,
        "log_every": 7,
        "tensorboard": False,
        "data": {"source": "fractals?classes=20&images=1000", "heldout": 64},
        "optim": {"learning_rate": 0.01, "label_smoothing": 0.1},
        "schedule": {"warmup": 5, "cooldown": 0.3},
        "evaluation": {"every": 40},
        "checkpoint": {"every_seconds": 0.02},
    }
    return parse({**values, **changes}, RunConfig)


def train_in(config: dict[str, Any], directory: str, trunk: str | None) -> None:
    """The body of a training process."""
    import torch

    from isoflop.train import train

    torch.set_num_threads(1)
    train(parse(config, RunConfig), Path(directory), trunk=Path(trunk) if trunk else None)


def start(config: RunConfig, directory: Path, trunk: Path | None = None) -> Any:
    """A process that trains `config` in `directory`."""
    arguments = (config.model_dump(mode="json"), str(directory), str(trunk) if trunk else None)
    process = SERVER.Process(target=train_in, args=arguments)
    process.start()
    return process


def _nothing() -> None: ...


def warm_up() -> None:
    """Starts the server from which processes fork, so that later times are those of training."""
    process = SERVER.Process(target=_nothing)
    process.start()
    process.join()


def train_whole(config: RunConfig, directory: Path, trunk: Path | None = None) -> float:
    """Trains without disturbance; returns the seconds it took."""
    began = time.monotonic()
    process = start(config, directory, trunk)
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - began


def train_under_fire(config: RunConfig, directory: Path, kills: int, seconds: float, chance: random.Random) -> int:
    """Starts the run and kills it at a random moment within `seconds`, up to `kills` times or until it is done.

    The last attempt is left to finish. Returns how many kills hit a live run.
    """
    hits = 0
    while hits < kills and not finished(directory):
        process = start(config, directory)
        process.join(timeout=chance.uniform(0.0, seconds))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            hits += 1
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
    train_whole(config, directory)
    return hits


def finished(directory: Path) -> bool:
    """Whether the run in `directory` has ended by itself."""
    return read_status(directory).get("state") in ("done", "diverged")
