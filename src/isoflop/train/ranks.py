"""The processes of a run: rendezvous, and communication between ranks.

torchrun starts them and sets environment variables with their ranks. A run of one process does not use
`torch.distributed`.
"""

from __future__ import annotations

import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from isoflop.errors import ConfigError, IsoflopError

# Where the ranks of an attempt find each other, and nobody who is dead.
#
# torchrun keeps one key-value store for all attempts (so does PyTorch 2.12, unless
# TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1).
# After a restart, a rank may find there the address of a process that was killed, and fail or wait for it. Nothing that
# torchrun tells differs from attempt to attempt on all hosts alike, so the ranks agree on a name of their own.


PATIENCE = 600.0  # seconds
PAUSE = 0.02


def is_shared_between_attempts() -> bool:
    """Whether torchrun gives this process a store that earlier attempts have used."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def own_store(store: Store, rank: int, world: int, patience: float = PATIENCE) -> Store:
    """`store` under a name that the `world` ranks of this attempt have agreed on, and that nobody has used before.

    Each rank shows a token; rank 0 answers it with a name; who finds its own token answered takes the name and says so.
    What is left of an earlier attempt answers other tokens. Raises IsoflopError when a rank does not come.
    """
    agree = _offer if rank == 0 else _accept
    return PrefixStore(f"attempt-{agree(store, rank, world, time.monotonic() + patience)}", store)


def _offer(store: Store, rank: int, world: int, deadline: float) -> str:
    name, seen = uuid.uuid4().hex, dict[int, str]()
    missing = list(range(1, world))
    while True:
        for other in missing:
            token = _read(store, f"token-{other}")
            if token != seen.get(other, ""):  # a later one, where the first was of an earlier attempt
                store.set(f"offer-{other}", f"{token} {name}")
                seen[other] = token
        missing = [other for other in missing if _read(store, f"taken-{other}") != name]
        if not missing:
            return name
        _wait(deadline, f"process {missing[0]} of {world} did not come")


def _accept(store: Store, rank: int, world: int, deadline: float) -> str:
    token = uuid.uuid4().hex
    store.set(f"token-{rank}", token)
    while True:
        seen, _, name = _read(store, f"offer-{rank}").partition(" ")
        if seen == token:
            store.set(f"taken-{rank}", name)
            return name
        _wait(deadline, f"process 0 of {world} did not come")


def _read(store: Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""


def _wait(deadline: float, what: str) -> None:
    if time.monotonic() > deadline:
        raise IsoflopError(f"{what}: not all processes of this attempt have started")
    time.sleep(PAUSE)


T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process is number `rank` of `world`, of which `local_world` are on this host; rank 0 writes for all."""

    device: torch.device
    rank: int = 0
    world: int = 1
    local_world: int = 1
    control: Any = None  # a group on CPUs, for small things beside the collectives of training

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.world == 1

    def sum(self, tensor: Tensor) -> Tensor:
        """`tensor` with the sum over all ranks, bit for bit the same everywhere; in place."""
        if not self.is_alone:
            dist.all_reduce(tensor)
        return tensor

    def from_first(self, value: Any) -> Any:
        """Rank 0's `value`."""
        if self.is_alone:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def first_does(self, action: Callable[[], T]) -> T:
        """What `action` returns on rank 0, which alone does it; an error of ours is raised on all."""
        value: T | None = None
        failure: IsoflopError | None = None
        if self.is_first:
            try:
                value = action()
            except IsoflopError as error:
                failure = error
        value, failure = self.from_first((value, failure))
        if failure:
            raise failure
        return cast(T, value)

    def gather(self, value: Any) -> list[Any]:
        """Everybody's `value`, by rank."""
        if self.is_alone:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.control)
        return values


LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets in the environment of each process"""


def launched_world() -> int:
    """The number of processes that were started together: WORLD_SIZE, or 1 where the rest of `LAUNCHED` is missing.

    Images of containers and batch systems leave WORLD_SIZE in the environment of processes that are alone.
    """
    return 1 if _missing() and not dist.is_initialized() else _number("WORLD_SIZE", 1)


def _missing() -> list[str]:
    return [name for name in LAUNCHED if not os.environ.get(name)]


def is_first_process() -> bool:
    """Whether this process speaks for all that were started together."""
    return launched_world() == 1 or _number("RANK", 0) == 0


def _number(name: str, default: int) -> int:
    """A whole number from the environment; ConfigError where it is something else."""
    text = os.environ.get(name, "")
    try:
        return int(text) if text else default
    except ValueError:
        raise ConfigError(f"the environment variable {name} is {text!r}, not a whole number") from None


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """This process among those that torchrun started, or alone. On GPUs, each process takes the one of its number.

    Raises ConfigError when there are fewer GPUs than processes.
    """
    world = launched_world()
    if world == 1 and _number("WORLD_SIZE", 1) > 1:
        warnings.warn(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {' and '.join(_missing())} not set: torchrun did not start "
            "this process, and it trains alone",
            stacklevel=1,
        )
    if world == 1:
        yield Ranks(device)
        return
    local = _number("LOCAL_RANK", _number("RANK", 0))
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise ConfigError(f"process {local} of this host has no GPU: it has {torch.cuda.device_count()}")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    is_ours = not dist.is_initialized()
    if is_ours:
        _meet("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(device, dist.get_rank(), world, _number("LOCAL_WORLD_SIZE", world), dist.new_group(backend="gloo"))
    finally:
        if is_ours:
            dist.destroy_process_group()


def _meet(backend: str) -> None:
    """Starts the group of all ranks, as torchrun's environment says."""
    if not is_shared_between_attempts():
        dist.init_process_group(backend)
        return
    store, rank, world = next(rendezvous("env://"))
    dist.init_process_group(backend, store=own_store(store, rank, world), rank=rank, world_size=world)


def check_parts(batch_size: int, ranks: Ranks) -> None:
    """Raises ConfigError when there are more ranks than images in a batch."""
    if batch_size < ranks.world:
        raise ConfigError(f"batch_size = {batch_size} is too small for {ranks.world} processes: each needs an image")
