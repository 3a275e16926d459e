"""Where the search for a learning rate begins, before anything has been measured."""

from __future__ import annotations

from isoflop.config import StudyConfig
from isoflop.study.planned import Catalogue

# (peak rate at 1e6 training FLOPs an image, exponent in FLOPs an image), by optimizer: the centre of the grid.
# AdamW: small Transformers at batch 64 want 1e-2 to 2e-2 below width 32, less above.
# Adafactor and Muon take steps of AdamW's size; LAMB twice AdamW's rate in arXiv 2210.13452; LARS is a mere start.
USUAL_RATE = {
    "adamw": (1.2e-2, -0.25),
    "adafactor": (1.2e-2, -0.25),
    "muon": (1.2e-2, -0.25),
    "lamb": (2.4e-2, -0.25),
    "sgd": (0.4, -0.1),
    "lars": (1.0, -0.1),
}


SEARCHED = 2  # sizes that try all rates where the others take theirs over
Rates = tuple[float, ...]


def rate_grid(config: StudyConfig, catalogue: Catalogue, family: str, model: str) -> tuple[float, ...]:
    """The learning rates to try first for `model`: the configured ones, or three a factor of 2 apart."""
    own = config.families[family]
    if own.learning_rates:
        return own.learning_rates
    if transfers(config, family):
        model = catalogue.presets(family)[0]
    rate, exponent = USUAL_RATE[_optimizer(config, family)]
    centre = float(f"{rate * (catalogue.flops_per_image(family, model) / 1e6) ** exponent:.1g}")
    return (centre / 2, centre, centre * 2)


def first_rates(config: StudyConfig, catalogue: Catalogue, family: str, names: tuple[str, ...]) -> dict[str, Rates]:
    """What each of the sizes `names`, small to large, tries on the first rung: its grid, or where rates carry over
    widths (μP) and `SEARCHED` smaller sizes try it, the middle of it."""
    grids = {name: rate_grid(config, catalogue, family, name) for name in names}
    if not transfers(config, family):
        return grids
    return {
        name: grid if number < SEARCHED else (grid[len(grid) // 2],)
        for number, (name, grid) in enumerate(grids.items())
    }


def transfers(config: StudyConfig, family: str) -> bool:
    """Whether one learning rate is to serve all widths of `family` (μP)."""
    return config.families[family].optim.mup is not None


def usual_exponent(config: StudyConfig, family: str) -> float:
    """The exponent of FLOPs an image in the learning rate that is usual for the optimizer of `family`."""
    return 0.0 if transfers(config, family) else USUAL_RATE[_optimizer(config, family)][1]


def _optimizer(config: StudyConfig, family: str) -> str:
    own = config.families[family].optim
    return own.name if "name" in own.model_fields_set else config.optim.name
