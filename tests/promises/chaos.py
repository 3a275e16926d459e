"""Runs that are killed, stopped and starved: real processes, real signals, random moments.

A moment is a step and a change to the file system that a process has made, never a time.
"""

import contextlib
import itertools
import os
import random
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from isoflop.config import RunConfig, parse
from isoflop.objectives import Supervised, Uniforms
from isoflop.runs.directory import read_status
from isoflop.train.guards import PREEMPTED, asked_to_stop
from tests.processes import SERVER

PORTS = itertools.count()


def run_config(**changes: Any) -> RunConfig:
    """A run of about a second that checkpoints all the time, its last rows between two checkpoints."""
    values: dict[str, Any] = {
        "model": {"name": "vit_w12d2p8", "drop_path": 0.1},
        "steps": 150,
        "batch_size": 24,
        "seed": 3,
        "precision": "float32",
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


EVERY_STEP = {"every_seconds": 1e-6}  # a checkpoint after each step, on a machine of any speed
CHANGES = frozenset({"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"})
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Blow:
    """A signal that a process sends to itself: after so many steps of its own, and then so many changes to files.

    The last of these changes does not happen. Of several ranks, the one of this number is hit.
    """

    steps: int
    files: int = 0
    number: signal.Signals = signal.SIGKILL
    rank: int = 0

    def awaited(self, stop: Callable[[], bool]) -> Callable[[], bool]:
        """What a run may ask at each step in the place of `stop`, for this blow to fall."""
        asked, left = 0, self.files

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event not in CHANGES and not (event == "open" and (arguments[2] or 0) & WRITES):
                return
            if left > 0 and (asked > self.steps or self.steps == 0):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), self.number)

        def count() -> bool:
            nonlocal asked
            if asked == self.steps and self.files == 0:
                os.kill(os.getpid(), self.number)
            asked += 1
            return stop()

        sys.addaudithook(hook)
        return count


def when_asked(times: int) -> Callable[[], bool]:
    """For `stop` of `train`: yes at the time `times` that it is asked, from 1, and at no other."""
    asked = itertools.count(1)
    return lambda: next(asked) == times


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


def train_in(
    config: dict[str, Any], directory: str, trunk: str | None, environment: dict[str, str], blow: Blow | None
) -> None:
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
        asked = blow.awaited(stop) if blow else stop
        result = train(parse(config, RunConfig), Path(directory), trunk=Path(trunk) if trunk else None, stop=asked)
    sys.exit(PREEMPTED if result.state == "preempted" else 0)


def start(
    config: RunConfig, directory: Path, trunk: Path | None = None, blow: Blow | None = None, **environment: str
) -> Any:
    """A process that trains `config` in `directory`."""
    arguments = (config.model_dump(mode="json"), str(directory), str(trunk) if trunk else None, environment, blow)
    process = SERVER.Process(target=train_in, args=arguments)
    process.start()
    return process


def without_figures(directory: Path, *_: Any) -> Path:
    """In the place of `write_study_report`: the figures take most of the time of a tiny study."""
    (directory / "report.html").touch()
    return directory / "report.html"


def auto_in(data: Path, directory: Path, overrides: list[str], blow: Blow) -> None:
    """The body of a process of `isoflop auto`, without a report."""
    import torch

    from isoflop.report import result
    from isoflop.study.auto import auto
    from tests.study.here import Here

    torch.set_num_threads(1)
    result.write_study_report = without_figures
    blow.awaited(lambda: False)
    auto(data, output=directory, overrides=overrides, executor=Here())


def free_port() -> int:
    """A port nobody listens on, below those that the system hands out: another process cannot get it meanwhile."""
    while True:
        port = 20_000 + (os.getpid() * 101 + next(PORTS)) % 12_000
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def start_ranks(
    config: RunConfig, directory: Path, world: int, blow: Blow | None = None, **environment: str
) -> list[Any]:
    """The processes of `world` ranks, as torchrun would start them."""
    if world == 1:
        return [start(config, directory, blow=blow, **environment)]
    common = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    common = {name: str(value) for name, value in common.items()} | environment
    blows = {blow.rank: blow} if blow else {}
    return [
        start(config, directory, blow=blows.get(rank), RANK=str(rank), LOCAL_RANK=str(rank), **common)
        for rank in range(world)
    ]


def join(processes: list[Any]) -> list[int]:
    """The exit statuses of `processes` once all have ended."""
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def kill(processes: list[Any]) -> None:
    """SIGKILL for all that live, or are stopped."""
    for process in processes:
        process.kill()
    join(processes)


def kill_after(config: RunConfig, directory: Path, world: int, blow: Blow, **environment: str) -> None:
    """Starts ranks of which one kills itself; then the others are killed."""
    ranks = start_ranks(config, directory, world, blow, **environment)
    assert join(ranks[blow.rank : blow.rank + 1]) == [-signal.SIGKILL]
    kill(ranks)


def train_whole(
    config: RunConfig, directory: Path, trunk: Path | None = None, world: int = 1, **environment: str
) -> None:
    """Trains without disturbance."""
    if world == 1:
        processes = [start(config, directory, trunk, **environment)]
    else:
        processes = start_ranks(config, directory, world, **environment)
    assert set(join(processes)) == {0}


def train_under_fire(config: RunConfig, directory: Path, kills: int, chance: random.Random) -> int:
    """Starts the run again and again, up to `kills` times or until it is done; each attempt kills itself at a random
    moment of its first steps, a third of them all at most, or before the first.

    The last attempt is left to finish. Returns how many were killed.
    """
    hits = 0
    while hits < kills and not finished(directory):
        steps = chance.choice((0, chance.randint(1, config.steps // 3)))
        (status,) = join([start(config, directory, blow=Blow(steps, files=chance.randint(0, 20)))])
        assert status in (0, -signal.SIGKILL)
        hits += status != 0
    train_whole(config, directory)
    return hits


def finished(directory: Path) -> bool:
    """Whether the run in `directory` has ended by itself."""
    return getattr(read_status(directory), "state", "") in ("done", "diverged")
