"""Foretold speed beside what others have measured: an operator is bound by arithmetic or by memory."""

from dataclasses import replace
from itertools import pairwise

import pytest

from isoflop.config import RunConfig
from isoflop.config.load import parse
from isoflop.train.device import ACCELERATORS
from isoflop.train.forecast import Forecast, forecast
from isoflop.train.scaling import step_time

# Images a second of training by timm on an RTX 3090: automatic mixed precision, channels first, PyTorch 1.12
# (results/benchmark-train-amp-nchw-pt112-cu113-rtx3090.csv of huggingface/pytorch-image-models, Apache 2.0).
# Our preset, image size, images at a time, images a second.
PUBLISHED = [
    ("vit_s16", 224, 384, 1052.92),
    ("poolformer_s12", 224, 512, 1234.11),
    *(
        pytest.param(*row, marks=pytest.mark.long)
        for row in (
            ("nfnet_f0", 192, 384, 600.1),
            ("vit_b16", 224, 192, 390.86),
            ("vit_b32", 224, 512, 1703.57),
            ("bit_r50x1", 224, 192, 587.0),
        )
    ),
]


def foretold(model: str, size: int, batch: int) -> Forecast:
    run = {
        "model": {"name": model}, "data": {"image_size": size, "num_classes": 1000}, "steps": 10, "batch_size": batch,
        "precision": "bfloat16",
    }  # fmt: skip
    return forecast(parse(run, RunConfig), ACCELERATORS["rtx3090"])


@pytest.mark.parametrize(("model", "size", "batch", "images_per_second"), PUBLISHED)
def test_the_rate_is_near_what_was_published(model: str, size: int, batch: int, images_per_second: float) -> None:
    ratio = batch / foretold(model, size, batch).step.total / images_per_second
    assert 1 / 1.5 < ratio < 1.5


def test_slower_memory_slows_what_it_binds_and_operators_are_all_counted() -> None:
    told = foretold("poolformer_s12", 64, 64)
    counted = sum(op.flops * op.count for op in told.work.operators)
    assert counted == pytest.approx(told.work.flops_per_image, rel=0.02)
    board = ACCELERATORS["rtx3090"]
    slower = [replace(board, memory_rate=board.memory_rate / k) for k in (1, 2, 4)]
    times = [step_time(told.work, told.layout, device, 0.7).compute for device in slower]
    assert all(1.3 < slow / fast <= 2.0 for fast, slow in pairwise(times))
