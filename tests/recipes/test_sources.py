"""docs/recipes.md says where each value comes from, of every recipe and of every fine-tuning protocol."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from isoflop.models import create_model
from isoflop.transfer.finetune import PUBLISHED

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.toml"))
OURS = (
    "model.name", "precision", "data.source", "data.num_classes", "data.epoch_images", "data.workers",
    "start.", "evaluation.", "checkpoint.", "parallel.",
)  # fmt: skip
"""What the page says of all recipes at once."""


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def tables() -> dict[str, dict[str, Any]]:
    """The values of each heading of the page; of a table for several recipes, the values of each."""
    found: dict[str, dict[str, Any]] = {}
    names: list[str] = []
    for line in PAGE.splitlines():
        if line.startswith("#"):
            names = re.findall(r"`([^`]+)`", line)
        if match := re.match(r"\| `([^`]+)` \| `([^`]+)` \| (.+) \| (.+) \|$", line):
            key, cell, source, other = match.groups()
            assert source.strip(), line
            assert other.strip(), line
            cells = cell.split(" · ")
            for name, value in zip(names, cells * len(names) if len(cells) == 1 else cells, strict=False):
                assert key not in found.setdefault(name, {}), (name, key)
                found[name][key] = tomllib.loads(f"x = {value}")["x"]
    return found


TOLD = tables()


def told(name: str) -> dict[str, Any]:
    assert name in TOLD, f"docs/recipes.md has no table of {name}"
    return TOLD[name]


@pytest.mark.parametrize("name", RECIPES)
def test_each_value_of_a_recipe_has_its_source(name: str) -> None:
    values = flat(tomllib.loads((ROOT / "recipes" / f"{name}.toml").read_text(encoding="utf-8")))
    assert told(name) == {key: value for key, value in values.items() if not key.startswith(OURS)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_value_of_a_protocol_has_its_source(name: str) -> None:
    backbone = create_model("vit_s16_token", widths=(768,), depths=(1,), heads=(1,), image_size=32, seed=0)
    values = flat(PUBLISHED[name](1000 if name == "vtab" else 1_281_167, backbone).run)
    page = told(f"finetune_{name}")
    assert set(page) == set(values)
    for key, value in values.items():
        expected = list(value) if isinstance(value, tuple) else value
        assert page[key] == (pytest.approx(expected) if isinstance(expected, float) else expected), key


def test_no_table_is_of_a_recipe_that_is_gone() -> None:
    assert set(TOLD) == {*RECIPES, *(f"finetune_{name}" for name in PUBLISHED)}


@pytest.mark.parametrize("name", ["mae_b16_finetune", "detect-mask_rcnn-vit_b16", "segment-upernet-vit_b16"])
def test_recipes_that_start_from_a_masked_autoencoder_train_its_positions(name: str) -> None:
    from isoflop.config import load_run
    from isoflop.train.optim import parameter_groups

    config = load_run(ROOT / "recipes" / f"{name}.toml").config
    small = {"widths": (16,), "mlp_widths": (32,), "heads": (2,)}
    model = create_model(config.model.name, image_size=32, seed=0, **{**config.model.overrides, **small})
    groups = parameter_groups(model, config.optim)
    mine = next(group for group in groups if any(p is model.get_parameter("positions.0") for p in group["params"]))
    assert config.optim.layer_decay
    assert mine["lr_scale"] == pytest.approx(config.optim.layer_decay**13)  # layer 0 of 12 blocks
    assert mine["weight_decay"] == 0.0
