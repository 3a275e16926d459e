"""Feeding a device: the same batches, in order, and the time that the run waits for them."""

from types import SimpleNamespace

import pytest
import torch

from isoflop.data import Feed, batches, open_source

PLAN = {"seed": 0, "batch_size": 32, "start_step": 3, "stop_step": 20, "augment": "crop_flip"}


def check_feed(device: torch.device) -> None:
    source = open_source("digits", split="train", image_size=16)
    expected = list(batches(source, **PLAN))
    fed = list(Feed(batches(source, **PLAN), device))
    assert [batch.step for batch in fed] == list(range(3, 20))
    for one, other in zip(fed, expected, strict=True):
        assert one.images.device.type == device.type
        assert torch.equal(one.images.cpu(), other.images)
        assert torch.equal(one.labels.cpu(), other.labels)


def test_a_feed_hands_out_the_same_batches_in_order() -> None:
    check_feed(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_feed_to_a_gpu_hands_out_the_same_batches_in_order() -> None:
    check_feed(torch.device("cuda"))


def test_the_meter_counts_the_time_spent_waiting_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("isoflop.data.loader.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    source = open_source("digits", split="train", image_size=16)

    def slow():  # type: ignore[no-untyped-def]
        for batch in batches(source, seed=0, batch_size=8, start_step=0, stop_step=5):
            clock[0] += 0.25
            yield batch

    feed = Feed(slow(), torch.device("cpu"))
    for _ in feed:
        clock[0] += 1.0
    assert (feed.seconds_waiting, clock[0]) == (1.25, 6.25)
