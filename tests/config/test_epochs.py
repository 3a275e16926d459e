"""A length in epochs is a length in steps."""

import pytest

from isoflop.config import RunConfig, config_hash, parse
from isoflop.errors import ConfigError

BASE = {"model": {"name": "vit_s16"}, "batch_size": 4096, "data": {"epoch_images": 1_281_167}}


def test_epochs_come_to_the_steps_that_see_so_many_images() -> None:
    config = parse({**BASE, "epochs": 300, "warmup_epochs": 5}, RunConfig)
    assert config.steps == round(300 * 1_281_167 / 4096)
    assert config.schedule.warmup == round(5 * 1_281_167 / 4096)


def test_a_run_is_the_same_run_whichever_way_its_length_is_given() -> None:
    in_epochs = parse({**BASE, "epochs": 90}, RunConfig)
    assert config_hash(in_epochs) == config_hash(parse({**BASE, "steps": in_epochs.steps}, RunConfig))
    assert parse(in_epochs.model_dump(mode="json"), RunConfig) == in_epochs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 90, "steps": 10}, "`epochs` = 90 come to 28151: give one of them"),
        ({"warmup_epochs": 1, "steps": 1000, "schedule": {"warmup": 7}}, "`warmup_epochs` = 1 come to 313: give one"),
        ({"epochs": 90, "data": {}}, "`epochs` needs `data.epoch_images`"),
        ({"epochs": 0}, "`epochs` = 0 must be greater than 0"),
    ],
)
def test_what_does_not_add_up_is_told(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse({**BASE, **change}, RunConfig)


def test_epochs_give_way_to_steps_when_they_are_taken_away() -> None:
    change = {"epochs": "none", "warmup_epochs": "none", "steps": 3, "schedule": {"warmup": 1}}
    assert parse({**BASE, **change}, RunConfig).steps == 3
