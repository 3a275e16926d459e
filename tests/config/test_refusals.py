"""What would fail later, or be ignored, is refused where it is written."""

from pathlib import Path

import pytest

from isoflop.config import RunConfig, StudyConfig
from isoflop.config.load import load
from isoflop.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.num_classes=3"], "`model.num_classes` cannot be set: it comes from the data"),
        (["model.in_channels=1"], "`model.in_channels` cannot be set: it comes from the data"),
        (["model.image_size=64"], "`model.image_size` cannot be set: it is `data.image_size`"),
        (["model.seed=3"], "`model.seed` cannot be set: it is that of the run"),
        (["seed=1e30"], "`seed` = 1e+30 must be less than 9.22337e+18"),
        (["threads=100000"], "`threads` = 100000 must be at most 1024"),
        (["objective.name=masked", "objective.loss=sigmoid"], '`objective.loss` is not a key of "masked"'),
        (
            ["objective=masked", "optim.label_smoothing=0.1"],
            "`optim.label_smoothing` is of a classifier, which masked does not train",
        ),
        (
            ["objective=masked", "optim.head_weight_decay=3"],
            "`optim.head_weight_decay` is of a classifier, which masked does not train",
        ),
        (
            ["guards.spike=8", "guards.window=9"],
            "`guards.window` = 9 losses are too few to detect a spike: use 10 or more",
        ),
        (["schedule.drops=[2]"], "`schedule.drops[0]` = 2 must be at most 1"),
        (['optim.groups.a.parameters=[""]'], '`optim.groups.a.parameters[0]` = "" must be some text, not empty'),
    ],
)
def test_a_key_that_cannot_be_is_one_line(tmp_path: Path, overrides: list[str], message: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text("steps = 1\n[model]\nname = 'vit_w8d1p8'\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(path, overrides, RunConfig)
    assert str(caught.value).startswith(f"command line: {message}")
    assert "\n" not in str(caught.value)


def test_a_price_alone_adds_the_cost_to_the_plan_and_limits_nothing() -> None:
    config = load("examples/demo.toml", ["study.price_per_hour=2"], StudyConfig).config
    assert config.study.price_per_hour == 2
    assert not config.study.limited
