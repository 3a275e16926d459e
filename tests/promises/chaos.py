"""Runs that are killed, stopped and starved: real processes, real signals, random moments."""

import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from isoflop.config import RunConfig, parse
from isoflop.objectives import Supervised, Uniforms
from isoflop.train.preemption import PREEMPTED, asked_to_stop
from isoflop.train.run_directory import read_status

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["isoflop.train", "isoflop.train.sharded", "torch.distributed.fsdp"])
PORTS = itertools.count()


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


class Poisoned(Supervised):
    """Supervised learning in which a share of the samples spoils the loss of its batch: times `factor`, or NaN."""

    share = 0.0
    factor = 1.0

    def forward(self, images: Tensor, labels: Tensor, uniforms: Uniforms) -> Tensor:
        loss = super().forward(images, labels, uniforms)
        return loss * self.factor if bool((uniforms("poison", 1) < self.share).any()) else loss


def poisoned(objective: Supervised, share: float, factor: float) -> Supervised:
    """`objective` with such samples in it."""
    objective.__class__ = Poisoned
    objective.share, objective.factor = share, factor  # type: ignore[attr-defined]
    return objective


def train_in(config: dict[str, Any], directory: str, trunk: str | None, environment: dict[str, str]) -> None:
    """The body of a training process."""
    import torch

    from isoflop.train import loop, train

    os.environ.update(environment)
    torch.set_num_threads(1)
    if "POISON" in environment:
        share, factor = map(float, environment["POISON"].split())
        build = loop.build_objective
        loop.build_objective = lambda config, source: poisoned(build(config, source), share, factor)
    with asked_to_stop() as stop:
        result = train(parse(config, RunConfig), Path(directory), trunk=Path(trunk) if trunk else None, stop=stop)
    sys.exit(PREEMPTED if result.state == "preempted" else 0)


def start(config: RunConfig, directory: Path, trunk: Path | None = None, **environment: str) -> Any:
    """A process that trains `config` in `directory`."""
    arguments = (config.model_dump(mode="json"), str(directory), str(trunk) if trunk else None, environment)
    process = SERVER.Process(target=train_in, args=arguments)
    process.start()
    return process


def free_port() -> int:
    """A port nobody listens on, below those that the system hands out: another process cannot get it meanwhile."""
    while True:
        port = 20_000 + (os.getpid() * 101 + next(PORTS)) % 12_000
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def start_ranks(config: RunConfig, directory: Path, world: int, **environment: str) -> list[Any]:
    """The processes of `world` ranks, as torchrun would start them."""
    if world == 1:
        return [start(config, directory, **environment)]
    common = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    common = {name: str(value) for name, value in common.items()} | environment
    return [start(config, directory, RANK=str(rank), LOCAL_RANK=str(rank), **common) for rank in range(world)]


def join(processes: list[Any], timeout: float = 900) -> list[int]:
    """The exit statuses of `processes` once all have ended."""
    for process in processes:
        process.join(timeout)
        assert process.exitcode is not None, "a process does not end"
    return [process.exitcode for process in processes]


def kill(processes: list[Any]) -> None:
    """SIGKILL for all that live."""
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
    join(processes)


def wait_for(directory: Path, steps: int, timeout: float = 300) -> None:
    """Returns when a checkpoint of at least so many steps is there."""
    from isoflop.train.checkpoints import saved_steps

    deadline = time.monotonic() + timeout
    while not (saved := saved_steps(directory / "checkpoints")) or saved[0] < steps:
        assert time.monotonic() < deadline, f"no checkpoint of {steps} steps in {directory}"
        time.sleep(0.005)


def _nothing() -> None: ...


def warm_up() -> None:
    """Starts the server from which processes fork, so that later times are those of training."""
    process = SERVER.Process(target=_nothing)
    process.start()
    process.join()


def train_whole(
    config: RunConfig, directory: Path, trunk: Path | None = None, world: int = 1, **environment: str
) -> float:
    """Trains without disturbance; returns the seconds it took."""
    began = time.monotonic()
    if world == 1:
        processes = [start(config, directory, trunk, **environment)]
    else:
        processes = start_ranks(config, directory, world, **environment)
    assert set(join(processes)) == {0}
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
