"""The plan of a study before training: rungs, sizes, the first runs, prices, and the reserve for the answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from isoflop.config import Loaded, RunConfig, StudyConfig, plain
from isoflop.config.study import RECIPES, SEARCH
from isoflop.data import open_split
from isoflop.data.order import GlobalOrder
from isoflop.errors import DataError, StudyError, said_of
from isoflop.runs.times import Times
from isoflop.study.adaptive import (
    NOTHING_BESIDE,
    UNCHOSEN,
    Funds,
    Ladder,
    Outlook,
    Overheads,
    answer_price,
    choose_budgets,
    clock_price,
    decide,
    funds_of,
    limit_of,
    lowest_rung,
    nearest_measured,
    opening,
)
from isoflop.study.belief import Trial, usual_size
from isoflop.study.planned import (
    ANSWER_SHARE,
    EVALUATION_SHARE,
    MIN_STEPS,
    TARGET_DISTANCE,
    Catalogue,
    PlannedRun,
    threads_of,
)
from isoflop.study.rungs import (
    first_rates,
    first_rung,
    ladder_sizes,
    rate_grid,
    transfers,
    usual_exponent,
)
from isoflop.study.search_space import Candidate, Ledger, SearchSpace, TrialResult
from isoflop.study.starts import Start, open_starts
from isoflop.study.store import Store
from isoflop.train import build_model
from isoflop.train.device import (
    Peak,
    choose_device,
    choose_precision,
    on_threads,
    peak_of,
    usable_cores,
    warn_of_slow_precision,
)
from isoflop.train.loop import seconds_per_image
from isoflop.train.optim.build import TRUNK_SCHEDULES, trunk_steps
from isoflop.transfer import Pretrained, check_transfer
from isoflop.transfer.finetune import SMALL_BATCH

# What runs will cost in time: measured on this machine, not looked up.


SecondsPerImage = Mapping[tuple[str, str], float]  # (family, preset) → seconds of training on an image
Seconds = dict[tuple[str, str], float]
Sizes = dict[str, tuple[str, ...]]


def measure_seconds_per_image(
    catalogue: Catalogue, sizes: Mapping[str, tuple[str, ...]]
) -> dict[tuple[str, str], float]:
    """Seconds of training an image, for each family and size, from a few steps on one thread of this machine."""
    with on_threads(1):
        return {(family, model): _seconds(catalogue, family, model) for family in sizes for model in sizes[family]}


def _seconds(catalogue: Catalogue, family: str, model: str, precision: str = "") -> float:
    """Seconds of training on an image, what is learnt first included."""
    run = _timed(catalogue, family, model)
    run = run.model_copy(update={"precision": precision or run.precision})
    with said_of(f"families.{family}"):
        return seconds_per_image(run, catalogue.source_of(family))


def _timed(catalogue: Catalogue, family: str, model: str) -> RunConfig:
    least = MIN_STEPS * catalogue.batch_size * catalogue.flops_per_image(family, model)
    budget = max(catalogue.config.study.target_flops, least)
    if not catalogue.budgets:  # not chosen yet, and no matter for a few steps
        catalogue = catalogue.on((budget,))
    return catalogue.run(family, model, budget, 1e-3).config


def time_answer(catalogue: Catalogue, family: str, model: str, threads: int) -> float:
    """Seconds of training an image in which `threads` of this machine train the answer `model`, from a few steps."""
    with on_threads(threads):
        return _seconds(catalogue, family, model)


def measure_overheads(catalogue: Catalogue, seconds: Seconds, times: Times) -> Overheads:
    """What the study takes beside its runs, and how its answers are trained on several threads of this machine.

    Preparation is what `times` has counted so far. `seconds` an image have those of the likely answers.
    """
    config = catalogue.config
    model = max(
        ((family, _likely_answer(catalogue, family)) for family in config.families),
        key=lambda key: seconds[key] / catalogue.flops_per_image(*key),
    )
    evaluation = FITTING_SECONDS * len(config.families)
    evaluation += _evaluated_images(config, catalogue) * seconds[model]
    threads, share = 1, 1.0
    if config.study.executor == "local" and choose_device(config.device).type == "cpu":
        cores = config.study.workers or usable_cores()
        run = _timed(catalogue, *model)
        threads = threads_of(run.batch_size, cores // config.study.finals)
        if threads > 1:
            with on_threads(threads):
                share = _seconds(catalogue, *model) / seconds[model]
    share = min(max(share, 1 / threads), 1.0)
    return Overheads(times.total, evaluation, threads, share, catalogue.latency_ms)


FITTING_SECONDS = 3.0  # of a family: bootstraps of its laws, and its figures


def _evaluated_images(config: StudyConfig, catalogue: Catalogue) -> float:
    """Images of training that the evaluation of the answers is worth, roughly: the test part, and the transfer task
    with trained and with random weights, if there is one."""
    task, forward_only = config.transfer, catalogue.heldout + _test_images(config)
    if not config.has_transfer:
        return forward_only / 3
    shots = [number for p in task.protocols if p.startswith("finetune") for number in task.shots_of(p)]
    batches = sum(min(USUAL_CLASSES * number or SMALL_BATCH, SMALL_BATCH) for number in shots)
    tuned = batches * len(task.seeds) * task.finetune_steps
    forward = USUAL_TASK * any(not p.startswith("finetune") for p in task.protocols)
    return forward_only / 3 + 2 * config.study.finals * (tuned + forward / 3)


def _test_images(config: StudyConfig) -> int:
    """Images of the test part of the data, on which what is handed over is judged; 0 where there is none."""
    try:
        return len(open_split(config.data, "test"))
    except DataError:
        return 0


USUAL_TASK, USUAL_CLASSES = 2000, 10  # images and classes of a transfer task


def open_catalogue(
    config: StudyConfig,
    seconds: Seconds,
    begun_at: str = "",
    times: Times | None = None,
    latency_ms: Mapping[str, float] | None = None,
    starts: Mapping[str, Start] | None = None,
) -> tuple[Catalogue, str]:
    """The models and data of `config` with all that it leaves to this machine decided: the target, the batch size and
    the precision; and why the precision is that. `seconds` an image of models that had to be timed are added."""
    if config.study.target_budget is not None:
        return _in_one_precision(Catalogue(config, begun_at, latency_ms, starts))
    unit, total, per_second = limit_of(config.study)
    share = ANSWER_SHARE * total / config.study.finals
    if per_second is None:
        return _in_one_precision(Catalogue(_with_target(config, share), begun_at, latency_ms, starts))
    guess = share / per_second * USUAL_UTILISATION * peak_of(choose_device(config.device), threads=1).fastest
    catalogue, why = _in_one_precision(Catalogue(_with_target(config, guess), begun_at, latency_ms, starts))
    likely: Sizes = {family: (_likely_answer(catalogue, family),) for family in config.families}
    _measure(catalogue, likely, seconds)
    dearest = max(seconds[f, m] / catalogue.flops_per_image(f, m) for f, (m,) in likely.items())
    if times:
        overheads = measure_overheads(catalogue, seconds, times)
        share = ANSWER_SHARE * max(total - overheads.seconds * clock_price(config.study), 0.0) / config.study.finals
        per_second *= answer_price(config.study, overheads) * (1 + EVALUATION_SHARE)
    target = share / per_second / dearest
    if not target:
        beside = overheads.seconds * clock_price(config.study)
        raise StudyError(
            f"the study's limit, {total:g} {unit}, is too low: preparation and evaluation alone take {beside:.2g}; "
            f"raise it to {4 * beside:.2g} or more"
        )
    budgets = config.study.budgets
    if budgets and target < budgets[-1]:
        raise StudyError(
            f"the study's limit, {total:g} {unit}, is too low: {ANSWER_SHARE:.0%} of it buys an answer of {target:.2g} "
            f"FLOPs, less than a run of the last rung ({budgets[-1]:g}); raise it, lower the rungs, or give "
            "`target_budget`"
        )
    resolved = catalogue.config.model_copy(update={"batch_size": config.batch_size})
    return catalogue.asking(_with_target(resolved, target)), why


USUAL_UTILISATION = 0.3  # of a core's peak by a model that could be the answer, before any was timed


def _with_target(config: StudyConfig, target: float) -> StudyConfig:
    study = config.study.model_copy(update={"target_budget": float(f"{target:.2g}")})
    return config.model_copy(update={"study": study})


def _in_one_precision(catalogue: Catalogue) -> tuple[Catalogue, str]:
    """`catalogue` with the one precision of all runs that "auto" stands for, and why it does.

    Of each family the size that the answer may be is timed, in either precision.
    """
    config, device = catalogue.config, choose_device(catalogue.config.device)
    if config.precision != "auto":
        warn_of_slow_precision(config.precision, device)
        return catalogue, "as configured"

    def seconds(precision: str) -> float:
        likely = {family: _likely_answer(catalogue, family) for family in config.families}
        return sum(_seconds(catalogue, family, model, precision) for family, model in likely.items())

    with on_threads(1):
        name, why = choose_precision(device, seconds)
    return catalogue.of(config.model_copy(update={"precision": name})), why


def _likely_answer(catalogue: Catalogue, family: str) -> str:
    """The preset nearest to the usual optimum at the target; of sizes that are named, the largest."""
    config = catalogue.config
    sizes = config.families[family].sizes
    if isinstance(sizes, tuple):
        return max(catalogue.starting_sizes(family), key=lambda name: catalogue.flops_per_image(family, name))
    usual, names = usual_size(config.study.target_flops), catalogue.presets(family)
    return min(names, key=lambda name: abs(math.log(catalogue.flops_per_image(family, name) / usual)))


def corrected(
    seconds: SecondsPerImage, measured: Mapping[tuple[str, str], tuple[float, float]]
) -> dict[tuple[str, str], float]:
    """`seconds` as finished runs have corrected them; `measured` is (images, seconds of training) by family and model.

    A model that has finished runs costs what they took. The others of its family are as much dearer than was thought
    as those were, and other families as much as all were.
    """
    known = {key: (images, spent) for key, (images, spent) in measured.items() if images > 0 and spent > 0}

    def factor(families: set[str]) -> float | None:
        both = [(n * seconds[key], spent) for key, (n, spent) in known.items() if key in seconds and key[0] in families]
        return sum(spent for _, spent in both) / sum(thought for thought, _ in both) if both else None

    every = factor({family for family, _ in known}) or 1.0
    factors = {family: factor({family}) or every for family, _ in seconds}
    prices = {key: price * factors[key[0]] for key, price in seconds.items()}
    return prices | {key: spent / images for key, (images, spent) in known.items()}


@dataclass(frozen=True)
class RungForecast:
    """What one rung is expected to take: runs, FLOPs (steps shared with the rung below left out), core-seconds."""

    budget: float
    runs: int
    flops: float
    core_seconds: float


def forecast(
    config: StudyConfig, catalogue: Catalogue, sizes: Mapping[str, tuple[str, ...]], seconds: SecondsPerImage
) -> list[RungForecast]:
    """The whole ladder before it starts. Runs of a widened learning-rate grid come on top; they cannot be foreseen."""
    rungs: list[RungForecast] = []
    for rung, budget in enumerate(catalogue.budgets):
        runs, flops, core_seconds = 0, 0.0, 0.0
        for family, names in sizes.items():
            first = first_rates(config, catalogue, family, names)
            for model in names:
                steps = catalogue.steps(family, model, budget)
                if steps < MIN_STEPS:
                    continue
                below = catalogue.steps(family, model, catalogue.budgets[rung - 1]) if rung else 0
                several = 1 if transfers(config, family) else 2
                count = len(first[model]) if below < MIN_STEPS else several if rung == 1 else 1
                schedule = catalogue.run(family, model, budget, 1e-3).config.schedule
                has_trunk = below >= MIN_STEPS and not config.families[family].pretraining
                shared = trunk_steps(schedule, below) if has_trunk else 0
                images = (count * steps - count * shared) * catalogue.batch_size
                runs += count
                flops += images * catalogue.flops_per_image(family, model)
                evaluated = count * catalogue.heldout / 3  # forward only
                core_seconds += (images + evaluated) * seconds[family, model]
        rungs.append(RungForecast(budget, runs, flops, core_seconds))
    return rungs


CARRIED_DOUBT = 0.03
"""How far the size's exponent in the best rate may be from 0 where rates carry over widths: depth and patches count."""


@dataclass(frozen=True)
class Plan:
    """What a study would do.

    Attributes:
        catalogue: the models, on the rungs that were named or chosen. sizes: the presets of each family that start.
        first: the runs of the first rung. rungs: a forecast of every rung as far as it can be known.
        seconds_per_image: measured here. precision: of all runs, and why it is that.
        peak: of a worker. funds: what a study with a limit may cost; None without one.
        space: the question as the adaptive planner sees it; None without a limit.
        overheads: what it takes beside the runs, and how the answers are trained.
        ladder: what the limit has made of it, where rungs are not named.
    """

    catalogue: Catalogue
    sizes: Sizes
    first: list[PlannedRun]
    rungs: list[RungForecast]
    seconds_per_image: Seconds
    precision: str = ""
    peak: Peak | None = None
    funds: Funds | None = None
    space: SearchSpace | None = None
    overheads: Overheads = NOTHING_BESIDE
    ladder: Ladder = UNCHOSEN

    def __repr__(self) -> str:
        runs, families = sum(rung.runs for rung in self.rungs), ", ".join(self.sizes)
        return (
            f"Plan({families}: about {runs} runs on {len(self.rungs)} rungs, {self.ladder_seconds:.0f} core-seconds, "
            f"and {self.final_seconds:.0f} to train the answer)"
        )

    @property
    def ladder_seconds(self) -> float:
        """Core-seconds of the ladder: all of its rungs, or as much as the limit allows."""
        if self.funds is None:
            return sum(rung.core_seconds for rung in self.rungs)
        mean_price = sum(self.funds.per_flop.values()) / len(self.funds.per_flop)
        return self.funds.allowance / mean_price * self._seconds_per_flop()

    @property
    def final_seconds(self) -> float:
        """Core-seconds of training the answers: what is reserved where time is the limit and no target is given, else
        guessed from the largest starting size of each family."""
        config = self.catalogue.config
        if self.funds and self.funds.open_ended:
            evaluated = self.funds.answering * (1 + EVALUATION_SHARE)
            return self.funds.reserved / self.funds.per_second / evaluated
        largest = [(family, names[-1]) for family, names in self.sizes.items()]
        target = config.study.target_flops
        each = [
            target / self.catalogue.flops_per_image(*key) * self.seconds_per_image[key]
            for key in largest
            if key in self.seconds_per_image
        ]
        return sum(each) / len(each) * min(config.study.finals, len(each))

    def clock_seconds(self, workers: int) -> dict[str, float]:
        """Seconds by the clock, with `workers` runs at a time: of the ladder, of the answer and of everything else."""
        finals = min(self.catalogue.config.study.finals, len(self.sizes))
        share = self.overheads.share or min(finals / workers, 1.0)
        in_turn = max(finals / workers, 1.0)
        return {
            "ladder": self.ladder_seconds / workers,
            "answer": self.final_seconds / finals * share * in_turn * (1 + EVALUATION_SHARE),
            "everything else": self.overheads.seconds,
        }

    def answer_seconds(self, family: str, flops_per_image: float, images: int) -> float:
        """Seconds by the clock of training an answer."""
        each = self.seconds_an_image(family, flops_per_image)
        return images * each * (self.overheads.share or 1.0) * (1 + EVALUATION_SHARE)

    def seconds_an_image(self, family: str, flops_per_image: float) -> float:
        """Core-seconds of training on an image, at the efficiency of the nearest measured size of the family."""
        flops = {key: self.catalogue.flops_per_image(*key) for key in self.seconds_per_image}
        nearest = nearest_measured(flops, family, flops_per_image)
        return self.seconds_per_image[nearest] * flops_per_image / flops[nearest]

    @property
    def utilisation(self) -> float | None:
        """Training FLOPs of the rungs as a share of what the peak would give in their core-seconds."""
        flops, seconds = sum(rung.flops for rung in self.rungs), sum(rung.core_seconds for rung in self.rungs)
        return flops / (seconds * self.peak.fastest) if self.peak and seconds > 0 else None

    def utilisation_of(self, run: PlannedRun) -> float | None:
        """The same of the steps of `run`, as they were timed."""
        seconds = self.seconds_per_image.get((run.family, run.model))
        return run.flops_per_image / (seconds * self.peak.fastest) if self.peak and seconds else None

    def priced(self, measured: Mapping[tuple[str, str], tuple[float, float]]) -> Plan:
        """The plan with prices that finished runs have corrected: `measured` is (images, seconds) by family, model."""
        if self.funds is None or self.funds.unit == "FLOPs" or not measured:
            return self
        config, catalogue = self.catalogue.config, self.catalogue
        seconds = corrected(self.seconds_per_image, measured)
        funds = funds_of(config, catalogue, seconds, self.overheads, begun=True, open_ended=self.funds.open_ended)
        return replace(
            self, seconds_per_image=seconds, funds=funds, space=search_space_of(config, catalogue, self.sizes, funds)
        )

    def to_dict(self) -> dict[str, Any]:
        """The plan in JSON values: core-seconds, FLOPs, images; `funds` is None without a limit."""
        funds = self.funds
        return {
            "first": [
                {
                    "run_id": run.run_id,
                    "family": run.family,
                    "model": run.model,
                    "budget": run.budget,
                    "flops_per_image": run.flops_per_image,
                    "steps": run.config.steps,
                    "images": run.images,
                    "learning_rate": run.config.optim.learning_rate,
                }
                for run in self.first
            ],
            "precision": self.catalogue.config.precision,
            "peak": self.peak and {"rates": self.peak.rates, "quiet": self.peak.quiet},
            "utilisation": self.utilisation,
            "rungs": [asdict(rung) for rung in self.rungs],
            "ladder_core_seconds": self.ladder_seconds,
            "final_core_seconds": self.final_seconds,
            "funds": funds and {"unit": funds.unit, "total": funds.total, "reserved": funds.reserved},
        }

    def _seconds_per_flop(self) -> float:
        each = [s / self.catalogue.flops_per_image(*key) for key, s in self.seconds_per_image.items()]
        return sum(each) / len(each)


def plan_study(
    config: StudyConfig | Loaded[StudyConfig],
    known: Mapping[tuple[str, str], float] | None = None,
    begun_at: str = "",
    overheads: Overheads | None = None,
    times: Times | None = None,
    known_ladder: Ladder = UNCHOSEN,
) -> Plan:
    """The plan of `config`, priced by a few steps of each model on this machine; nothing is written.

    `known` seconds an image and `overheads`, measured before, are not measured again, nor is a `known_ladder` chosen
    again: the same prices give the same plan. `begun_at` is where the data lay when the study began, `times` what has
    counted its preparation so far.

    Raises StudyError, ConfigError, DataError, ModelError for a study that cannot be, its transfer task included.
    """
    config, times = plain(config), times or Times()
    open_ended = config.study.target_budget is None
    begun, starts, left_out = open_starts(Store(config.directory).as_begun(config))
    seconds = {key: value for key, value in (known or {}).items() if key[0] in begun.families}
    known_latency = overheads.latency_ms if overheads else {}
    catalogue, why = open_catalogue(begun, seconds, begun_at, None if overheads else times, known_latency, starts)
    for family in begun.families:
        catalogue.presets(family)  # refuses a limit that leaves no size before models are timed
    was_decided = config.precision == "auto" != begun.precision
    config = catalogue.config
    why = f"{config.precision}, {'as the study was begun' if was_decided else why}"
    if config.study.budgets is None:
        if not known_ladder.rungs:
            config, known_ladder = _ladder_of_limit(catalogue, seconds, overheads, times, open_ended)
        catalogue = catalogue.of(config).beginning_with(known_ladder.fewer).on(known_ladder.rungs)
    known_ladder = replace(known_ladder, left_out={**left_out, **known_ladder.left_out})
    sizes = ladder_sizes(config, catalogue)
    _measure(catalogue, sizes, seconds)
    overheads = overheads or _overheads(catalogue, seconds, times)
    peak = peak_of(choose_device(config.device), threads=1, again=True)
    rungs = forecast(config, catalogue, sizes, seconds)
    first = first_rung(config, catalogue, sizes)
    _refuse_twins(first)
    _check_transfer(first[0], catalogue)
    if not config.study.limited:
        return Plan(catalogue, sizes, first, rungs, seconds, why, peak, overheads=overheads, ladder=known_ladder)
    funds = funds_of(config, catalogue, seconds, overheads, open_ended=open_ended)
    space = search_space_of(config, catalogue, sizes, funds)
    _check_opening(space, funds)
    first = list(map(catalogue.run_of, opening(space)))
    return Plan(catalogue, sizes, first, rungs, seconds, why, peak, funds, space, overheads, known_ladder)


def _overheads(catalogue: Catalogue, seconds: Seconds, times: Times) -> Overheads:
    _measure(catalogue, {family: (_likely_answer(catalogue, family),) for family in catalogue.config.families}, seconds)
    return measure_overheads(catalogue, seconds, times)


def _refuse_twins(runs: list[PlannedRun]) -> None:
    """Raises StudyError where two families would train the same run."""
    families: dict[str, str] = {}
    for run in runs:
        other = families.setdefault(run.run_id, run.family)
        if other != run.family:
            raise StudyError(
                f"families.{other} and families.{run.family} are the same: both would train {run.model} alike; "
                "give one of them another `recipe`, `model` or `optim`, or take it out"
            )


def _check_transfer(run: PlannedRun, catalogue: Catalogue) -> None:
    """Raises DataError where the answers, or the runs, could not be judged on the task that the study names."""
    config = catalogue.config
    backbone = Pretrained(build_model(run.config, catalogue.source_of(run.family)), run.model, run.model)
    asked = config.transfer if config.has_transfer else None
    for protocol in (config.target.protocol(config.transfer), asked):
        if protocol is not None:
            check_transfer(backbone, protocol)


def _measure(catalogue: Catalogue, sizes: Sizes, seconds: Seconds) -> None:
    missing = {family: tuple(m for m in names if (family, m) not in seconds) for family, names in sizes.items()}
    seconds |= measure_seconds_per_image(catalogue, missing)


def _ladder_of_limit(
    catalogue: Catalogue, seconds: Seconds, overheads: Overheads | None, times: Times, open_ended: bool
) -> tuple[StudyConfig, Ladder]:
    """The ladder that what is left after the answers can pay for, and the study without the families left out.

    Where there is too little for all sizes that families ask for, they begin with fewer; where there is too little for
    one of each, the family that needs the most is left out, the last one never. StudyError where that one needs more,
    or all families name their sizes.
    """
    left_out: dict[str, str] = {}
    while True:
        config = catalogue.config
        counted = {name: family.sizes for name, family in config.families.items() if isinstance(family.sizes, int)}
        begins = [*counted.values(), 2 if catalogue.starts else 1]  # those with weights can do with fewer runs, too
        for fewer in range(max(begins)):
            begun = catalogue.beginning_with(fewer)
            try:
                rungs = _chosen_budgets(begun, seconds, overheads, times, open_ended)
            except StudyError as error:
                problem = error
            else:
                return config, Ladder(rungs, fewer, left_out)
        if len(config.families) == 1 or not counted:
            raise problem
        dearest = max(counted, key=lambda name: lowest_rung(catalogue, name))
        left_out[dearest] = str(problem)
        rest = {name: family for name, family in config.families.items() if name != dearest}
        catalogue = catalogue.of(config.model_copy(update={"families": rest}))
        for key in [key for key in seconds if key[0] == dearest]:
            del seconds[key]


def _chosen_budgets(
    catalogue: Catalogue, seconds: Seconds, overheads: Overheads | None, times: Times, open_ended: bool
) -> tuple[float, ...]:
    """The rungs that what is left after the answers can pay for; StudyError where that is too little."""
    config = catalogue.config
    study = config.study
    unit, total, per_second = limit_of(study)
    if per_second is None:
        kept, price = study.finals * study.target_flops, 1.0
        fixed = 0.0 if open_ended else kept
    else:
        near = study.target_flops / TARGET_DISTANCE
        provisional = catalogue.on((near / 20, near))
        starting = {family: provisional.starting_sizes(family) for family in config.families}
        _measure(provisional, starting, seconds)
        overheads = overheads or _overheads(provisional, seconds, times)
        funds = funds_of(config, provisional, seconds, overheads, open_ended=open_ended)
        # Every starting size gets its runs: a FLOP of the ladder costs what it does in the mean over them.
        prices = [funds.per_flop[family, name] for family, names in starting.items() for name in names]
        kept, price = funds.total - funds.allowance, sum(prices) / len(prices)
        fixed = funds.beside if open_ended else kept

    def enough(factor: float) -> str:
        """The limit with which the ladder has so many times as much, and a tenth more."""
        limit = fixed + (total - fixed) * 1.1 * factor
        digit = 10.0 ** (math.floor(math.log10(limit)) - 1)
        return f"{math.ceil(limit / digit) * digit:.3g} {unit}"

    return choose_budgets(config, catalogue, (total - kept) / price, enough, open_ended=open_ended)


def search_space_of(
    config: StudyConfig, catalogue: Catalogue, sizes: Sizes, funds: Funds, left: float | None = None
) -> SearchSpace:
    """The question of `config` as the adaptive planner sees it. Sizes that were named are all that may be trained;
    where only their number is given, their neighbours on the family's ladder may follow. Open-ended answers get what is
    `left`, or their reserve."""
    families = {}
    share = (funds.reserved if left is None else left) / config.study.finals
    for family, start in sizes.items():
        options = config.families[family]
        every = {name: catalogue.flops_per_image(family, name) for name in catalogue.presets(family)}
        may = {name: every[name] for name in (start if isinstance(options.sizes, tuple) else every)}
        schedule = options.schedule
        has_trunk = schedule.name in TRUNK_SCHEDULES and not options.pretraining
        families[family] = Candidate(
            sizes=may,
            start=start,
            answers=every,
            rates={name: rate_grid(config, catalogue, family, name) for name in may},
            price={name: funds.price(family, n) for name, n in may.items()},
            each={name: funds.price_of_evaluation(family, n) for name, n in may.items()},
            shared=1.0 - schedule.cooldown if has_trunk else 0.0,
            exponent=usual_exponent(config, family),
            doubt=CARRIED_DOUBT if transfers(config, family) else Candidate.doubt,
            first=first_rates(config, catalogue, family, start),
            recipes=tuple(RECIPES) if options.recipe == SEARCH else ("",),
            answer_images={name: funds.answer_images(family, n, share) for name, n in every.items()}
            if funds.open_ended
            else {},
        )
    study = config.study
    return SearchSpace(
        families,
        catalogue.budgets,
        study.target_flops,
        catalogue.batch_size,
        MIN_STEPS,
        study.sure,
        catalogue.source.unique_images or math.inf,
        isinstance(catalogue.source.order, GlobalOrder) and config.data.images is None,
        study.images or (),
    )


def believed(plan: Plan, runs: Iterable[PlannedRun], losses: Mapping[str, float]) -> Outlook:
    """How the families of fixed rungs stand by the planner's belief, which chooses sizes and rates, and needs fewer
    runs than a law: of one size, say. `losses` are those of `runs`, by id."""
    catalogue = plan.catalogue
    config = catalogue.config
    without_limit = config.model_copy(update={"study": config.study.model_copy(update={"budget": math.inf})})
    funds = funds_of(without_limit, catalogue, plan.seconds_per_image)
    results = [
        TrialResult(
            Trial(
                run.family, run.model, run.flops_per_image, float(run.images), run.budget,
                run.config.optim.learning_rate, run.recipe, run.config.seed - config.study.seed, run.config.data.images,
            ),
            losses.get(run.run_id, math.inf),
        )
        for run in runs
        if run.role == "ladder"
    ]  # fmt: skip
    return decide(search_space_of(without_limit, catalogue, plan.sizes, funds), results).outlook()


def _check_opening(space: SearchSpace, funds: Funds) -> None:
    """Raises StudyError when the first two rungs, which every family gets, cost more than there is."""
    ledger = Ledger(space)
    cost = sum(ledger.enter(trial) for trial in opening(space))
    second = space.budgets[1]
    for family, candidate in space.families.items():
        for model in candidate.start:
            if space.trains(family, model, second):
                cost += ledger.enter(space.trial(family, model, second, candidate.rates[model][0]))
    if cost > funds.allowance:
        raise StudyError(
            f"the study's limit leaves {funds.allowance:.2g} {funds.unit} for the ladder, but its first two rungs, "
            f"{space.budgets[0]:g} and {second:g} FLOPs a run, take {cost:.2g} by themselves: raise the limit, or take "
            "lower budgets, fewer sizes or fewer learning rates"
        )
