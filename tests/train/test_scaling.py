"""What a run takes on paper: the formulas, and counts that agree with what really runs."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from isoflop.config import RunConfig, parse
from isoflop.errors import ConfigError
from isoflop.models import cost, create_model
from isoflop.objectives import objective_cost
from isoflop.train.device import ACCELERATORS
from isoflop.train.forecast import forecast, workload
from isoflop.train.scaling import (
    MEMORY_SHARE,
    DeviceLayout,
    Operator,
    Workload,
    communication,
    memory,
    reliability,
    step_time,
)

H100 = ACCELERATORS["h100"]
WORK = Workload(
    parameters=10**9, largest_block=10**7, blocks=50, state_bytes=8 * 10**9, flops_per_image=1e12, activation_bytes=1e9,
    operators=(Operator(1e12, 1e6, 0.0),),
)  # fmt: skip


def config(**keys: object) -> RunConfig:
    base = {"model": {"name": "vit_w64d4p8"}, "steps": 100, "batch_size": 64, "data": {"num_classes": 10}}
    return parse({**base, **keys}, RunConfig)


def test_full_sharding_divides_what_lasts_and_not_activations() -> None:
    whole = memory(WORK, DeviceLayout(8, 64, "none"))
    shared = memory(WORK, DeviceLayout(8, 64, "full"))
    assert (whole.weights, whole.gradients, whole.optimizer) == (4e9, 4e9, 8e9)
    assert (shared.weights, shared.gradients, shared.optimizer) == (0.5e9, 0.5e9, 1e9)
    assert whole.activations == shared.activations == 8e9
    assert memory(WORK, DeviceLayout(64, 64, "hybrid")).weights == 0.5e9  # among the eight of a host


def test_smaller_goes_take_less_memory_and_more_communication() -> None:
    whole, parts = DeviceLayout(8, 64, "full"), DeviceLayout(8, 64, "full", device_batch=2)
    assert parts.accumulation == 4
    assert memory(WORK, parts).activations == memory(WORK, whole).activations / 4
    assert communication(WORK, parts, H100).bytes == 4 * communication(WORK, whole, H100).bytes


@pytest.mark.parametrize(("sharding", "bytes_of"), [("none", 8), ("full", 8)])
def test_a_ring_of_two_moves_half_of_everything(sharding: str, bytes_of: int) -> None:
    """Sharded: 2 + 2 bytes to gather a weight twice in bfloat16, 4 to scatter its gradient; else 2 × 4 to sum it."""
    found = communication(WORK, DeviceLayout(2, 64, sharding), H100)
    assert found.bytes == bytes_of * 1e9 / 2
    assert found.seconds == pytest.approx(found.bytes / H100.link_rate)


def test_one_device_says_nothing_to_nobody() -> None:
    assert communication(WORK, DeviceLayout(1, 64), H100).bytes == 0


def test_the_time_of_a_step_is_that_of_the_slower_of_arithmetic_and_network() -> None:
    fast = step_time(WORK, DeviceLayout(8, 64), H100, utilisation=0.5)
    update = (5 * 4e9 + 2 * 8e9) / 8 / (MEMORY_SHARE * H100.memory_rate)
    assert fast.compute == pytest.approx(8 * 1e12 / (0.5 * 989e12) + update)
    slow = step_time(WORK, DeviceLayout(8, 64), replace(H100, link_rate=1e8), utilisation=0.5)
    assert slow.total == slow.communication > slow.compute


def test_the_best_interval_between_checkpoints_is_young_s_and_no_other_is_better() -> None:
    layout = DeviceLayout(512, 4096)
    best = reliability(WORK, layout)
    assert best.interval == pytest.approx(math.sqrt(2 * best.pause * best.seconds_between_failures), rel=1e-6)
    for factor in (0.5, 0.8, 1.25, 2.0):
        assert reliability(WORK, layout, interval=factor * best.interval).goodput < best.goodput


def test_failures_come_as_often_as_published() -> None:
    """466 in 54 days on 16,384 devices is one in 2.8 hours."""
    between = reliability(WORK, DeviceLayout(16_384, 32_768)).seconds_between_failures
    assert 54 * 86_400 / between == pytest.approx(466)


@pytest.mark.parametrize("objective", ["supervised", "masked"])
def test_flops_and_parameters_are_those_of_the_objective(objective: str) -> None:
    run = config(objective=objective)
    counted = objective_cost(run.objective, run.model.name, num_classes=10, image_size=32, in_channels=3)
    found = workload(run, 10)
    assert found.flops_per_image == counted.train_flops_per_image
    assert found.parameters == counted.parameters


def test_a_teacher_in_a_folder_is_counted_as_it_runs(tmp_path: Path) -> None:
    teacher = create_model("nfnet_w8d1", num_classes=10, image_size=32, seed=0)
    state = {name: tensor.contiguous() for name, tensor in teacher.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model": {"name": "nfnet_w8d1"}, "steps": 1}))
    run = config(objective={"name": "distilled", "teacher": str(tmp_path), "through": "logits"})
    alone = workload(config(), 10).flops_per_image
    assert workload(run, 10).flops_per_image == alone + cost("nfnet_w8d1", num_classes=10, image_size=32).flops


@pytest.mark.parametrize("name", ["vit_w64d4p8", "nfnet_w16d2", "poolformer_w16d4p4"])
def test_activations_are_what_autograd_really_keeps(name: str) -> None:
    """Counted on real tensors, in float32, and halved; up to what is not kept in the type of the computation."""
    model = create_model(name, num_classes=10, image_size=32, seed=0).train()
    kept: dict[int, torch.Tensor] = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    sizes = []
    for count in (1, 5):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            loss = F.cross_entropy(model(torch.randn(count, 3, 32, 32)), torch.zeros(count, dtype=torch.int64))
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))
        del loss
    measured = (sizes[1] - sizes[0]) / 4 / 2
    assert workload(config(model={"name": name}), 10).activation_bytes == pytest.approx(measured, rel=0.2)


def test_recomputing_every_block_keeps_inputs_and_one_block() -> None:
    plain = workload(config(), 10)
    spare = workload(config(parallel={"recompute": 1}), 10)
    assert spare.activation_bytes < 0.5 * plain.activation_bytes
    assert spare.recomputed_flops_per_image == plain.flops_per_image / 3


def test_a_forecast_needs_classes_and_enough_images_for_its_devices() -> None:
    with pytest.raises(ConfigError, match=r"`data.num_classes` must be set"):
        forecast(config(data={}), H100)
    with pytest.raises(ConfigError, match="128 devices are more than the 64 images of a step"):
        forecast(config(), H100, 128)


def test_twice_the_devices_take_half_the_time_while_arithmetic_decides() -> None:
    one, two = (forecast(config(batch_size=4096), H100, n) for n in (1, 2))
    assert two.step.compute == pytest.approx(one.step.compute / 2, rel=0.02)
    assert one.device_hours == pytest.approx(one.seconds / 3600)
