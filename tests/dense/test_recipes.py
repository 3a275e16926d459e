"""Every dense recipe can be read, costed and, at toy size, trained, resumed and judged."""

from pathlib import Path

import pytest

from isoflop.config import RunConfig, load_run
from isoflop.data.dense.scenes import write_scenes
from isoflop.errors import CheckpointError
from isoflop.train import train
from isoflop.train.device import ACCELERATORS
from isoflop.train.forecast import forecast
from isoflop.transfer import predict
from isoflop.transfer.dense.judge import evaluate_run
from tests.promises.chaos import when_asked

RECIPES = sorted(
    path
    for kind in ("detect", "segment")
    for path in (Path(__file__).resolve().parents[2] / "recipes").glob(f"{kind}-*.toml")
)
TOY_MODEL = {
    "mae_b16": ["model.depths=[2]", "model.widths=[16]", "model.mlp_widths=[32]", "model.heads=[2]"],
    "poolformer_s12": ["model.depths=[1,1,1,1]", "model.widths=[8,8,16,16]", "model.mlp_widths=[16,16,32,32]"],
}
TOY_RUN = [
    "epochs=none", "warmup_epochs=none", "steps=3", "schedule.warmup=0", "batch_size=2", "precision=float32",
    "start=none", "data.num_classes=none", "data.heldout=2", "data.image_size=64", "data.workers=0",
    "objective.width=16", "tensorboard=false", "threads=1", "parallel.recompute=0",
]  # fmt: skip


def toy(recipe: Path, *more: str) -> RunConfig:
    """The recipe with a model, scenes and steps for a test."""
    config = load_run(recipe).config
    segment = config.objective.name == "segment"
    source = "data.source=scenes?classes=3&images=8" + ("&task=segment" if segment else "")
    window = ["objective.window=2", "objective.global_blocks=1"] if getattr(config.objective, "window", None) else []
    return load_run(recipe, [*TOY_RUN, *TOY_MODEL[config.model.name], source, *window, *more]).config


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains_and_resumes_exactly_at_toy_size(recipe: Path, tmp_path: Path) -> None:
    whole = train(toy(recipe), tmp_path / "whole")
    assert train(toy(recipe), tmp_path / "parts", stop=when_asked(2)).state == "preempted"
    parts = train(toy(recipe), tmp_path / "parts")
    assert (whole.state, whole.step, parts.state) == ("done", 3, "done")
    assert parts.heldout_loss == whole.heldout_loss
    for name in ("model.safetensors", "objective.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_all_that_is_needed_to_cost_it(recipe: Path) -> None:
    config = load_run(recipe).config
    assert config.data.num_classes
    assert config.precision == "bfloat16"
    assert config.steps > 1000
    text = recipe.read_text(encoding="utf-8")
    assert "arXiv " in text
    assert not [line for line in text.splitlines() if len(line) > 130]


def test_a_dense_run_is_forecast_as_any_other() -> None:
    recipe = next(path for path in RECIPES if path.stem.startswith("segment-semantic_fpn"))
    told = forecast(load_run(recipe).config, ACCELERATORS["h100"], 8)
    assert told.fits
    assert told.step.total > 0


def test_a_finished_run_is_judged_and_shown(tmp_path: Path) -> None:
    recipe = next(path for path in RECIPES if "mask_rcnn-poolformer" in path.stem)
    write_scenes(tmp_path / "data", images=8, val_images=2, size=64, classes=3)
    config = toy(recipe, f"data.source=coco:{tmp_path / 'data'}?masks=1")
    train(config, tmp_path / "run")
    told = evaluate_run(config, tmp_path / "run")
    assert {"box_ap", "mask_ap", "box_ap50", "box_ap_small"} <= set(told)
    assert (tmp_path / "run" / "pictures.png").stat().st_size > 1000
    with pytest.raises(CheckpointError, match="was trained to detect, it has no classifier: fine-tune it first"):
        next(predict(str(tmp_path / "run"), [tmp_path / "data" / "images" / "val"]))
