"""After a restart, processes find each other and not the addresses of those that were killed."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch.distributed as dist

from isoflop.errors import IsoflopError
from isoflop.train.ranks import own_store


def meet(store: Any, world: int) -> list[Any]:
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(lambda rank: own_store(store, rank, world), reversed(range(world))))[::-1]


def test_each_attempt_has_a_store_of_its_own() -> None:
    kept = dist.HashStore()  # torchrun's, for all attempts
    first = meet(kept, 3)
    first[0].set("address", "of a process that will be killed")
    assert all(store.get("address") == b"of a process that will be killed" for store in first)
    second = meet(kept, 3)
    assert not any(store.check(["address"]) for store in second)
    second[0].set("address", "alive")
    assert all(store.get("address") == b"alive" for store in second)
    assert not meet(kept, 2)[1].check(["address"])  # nor with fewer


def test_an_attempt_that_was_killed_while_it_met_leaves_nothing_behind() -> None:
    kept = dist.HashStore()
    with pytest.raises(IsoflopError, match="process 1 of 2 did not come"):
        own_store(kept, 0, 2, patience=0.1)
    with pytest.raises(IsoflopError, match="process 0 of 2 did not come"):
        own_store(kept, 1, 2, patience=0.1)
    token = kept.get("token-1")
    with ThreadPoolExecutor(2) as pool:
        early = pool.submit(own_store, kept, 1, 2)
        while kept.get("token-1") == token:  # until it has come
            time.sleep(0.001)
        first = own_store(kept, 0, 2)
        first.set("key", "value")
        assert early.result().get("key") == b"value"
