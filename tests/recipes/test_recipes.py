"""Every recipe can be read, costed and, at toy size, trained."""

from pathlib import Path
from typing import Any

import pytest

from isoflop.cli import main
from isoflop.config import RunConfig, load_run
from isoflop.train import train
from isoflop.train.device import ACCELERATORS
from isoflop.train.forecast import forecast

RECIPES = sorted(
    path
    for path in (Path(__file__).resolve().parents[2] / "recipes").glob("*.toml")
    if not path.stem.startswith(("detect-", "segment-"))  # these have other data: tests/dense/test_recipes.py
)
SMALL = ("vit_s16", "deit_s16_imagenet1k", "poolformer", "mae_b16")  # what is costed in a moment

TOY_VIT = ["model.depths=[1]", "model.widths=[16]", "model.mlp_widths=[32]", "model.heads=[2]"]
TOY_STAGES = ["model.depths=[1,1,1,1]", "model.widths=[8,8,16,16]", "model.mlp_widths=[16,16,32,32]"]
TOY_MODEL: dict[str, list[str]] = {
    "vit": TOY_VIT,
    "deit": TOY_VIT,
    "mae": TOY_VIT,
    "poolformer": TOY_STAGES,
    "convformer": [*TOY_STAGES, "model.heads=[1,1,1,1]"],
    "caformer": [*TOY_STAGES, "model.heads=[1,1,1,1]"],
    "nfnet": ["model.name=nfnet_w8d2"],
    "bit": ["model.depths=[1,1,1,1]"],
}
TOY_DECODER = ["objective.decoder_depth=1", "objective.decoder_width=16", "objective.decoder_heads=2"]
TOY_RUN = [
    "epochs=none", "warmup_epochs=none", "steps=3", "schedule.warmup=1", "batch_size=4", "precision=float32",
    "data.source=fractals?classes=4&images=64", "data.num_classes=none", "data.heldout=4", "data.image_size=32",
    "data.workers=0", "parallel.sharding=none", "tensorboard=false", "threads=1", "evaluation.every=none",
]  # fmt: skip


def toy(recipe: Path, *more: str) -> RunConfig:
    """The recipe with a model, images and steps for a test."""
    family = recipe.stem.split("_")[0]
    patch = ["model.stem_kernel=8", "model.stem_stride=8"] if family in ("vit", "deit", "mae") else []
    is_masked = load_run(recipe).config.objective.name == "masked"
    decoder = (
        ["objective.decoder_depth=1", "objective.decoder_width=16", "objective.decoder_heads=2"] if is_masked else []
    )
    return load_run(recipe, [*TOY_RUN, *TOY_MODEL[family], *patch, *decoder, *more]).config


def forerunner(recipe: Path, directory: Path) -> list[str]:
    """The keys that name what a recipe builds upon, trained here at toy size."""
    config = load_run(recipe).config
    if config.start:
        before = recipe.parent / f"{Path(config.start.weights).name}.toml"
        train(toy(before), directory / "before")
        return [f"start.weights={directory / 'before'}"]
    if config.objective.name == "distilled":
        train(toy(recipe.parent / "deit_s16_imagenet1k.toml"), directory / "before")
        return [f"objective.teacher={directory / 'before'}"]
    return []


def test_the_published_families_all_have_their_recipes() -> None:
    assert {path.stem.split("_")[0] for path in RECIPES} == set(TOY_MODEL)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains_at_toy_size(recipe: Path, tmp_path: Path) -> None:
    result = train(toy(recipe, *forerunner(recipe, tmp_path)), tmp_path / "run")
    assert (result.state, result.step) == ("done", 3)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_all_that_is_needed_to_cost_it(recipe: Path) -> None:
    config = load_run(recipe).config
    assert config.data.num_classes
    assert config.precision == "bfloat16"
    assert config.steps > 1000
    text = recipe.read_text(encoding="utf-8")
    assert "arXiv " in text
    assert not [line for line in text.splitlines() if len(line) > 130]


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.stem.startswith(SMALL)], ids=lambda path: path.stem)
def test_a_recipe_fits_on_a_host_of_h100s(recipe: Path) -> None:
    told = forecast(load_run(recipe).config, ACCELERATORS["h100"], 8)
    assert told.fits
    assert told.step.total > 0


def test_a_dry_run_prints_what_a_run_takes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = next(path for path in RECIPES if path.stem.startswith("vit_s16"))
    with pytest.raises(SystemExit) as caught:
        main(["train", str(recipe), "--dry-run", "--accelerator", "a100", "--devices", "8", "epochs=300"])
    assert caught.value.code == 0
    shown = {line.strip().split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "22.0 M" in shown["parameters"]
    assert f"{round(300 * 1_281_167 / 1024):,} of 1,024 images" in shown["steps"]
    assert "80.00 GB" in shown["memory of a device"]
    assert {"checkpoint", "goodput", "device-hours", "energy", "optimizer", "activations"} <= set(shown)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--accelerator", "h1000"], "unknown accelerator `h1000` - did you mean `h100`?"),
        (["--devices", "2000"], "2000 devices are more than the 1024 images of a step"),
        (["data.num_classes=none"], "set `data.num_classes` to count a run without its data"),
    ],
)
def test_what_cannot_be_costed_is_told_in_one_line(
    more: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe: Any = next(path for path in RECIPES if path.stem.startswith("vit_s16"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["train", str(recipe), "--dry-run", *more])
    told = capsys.readouterr().err
    assert caught.value.code == 2
    assert message in told
    assert told.count("\n") == 1
