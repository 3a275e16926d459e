"""Where the ranks of an attempt find each other, and nobody who is dead.

torchrun keeps one key-value store for all attempts (so does PyTorch 2.12, unless TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1).
After a restart, a rank may find there the address of a process that was killed, and fail or wait for it. Nothing that
torchrun tells differs from attempt to attempt on all hosts alike, so the ranks agree on a name of their own.
"""

from __future__ import annotations

import os
import time
import uuid

from torch.distributed.distributed_c10d import PrefixStore, Store

from isoflop.errors import IsoflopError

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
