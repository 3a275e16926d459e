"""No process ever holds the whole of a model that is divided, and yet each starts with the numbers of the whole."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from isoflop.config import RunConfig
from isoflop.data import open_split
from isoflop.errors import ModelError
from isoflop.models import create_model
from isoflop.train.layout import Deferred, build_and_arrange
from isoflop.train.loop import build_objective
from isoflop.train.ranks import Ranks
from isoflop.train.sharded import local
from tests.promises.chaos import run_config

WORLD = 4


def bytes_held(module: nn.Module) -> int:
    storages = [local(t).untyped_storage() for t in (*module.parameters(), *module.buffers())]
    return sum({s._cdata: s.nbytes() for s in storages}.values())


@pytest.mark.parametrize(
    "name",
    [
        "vit_w12d2p8",
        "poolformer_w8d2p8",
        "caformer_s18",
        "nfnet_w8d2",  # channels-last
        "bit_r50x1",
        "timm:convnext_atto",
    ],
)
def test_weights_that_are_drawn_later_are_the_same_to_the_bit(name: str) -> None:
    def build() -> nn.Module:
        return create_model(name, num_classes=7, image_size=64, seed=3)

    plain = build()
    with Deferred(least_bytes=1) as deferred:
        later = build()
    assert (
        bytes_held(later) < 0.02 * bytes_held(plain) + 20_000
    )  # what is not made by torch.empty: norms, scales, tables
    state = torch.get_rng_state()
    deferred.settle((*later.parameters(), *later.buffers()))
    deferred.settle_rest()
    assert torch.equal(state, torch.get_rng_state())
    expected = plain.state_dict()
    for key, tensor in later.state_dict().items():
        assert torch.equal(tensor, expected[key]), key
        assert tensor.stride() == expected[key].stride(), key


@pytest.mark.parametrize("kind", ["masked", "started"])
def test_so_are_those_of_objectives_and_of_trained_backbones(kind: str, tmp_path: Path) -> None:
    config = run_config(**({"objective": {"name": "masked"}, "optim": {}} if kind == "masked" else {}))
    source = open_split(config.data, "heldout")
    if kind == "started":
        size, channels = config.data.image_size, source.channels
        trained = create_model("vit_w12d2p8", num_classes=20, image_size=size, in_channels=channels, seed=8)
        save_file(trained.state_dict(), tmp_path / "model.safetensors")
        config = run_config(start={"weights": str(tmp_path)})
    expected = build_objective(config, source).state_dict()
    with Deferred(least_bytes=1) as deferred:
        later = build_objective(config, source)
    deferred.settle((*later.parameters(), *later.buffers()))
    for key, tensor in later.state_dict().items():
        assert torch.equal(tensor, expected[key]), key


def test_what_cannot_be_drawn_again_is_kept() -> None:
    def make() -> list[Tensor]:
        torch.manual_seed(1)
        read, parted, other, forgotten = (torch.empty(40, 5) for _ in range(4))
        read.normal_()
        other.uniform_(-1, 1).mul_(float(read.std()))
        parted.zero_()[3].normal_()
        own = torch.Generator().manual_seed(7)
        copied = torch.empty(40, 5).uniform_(generator=own)
        source = torch.ones(40, 5)
        copied[:2] = 5.0
        return [
            read,
            parted,
            other.copy_(source).add_(1),
            copied,
            forgotten.double(),
            read.t(),
            torch.empty(3, 3).copy_(read[:3, :3]),
        ]

    plain = make()
    with Deferred(least_bytes=1) as deferred:
        later = make()
    deferred.settle(later)
    for one, two in zip(plain[:4] + plain[5:], later[:4] + later[5:], strict=True):
        assert torch.equal(one, two)
    assert bool(later[4].isnan().all())


@pytest.fixture
def one_of_four() -> Iterator[Ranks]:
    """Rank 1 of a group whose other members are imagined: enough where nothing is exchanged."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=WORLD)
    try:
        yield Ranks(torch.device("cpu"), rank=1, world=WORLD, local_world=2)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("sharding", ["full", "hybrid"])
def test_a_rank_holds_its_shards_and_one_block_at_a_time(
    one_of_four: Ranks, sharding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(model={"name": "vit_w32d4p8", "depths": [12]}, parallel={"sharding": sharding})
    source = open_split(config.data, "heldout")
    whole = build_objective(config, source)
    held: list[int] = []
    settle = Deferred.settle

    def watched(self: Deferred, tensors: Any) -> None:
        settle(self, tensors)
        held.append(bytes_held(objectives[0]))

    objectives: list[Any] = []

    def build() -> Any:
        objectives.append(build_objective(config, source))
        return objectives[0]

    monkeypatch.setattr("isoflop.train.layout.LEAST_BYTES", 1 << 10)
    monkeypatch.setattr(Deferred, "settle", watched)
    divided = build_and_arrange(build, config, one_of_four)
    parts = WORLD if sharding == "full" else 2
    assert max(held) < bytes_held(whole) * (1 / parts + 1 / 12 + 0.1)
    rank = 1 % parts
    for (name, p), q in zip(divided.named_parameters(), whole.parameters(), strict=True):
        expected = torch.chunk(q, parts)
        assert torch.equal(local(p).detach(), expected[rank] if rank < len(expected) else q[:0]), name


def test_memory_that_nobody_initialised_is_found_on_every_rank(one_of_four: Ranks) -> None:
    config: RunConfig = run_config(parallel={"sharding": "full"})
    source = open_split(config.data, "heldout")

    def forgetful() -> Any:
        objective = build_objective(config, source)
        objective.backbone.forgotten = nn.Parameter(torch.empty(300, 300))
        return objective

    with pytest.raises(ModelError, match=r"1 parameters .* backbone\.forgotten"):
        build_and_arrange(forgetful, config, one_of_four)
