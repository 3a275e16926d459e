"""The ladder: the runs of each rung, given the results of the rungs below.

Every size is trained at every budget. The learning rate is searched at the first rung, where runs are cheap: a grid,
extended while its best value is at an edge. The second rung tries the best value and the next lower one (longer runs
need lower rates: arXiv 2310.16764, section 3.2). From the third on, each size uses the best value of the previous rung.
"Best" is read off the family's learning-rate law over all sizes of a rung, because the best of three single runs is
noisy, and rates that jump from size to size would look like an effect of size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from isoflop import laws
from isoflop.config import StudyConfig
from isoflop.errors import StudyError
from isoflop.models import ladder_of
from isoflop.models.presets import LADDERS, PRESETS
from isoflop.study.planned import MIN_FIRST_STEPS, MIN_STEPS, Catalogue, PlannedRun

# Where the search for a learning rate begins, before anything has been measured.


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


USUAL_BATCH = 64, 128
"""Of the rates above: of optimizers that normalise their steps, and of SGD. The rate goes with the root of the batch
for the first (arXiv 2205.10287), and with the batch for SGD (arXiv 1706.02677)."""


def usual_rate(optimizer: str, flops_per_image: float, batch_size: int) -> float:
    """The peak rate to expect of a model with so many training FLOPs an image."""
    rate, exponent = USUAL_RATE[optimizer]
    normalised, plain = (batch_size / usual for usual in USUAL_BATCH)
    factor = plain if optimizer == "sgd" else normalised**0.5
    return float(rate * factor * (flops_per_image / 1e6) ** exponent)


FINE_TUNING = 0.2
"""Of the usual rate, where a family starts from trained weights: a tenth of the rate or a little more is usual."""
SEARCHED = 2  # sizes that try all rates where the others take theirs over
Rates = tuple[float, ...]


def rate_grid(config: StudyConfig, catalogue: Catalogue, family: str, model: str) -> tuple[float, ...]:
    """The learning rates to try first for `model`: the configured ones, or three a factor of 2 apart."""
    own = config.families[family]
    if own.learning_rates:
        return own.learning_rates
    if transfers(config, family):
        model = catalogue.presets(family)[0]
    flops, batch_size = catalogue.flops_per_image(family, model), catalogue.batch_size
    usual = usual_rate(_optimizer(config, family), flops, batch_size) * (FINE_TUNING if own.start else 1.0)
    centre = float(f"{usual:.1g}")
    return (centre / 2, centre, centre * 2)


def first_rates(config: StudyConfig, catalogue: Catalogue, family: str, names: tuple[str, ...]) -> dict[str, Rates]:
    """What each of the sizes `names`, small to large, tries on the first rung: its grid, or the middle of it where
    another size's search serves: `SEARCHED` smaller sizes where rates carry over widths (μP), one in a study with a
    limit, whose planner tries further rates where they are worth it."""
    grids = {name: rate_grid(config, catalogue, family, name) for name in names}
    named = config.families[family].learning_rates is not None
    searched = SEARCHED if transfers(config, family) else len(names) if named or not config.study.limited else 1
    if config.families[family].start and catalogue.fewer:  # too little for a search
        searched = 0
    return {
        name: grid if number < searched else (grid[len(grid) // 2],)
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


MAX_EXTENSIONS = 3  # of a learning-rate grid, on the first rung
RATE_RATIO = 2.0

Losses = Mapping[str, float]  # run id → held-out loss; +inf where the run diverged or failed


def ladder_sizes(config: StudyConfig, catalogue: Catalogue) -> dict[str, tuple[str, ...]]:
    """The presets of each family, small to large; those that the smallest budget cannot train are refused by name.

    A number in place of names takes that many neighbours from the family's ladder, around the size that is usually best
    at the middle budget.
    """
    chosen: dict[str, tuple[str, ...]] = {}
    for family, options in config.families.items():
        if isinstance(options.sizes, tuple):
            _refuse_mixtures(family, options.ladder or family, options.sizes)
        chosen[family] = catalogue.starting_sizes(family)
        _refuse_too_large(family, chosen[family], catalogue)
    return chosen


def _refuse_mixtures(family: str, ladder: str, names: tuple[str, ...]) -> None:
    """One law is fitted to all sizes of a family, and its answer may be any preset of the ladder that they are from."""
    known = {PRESETS[name][0]: name for name in names if ladder_of(name)}
    if ladder in LADDERS:
        known = {ladder: ladder, **known}
    if len(known) > 1:
        one, other, *_ = known.values()
        raise StudyError(f"families.{family}.sizes: {other} is of another family than {one}: give it its own table")


def _refuse_too_large(family: str, sizes: tuple[str, ...], catalogue: Catalogue) -> None:
    smallest, low = sizes[0], catalogue.budgets[0]
    if catalogue.steps(family, smallest, low) < MIN_STEPS:
        need = MIN_STEPS * catalogue.batch_size * catalogue.flops_per_image(family, smallest)
        raise StudyError(
            f"study.budgets: {low:g} FLOPs are too few for {smallest}, the smallest {family}: "
            f"{MIN_STEPS} steps of batch {catalogue.batch_size} cost {need:.2g} FLOPs"
        )
    if (need := catalogue.least_pretrained(family, smallest)) > low:
        raise StudyError(
            f"families.{family}.pretraining: its share of a run of {low:g} FLOPs is too little: {MIN_FIRST_STEPS} "
            f"steps take runs of {need:.2g} FLOPs; raise the budgets or `share`, or take a smaller decoder or projector"
        )


def first_rung(config: StudyConfig, catalogue: Catalogue, sizes: Mapping[str, tuple[str, ...]]) -> list[PlannedRun]:
    """The runs of the smallest budget: every size that it can train, at every learning rate of the grid."""
    budget = catalogue.budgets[0]
    return [
        catalogue.run(family, model, budget, rate)
        for family, names in sizes.items()
        for model, rates in first_rates(config, catalogue, family, names).items()
        if catalogue.steps(family, model, budget) >= MIN_STEPS
        for rate in rates
    ]


def extensions(runs: list[PlannedRun], losses: Losses, catalogue: Catalogue) -> list[PlannedRun]:
    """One more learning rate for every size whose best one lies at the edge of what was tried on this rung."""
    more: list[PlannedRun] = []
    for group in by_size(runs).values():
        rates = sorted({run.config.optim.learning_rate for run in group})
        best = best_run(group, losses)
        if best is None or len(rates) < 2:
            continue
        rate = best.config.optim.learning_rate
        beyond = rates[0] / RATE_RATIO if rate == rates[0] else rates[-1] * RATE_RATIO if rate == rates[-1] else None
        if beyond is not None:
            more.append(catalogue.run(best.family, best.model, best.budget, beyond))
    return more


def next_rung(
    rung: int,
    config: StudyConfig,
    catalogue: Catalogue,
    sizes: Mapping[str, tuple[str, ...]],
    below: list[PlannedRun],
    losses: Losses,
) -> list[PlannedRun]:
    """The runs of rung `rung` (0 is the first), given the finished runs of the rung below."""
    budget = catalogue.budgets[rung]
    runs: list[PlannedRun] = []
    for family, names in sizes.items():
        own = [run for run in below if run.family == family]
        carried = common_rate(own, losses) if transfers(config, family) else None
        best_rates = dict.fromkeys(names, carried) if carried else rates_by_law(own, losses)
        for model in names:
            if catalogue.steps(family, model, budget) < MIN_STEPS:
                continue
            rate = best_rates.get(model)
            if rate is None:  # new on this rung, or nothing below has survived: search here
                rates = rate_grid(config, catalogue, family, model)
            else:
                rates = (rate / RATE_RATIO, rate) if rung == 1 and not carried else (rate,)
            runs += [catalogue.run(family, model, budget, rate) for rate in rates]
    return runs


def runs_on_shares(
    shares: Sequence[float], last: Sequence[PlannedRun], losses: Losses, catalogue: Catalogue
) -> list[PlannedRun]:
    """The best run of each family on the last rung again, on each share of the training images below all."""
    runs = []
    for family in dict.fromkeys(run.family for run in last):
        best = best_run([run for run in last if run.family == family], losses)
        if best is None:
            continue
        at = best.family, best.model, best.budget, best.config.optim.learning_rate
        runs += [
            catalogue.run(*at, recipe=best.recipe, images=round(share * len(catalogue.source)))
            for share in shares
            if share < 1
        ]
    return runs


def rates_by_law(runs: list[PlannedRun], losses: Losses) -> dict[str, float]:
    """The learning rate of each model of one family: the one tried there that is nearest to the law over all sizes."""
    tried = [run for run in runs if math.isfinite(losses.get(run.run_id, math.inf))]
    if not tried:
        return {}
    law = laws.fit_learning_rate(
        [run.flops_per_image for run in tried],
        [run.config.optim.learning_rate for run in tried],
        [losses[run.run_id] for run in tried],
    )

    def distance(run: PlannedRun) -> float:
        return abs(math.log(run.config.optim.learning_rate / float(law.predict(run.flops_per_image))))

    return {model: min(group, key=distance).config.optim.learning_rate for (_, model), group in by_size(tried).items()}


def common_rate(runs: list[PlannedRun], losses: Losses) -> float | None:
    """The one learning rate for all sizes of a family (μP): the one tried that is nearest to the law's, over the sizes
    that tried several; None where nothing has survived."""
    groups = by_size([run for run in runs if math.isfinite(losses.get(run.run_id, math.inf))]).values()
    tried = [run for group in groups if len(group) > 1 or len(groups) == 1 for run in group]
    best = rates_by_law(tried, losses)
    if not best:
        return None
    middle = sum(map(math.log, best.values())) / len(best)
    return min((run.config.optim.learning_rate for run in tried), key=lambda rate: abs(math.log(rate) - middle))


def by_size(runs: list[PlannedRun]) -> dict[tuple[str, str], list[PlannedRun]]:
    """The runs of each (family, model)."""
    groups: dict[tuple[str, str], list[PlannedRun]] = {}
    for run in runs:
        groups.setdefault((run.family, run.model), []).append(run)
    return groups


def best_run(runs: list[PlannedRun], losses: Losses) -> PlannedRun | None:
    """The run with the lowest finite held-out loss, or None."""
    finished = [run for run in runs if math.isfinite(losses.get(run.run_id, math.inf))]
    return min(finished, key=lambda run: losses[run.run_id]) if finished else None
