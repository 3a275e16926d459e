"""One run on one process or on many: the same losses and samples, whatever is sharded and in how many goes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from isoflop.config.run import RunConfig
from isoflop.data import batches, open_split
from isoflop.data.loader import rank_part
from isoflop.errors import ConfigError
from isoflop.models.blocks import Dropout, drop_path, rows_of_batch
from isoflop.train import read_journal, train
from isoflop.train.layout import blocks, built, make_independent_of_layout
from isoflop.train.step import accumulation_steps
from tests.data.pictures import encoded, picture
from tests.promises.chaos import join, run_config, start_ranks, train_whole

VIT = {"model": {"name": "vit_w12d2p8", "drop_path": 0.2}}
NFNET = {  # scalars that cannot be divided, whole-unit clipping, dropout, channels-last weights
    "model": {"name": "nfnet_w8d2", "drop_path": 0.2, "dropout": 0.2},
    "optim": {"name": "sgd", "learning_rate": 0.3, "agc": 0.01},
}


def short(model: dict[str, Any], **parallel: Any) -> RunConfig:
    data = {"source": "fractals?classes=20&images=1000", "heldout": 50, "mixup": 0.2}
    evaluation = {"batch_size": 20}  # three batches, the last one smaller: not the same number for each rank
    checkpoint = {"every_seconds": 60}
    more: dict[str, Any] = {"data": data, "evaluation": evaluation, "checkpoint": checkpoint, "parallel": parallel}
    return run_config(**model, **more, steps=12, batch_size=22, log_every=1)


def rows(directory: Path) -> list[dict[str, Any]]:
    return read_journal(directory)


@pytest.fixture(scope="module", params=["vit", "nfnet"])
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A model and the run that one process makes of it."""
    model = VIT if request.param == "vit" else NFNET
    directory = tmp_path_factory.mktemp("alone") / "run"
    train_whole(short(model), directory)
    return model, directory


@pytest.mark.parametrize(
    ("world", "parallel"),
    [
        (1, {"device_batch_size": 5}),
        (2, {"sharding": "none"}),
        (2, {"sharding": "full", "device_batch_size": 5, "recompute": 2}),
        (4, {"sharding": "hybrid"}),
    ],
    ids=["in-parts", "copies", "sharded-in-parts", "hybrid"],
)
def test_any_layout_gives_the_same_losses(
    alone: tuple[dict[str, Any], Path], tmp_path: Path, world: int, parallel: dict[str, Any]
) -> None:
    model, reference = alone
    train_whole(short(model, **parallel), tmp_path / "run", world=world)
    ours, theirs = rows(tmp_path / "run"), rows(reference)
    assert [row["samples"] for row in ours] == [row["samples"] for row in theirs]
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], abs=2e-6)
    norms = [row["gradient_norm"] for row in theirs]
    assert [row["gradient_norm"] for row in ours] == pytest.approx(norms, rel=1e-4)
    assert ours[-1]["heldout_loss"] == pytest.approx(theirs[-1]["heldout_loss"], abs=2e-6)
    assert ours[-1]["heldout_accuracy"] == theirs[-1]["heldout_accuracy"]


def test_bfloat16_products_are_as_near_to_float32_sharded_as_alone(tmp_path: Path) -> None:
    losses = {}
    for name, precision, world in (("exact", "float32", 1), ("alone", "bfloat16", 1), ("sharded", "bfloat16", 2)):
        parallel = {"sharding": "full"} if world > 1 else {}
        config = short(VIT, **parallel).model_copy(update={"precision": precision})
        train_whole(config, tmp_path / name, world=world)
        losses[name] = torch.tensor([row["loss"] for row in rows(tmp_path / name)])
    alone, sharded = ((losses[name] - losses["exact"]).abs().max().item() for name in ("alone", "sharded"))
    assert 0 < alone < 0.02  # rounded, or it would not be bfloat16
    assert 0 < sharded < 0.02


def test_random_layers_draw_for_the_whole_batch() -> None:
    x = torch.ones(10, 3)

    def outcome(rows: slice, total: int | None) -> torch.Tensor:
        torch.manual_seed(5)
        layer = Dropout(0.4)
        if total is None:
            return layer(drop_path(x[rows], 0.4, True))
        with rows_of_batch(rows.start, total):
            return layer(drop_path(x[rows], 0.4, True))

    torch.manual_seed(5)
    reference = nn.Dropout(0.4)(drop_path(x, 0.4, True))
    assert torch.equal(outcome(slice(0, 10), None), reference)
    for part in (slice(0, 4), slice(4, 10)):
        assert torch.equal(outcome(part, 10), reference[part])


@pytest.mark.parametrize("at_most", [1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize("world", [1, 3])
def test_parts_fit_the_device_and_none_is_empty(at_most: int, world: int) -> None:
    parts = accumulation_steps(50, at_most, world)
    for rank in range(world):
        start, stop = rank_part(50, rank, world)
        sizes = [b - a for a, b in (rank_part(stop - start, k, parts) for k in range(parts))]
        assert sum(sizes) == stop - start
        assert min(sizes) > 0
        assert max(sizes) <= max(at_most, 2)


def test_batch_statistics_are_refused_where_a_batch_is_divided(tmp_path: Path) -> None:
    config = run_config(model={"name": "timm:resnet10t"}, parallel={"device_batch_size": 8})
    with pytest.raises(ConfigError, match="takes statistics of a batch"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_layers_of_timm_draw_for_the_whole_batch() -> None:
    from timm.layers.drop import DropPath

    model = nn.Sequential(nn.Dropout(0.3), DropPath(0.3))
    make_independent_of_layout(model)
    assert [type(layer).__module__ for layer in model] == ["isoflop.models.blocks"] * 2


def test_every_family_has_blocks() -> None:
    from isoflop.models import create_model

    for name, count in {
        "vit_w12d2p8": 2,
        "poolformer_w8d2p8": 2,
        "nfnet_w8d2": 2,
        "timm:vit_tiny_patch16_224": 12,
        "timm:resnet18": 8,
        "timm:regnety_002": 13,
        "timm:convnext_atto": 12,
    }.items():
        with torch.device("meta"):
            model = create_model(name, num_classes=3, image_size=32)
        assert len(list(blocks(model))) >= count, name


@pytest.mark.parametrize("option", ["recompute", "compile"])
def test_what_works_block_by_block_is_refused_where_there_are_none(tmp_path: Path, option: str) -> None:
    config = run_config(model={"name": "timm:vgg11"}, parallel={option: True if option == "compile" else 1})
    with pytest.raises(
        ConfigError, match=rf"`parallel.{option}` works block by block, and the blocks of timm:vgg11 are not known"
    ):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_batch_statistics_are_not_taken_twice(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="would take the batch statistics of timm:resnet10t twice"):
        train(run_config(model={"name": "timm:resnet10t"}, parallel={"recompute": 1}), tmp_path / "run")


def test_memory_that_nobody_initialised_is_found() -> None:
    from isoflop.errors import ModelError

    def forgetful() -> Any:
        model = nn.Linear(3, 3)
        model.gain = nn.Parameter(torch.empty(1000))
        return model

    with pytest.raises(ModelError, match="gain"):
        built(forgetful)


def test_more_ranks_than_images_are_refused() -> None:
    from isoflop.train.ranks import Ranks, check_parts

    with pytest.raises(ConfigError, match="each needs an image"):
        check_parts(3, Ranks(torch.device("cpu"), world=4))


def test_activations_that_are_computed_again_are_the_same(tmp_path: Path) -> None:
    for recompute in (0, 1):
        train(short(VIT, recompute=recompute), tmp_path / str(recompute))
    plain, again = rows(tmp_path / "0"), rows(tmp_path / "1")
    assert [row["loss"] for row in plain] == [row["loss"] for row in again]


@pytest.mark.long
def test_compiled_blocks_give_the_same_losses(tmp_path: Path) -> None:
    model = {"model": {"name": "vit_w12d2p8"}}
    for compiled in (False, True):
        train(short(model, compile=compiled), tmp_path / str(compiled))
    plain, faster = rows(tmp_path / "False"), rows(tmp_path / "True")
    assert [row["loss"] for row in faster] == pytest.approx([row["loss"] for row in plain], abs=1e-5)


@pytest.mark.gpu
def test_sharding_on_gpus_gives_the_same_losses(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    for name, world, parallel in [("alone", 1, {}), ("sharded", 2, {"sharding": "full", "recompute": 2})]:
        config = short(VIT, **parallel).model_copy(update={"device": "cuda"})
        train_whole(config, tmp_path / name, world=world)
    alone, sharded = rows(tmp_path / "alone"), rows(tmp_path / "sharded")
    assert [row["loss"] for row in sharded] == pytest.approx([row["loss"] for row in alone], abs=1e-4)


def test_float8_is_refused_where_the_hardware_has_none(tmp_path: Path) -> None:
    config = short(VIT).model_copy(update={"precision": "float8", "device": "cpu"})
    with pytest.raises(ConfigError, match="needs a GPU that computes in it"):
        train(config, tmp_path / "run")


def test_float8_layers_learn_alike() -> None:
    pytest.importorskip("torchao")
    from isoflop.models import create_model
    from isoflop.objectives import Supervised
    from isoflop.train.layout import use_float8

    model = create_model("vit_ti16", num_classes=10, image_size=32, seed=0, depths=(2,))
    torch.nn.init.normal_(model.head.weight)  # which starts at zero, and would hide the rest
    objective = Supervised(model)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    gradients = []
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            objective(images, labels, lambda stream, count: torch.zeros(8, count)).backward()
        gradients.append(model.head.bias.grad.clone())  # type: ignore[union-attr]
        objective.zero_grad()
        use_float8(objective, torch.device("cpu"), emulate=True)
    assert not torch.equal(*gradients)
    torch.testing.assert_close(*gradients, rtol=0.2, atol=0.02)


def test_damaged_images_are_counted_over_all_ranks_and_stop_all(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    good = {k: encoded(picture(k, 8, 8), "BMP") for k in range(1100)}  # of which one may be damaged
    for k, content in good.items():
        (folder / f"class{k % 2}").mkdir(parents=True, exist_ok=True)
        (folder / f"class{k % 2}" / f"{k:04d}.bmp").write_bytes(content if k % 100 else b"gone")
    data = {"source": f"folder:{folder}?decode=each", "image_size": 8, "heldout": 8}
    config = run_config(model={"name": "vit_w12d2p8"}, data=data, steps=45, batch_size=24)
    source = open_split(config.data, "train")
    met = []
    for rank in range(2):
        plan = {"seed": 0, "batch_size": 24, "start_step": 0, "stop_step": 45, "rank": rank, "world": 2}
        met.append(next(batch.damages[0].name for batch in batches(source, **plan) if batch.damages))
    for path in folder.glob("class*/*00.bmp"):
        if str(path) not in met:
            path.write_bytes(good[int(path.stem)])
    ranks = start_ranks(config, tmp_path / "run", 2)
    assert join(ranks) == [1, 1]  # each met but one
