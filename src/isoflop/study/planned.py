"""A planned run: its identity, its place on the ladder, and its expected cost."""

from __future__ import annotations

import copy
import hashlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from isoflop.config import FamilyConfig, ObjectiveConfig, RunConfig, StudyConfig, canonical_json, config_hash
from isoflop.data import Source, open_split
from isoflop.data.opening import parse_uri
from isoflop.errors import DataNotice, StudyError, said_of
from isoflop.escapes import printable
from isoflop.models import Cost, family_ladder, ladder_of
from isoflop.models.presets import LADDERS
from isoflop.objectives import objective_cost
from isoflop.study.belief import Trial, usual_size
from isoflop.study.starts import Start
from isoflop.train.device import on_threads
from isoflop.train.loop import latency_ms
from isoflop.train.optim.build import TRUNK_SCHEDULES
from isoflop.train.optim.gradients import PASSES

MIN_STEPS = 30  # a shorter run has hardly left its warm-up
MIN_FIRST_STEPS = 10  # of what is learnt before: fewer are no more than rounding
ENOUGH_STEPS = 200
"""Of the smallest size of each family on the lowest rung, where the batch size or the rungs are chosen. In about 50 to
80 steps of batch 128, PoolFormers and ViTs of the demo's lowest rung learn little more than the commonest class; in 205
to 320 of batch 32, at the same compute, they reach 73 and 53 % accuracy (NFNet: 85 in place of 79 %)."""
LARGEST_BATCH, SMALLEST_BATCH = 128, 16  # that are chosen
SMALL_SIDE = 64  # px; larger images fill a machine with half the batch
RUNGS_RATIO = 2.6
"""Between the rungs that the planner chooses: about what sizes and learning rates can be carried across."""
TARGET_DISTANCE = 3.0
"""The highest of them stays this factor below the target: nearer, the ladder would cost more than it decides."""
LADDER_SPAN = 4.0
"""Between the lowest and the highest of them, at least."""
ANSWER_SHARE = 0.7
"""Of the limit, for training the answers of a study that names no target."""
LADDER_RUNS = 1.3
"""How often the highest rung's budget each starting size is allowed for, lower rungs but the first included."""
IMAGES_OF_A_THREAD = 16  # of a batch: fewer leave a thread waiting more than working
BEST_OF = 20  # evaluations of an answer, whose best weights are kept
EVALUATION_SHARE = 0.05
"""Of the cost of training an answer, for those evaluations, at most."""
WARMUP_SHARE = 0.2  # of the steps of a model's shortest run: the most that warm-up may take on the ladder


def threads_of(batch_size: int, threads: int) -> int:
    """Of `threads`, those that have enough of a batch to do; one at least."""
    return max(1, min(threads, batch_size // IMAGES_OF_A_THREAD))


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study. `flops_per_image` are training FLOPs (3 × 2 × MACs), `budget` the rung it belongs to."""

    family: str
    model: str
    budget: float
    role: str  # "ladder" or "final"
    flops_per_image: float
    parameters: int
    config: RunConfig
    begun_at: str = ""
    """Where the data lay when the study began, if they have moved since: runs keep their names."""
    recipe: str = ""
    """The level of regularisation, where the planner chose it."""
    pretraining_share: float = 0.0
    """Of its training FLOPs, those of what it learns first: its images seen with labels count for both."""

    @property
    def run_id(self) -> str:
        return config_hash(self._named(self.config))

    def on_threads(self, threads: int) -> PlannedRun:
        """The same run on so many threads of a CPU, as far as each has enough of a batch to do, and on one at least."""
        enough = threads_of(self.config.batch_size, threads)
        return replace(self, config=self.config.model_copy(update={"threads": enough}))

    def _named(self, config: RunConfig) -> RunConfig:
        source = self.begun_at or config.data.source
        return config.model_copy(update={"data": config.data.model_copy(update={"source": source})})

    @property
    def images(self) -> int:
        return self.config.images

    @property
    def train_flops(self) -> float:
        return self.images * self.flops_per_image

    @property
    def trunk_id(self) -> str | None:
        """What runs share that differ only in length; None for a schedule without a trunk, and where a longer run has
        learnt something else for longer before."""
        if self.config.schedule.name not in TRUNK_SCHEDULES or self.config.pretraining:
            return None
        schedule = self.config.schedule.model_copy(update={"cooldown": 0.0})
        plain = self.config.evaluation.model_copy(update={"every": None, "restore_best": False})
        same = self.config.model_copy(update={"steps": 1, "schedule": schedule, "evaluation": plain})
        return hashlib.sha256(canonical_json(self._named(same)).encode()).hexdigest()[:12]


def enough_steps(family: FamilyConfig) -> int:
    """The steps on the lowest rung that the smallest size of a family should have: fewer, where it starts from weights
    that know most of what it learns."""
    return MIN_STEPS if family.start else ENOUGH_STEPS


FEWEST_OF_A_CLASS = 20
MOST_OF_ONE_CLASS = 0.9
LABELS_READ = 100_000


def check_images(config: StudyConfig, source: Source, heldout: int) -> None:
    """Raises StudyError where the images of classes are too few, or nearly all of one class, for models that learn from
    nothing: a study would compare noise. `heldout` images are apart from `source`."""
    classes, uri = source.num_classes, printable(config.data.source)
    generated = parse_uri(config.data.source)[0] == "fractals"
    if not config.has_scratch or generated or source.unique_images is None or source.has_several_labels or classes < 2:
        return
    images = len(source) + heldout
    if images < FEWEST_OF_A_CLASS * classes:
        raise StudyError(
            f"{uri}: {images:,} images of {classes:,} classes, {images / classes:.2g} a class, are too few to compare "
            f"models that learn from nothing: {FEWEST_OF_A_CLASS} a class would do "
            f"({FEWEST_OF_A_CLASS * classes:,} images); with fewer, try trained weights (`isoflop transfer`)"
        )
    every = max(1, len(source) // LABELS_READ)
    labels = source.labels(np.arange(0, len(source), every, dtype=np.int64)).numpy()
    counts = np.bincount(labels[labels >= 0], minlength=classes)
    share, most = counts.max() / max(counts.sum(), 1), int(counts.argmax())
    if share > MOST_OF_ONE_CLASS and not parse_uri(config.data.source)[2].get("balance"):
        raise StudyError(
            f"{uri}: {share:.1%} of the images are of class `{printable(source.class_names[most])}`, so that a model "
            f"is right without having learnt: {MOST_OF_ONE_CLASS:.0%} or less would do; take fewer of them, or train "
            "on all classes equally often (the option `balance=1` of data.source)"
        )
    few = int((counts * every < FEWEST_OF_A_CLASS * len(source) / images).sum())
    if few:
        warnings.warn(
            f"{uri}: {few:,} of {classes:,} classes have fewer than {FEWEST_OF_A_CLASS} images",
            DataNotice,
            stacklevel=2,
        )


class Catalogue:
    """What the study's models cost on its data, each counted once; and how its runs are made."""

    def __init__(
        self,
        config: StudyConfig,
        begun_at: str = "",
        latency_ms: Mapping[str, float] | None = None,
        starts: Mapping[str, Start] | None = None,
    ) -> None:
        self.config = config
        self.starts = dict(starts or {})
        self.begun_at = begun_at
        self.budgets: tuple[float, ...] = config.study.budgets or ()
        self.source: Source = open_split(config.data, "train")
        self._sources: dict[str, Source] = {}
        self.heldout = len(open_split(config.data, "heldout"))  # of few stored images a fifth at most
        self._costs: dict[tuple[str, str, bool], Cost] = {}
        self._first_sources: dict[str, Source] = {}
        self.latency_ms: dict[str, float] = dict(latency_ms or {})  # of models, on one image
        self.fewer = 0  # sizes that families begin with than they ask for, where the limit pays for no more
        check_images(config, self.source, self.heldout)
        self._choose_batch()

    def source_of(self, family: str) -> Source:
        """The training images as the models of `family` want them."""
        start, size = self.starts.get(family), self.config.families[family].image_size
        if start is None and size in (None, self.config.data.image_size):
            return self.source
        if family not in self._sources:
            data = start.data if start else self.config.data.model_copy(update={"image_size": size})
            self._sources[family] = open_split(data, "train")
        return self._sources[family]

    def image_size(self, family: str) -> int:
        """Height and width in pixels of the images of the models of `family`."""
        return self.config.families[family].image_size or self.config.data.image_size

    def _choose_batch(self) -> None:
        self.config = self.config.model_copy(update={"batch_size": self.config.batch_size or self._largest_batch()})
        if len(self.source) < self.batch_size:
            raise StudyError(
                f"{self.config.data.source}: {len(self.source)} training images are fewer than one batch of "
                f"{self.batch_size}; "
                "lower batch_size or give it more images"
            )

    @property
    def batch_size(self) -> int:
        """Images of a step, in all runs."""
        assert self.config.batch_size
        return self.config.batch_size

    def _largest_batch(self) -> int:
        """The largest power of two up to `LARGEST_BATCH`, half of it for large images, that gives the smallest size of
        every family `enough_steps` on the lowest rung, and is not more than there are images; `SMALLEST_BATCH` or more.
        """
        lowest = self._expected_budgets()[0]
        dearest = max(
            enough_steps(family) * self.flops_per_image(name, self.starting_sizes(name)[0])
            for name, family in self.config.families.items()
        )
        batch = LARGEST_BATCH if self.config.data.image_size <= SMALL_SIDE else LARGEST_BATCH // 2
        while batch > SMALLEST_BATCH and (batch > len(self.source) or batch * dearest > lowest):
            batch //= 2
        return batch

    def _expected_budgets(self) -> tuple[float, ...]:
        """The rungs; where they are not chosen yet, the lowest that they may be if answers get their share."""
        target = self.config.study.target_flops
        ladder = self.config.study.finals * target * (1 / ANSWER_SHARE - 1)
        near = min(target / TARGET_DISTANCE, ladder / (LADDER_RUNS * self.starting))
        return self.budgets or (near / LADDER_SPAN, near / LADDER_SPAN**0.5, near)

    @property
    def starting(self) -> int:
        """The number of sizes that a study begins with, of all families."""
        return sum(map(self._starting, self.config.families))

    def _starting(self, family: str) -> int:
        sizes = self.config.families[family].sizes
        if isinstance(sizes, tuple):
            return len(self.within_limits(family, sizes))
        sizes = max(1, sizes - self.fewer)
        return min(sizes, len(self.within_limits(family, self.ladder(family)))) if self._has_limits else sizes

    def starting_sizes(self, family: str) -> tuple[str, ...]:
        """The presets of a family that a study begins with, small to large: those that it names, or as many neighbours
        on the family's ladder, around the size that is usually best at the middle budget."""
        sizes = self.config.families[family].sizes
        if isinstance(sizes, tuple):
            return self.within_limits(family, sorted(sizes, key=lambda name: self.flops_per_image(family, name)))
        ladder, sizes = self.within_limits(family, self.ladder(family)), self._starting(family)
        if len(ladder) < sizes:
            raise StudyError(f"families.{family}.sizes = {sizes}, but its ladder has {len(ladder)} presets")
        budgets = self._expected_budgets()
        usual = usual_size(math.exp(sum(map(math.log, budgets)) / len(budgets)))
        distance = [abs(math.log(self.flops_per_image(family, name) / usual)) for name in ladder]
        first = max(0, min(distance.index(min(distance)) - sizes // 2, len(ladder) - sizes))
        return ladder[first : first + sizes]

    def beginning_with(self, fewer: int) -> Catalogue:
        """The same models, where families that name no sizes begin with `fewer` than they ask for, with one at least;
        `batch_size` stays."""
        other = copy.copy(self)
        other.fewer = fewer
        return other

    def on(self, budgets: tuple[float, ...]) -> Catalogue:
        """The same models on other rungs: those that were chosen for a study that names none."""
        other = copy.copy(self)
        other.budgets = budgets
        return other

    def of(self, config: StudyConfig) -> Catalogue:
        """The same models for a configuration that differs in nothing that they cost."""
        other = copy.copy(self)
        other.config = config
        return other

    def asking(self, config: StudyConfig) -> Catalogue:
        """The same models on the same data for another target or batch size."""
        other = self.of(config)
        other._choose_batch()
        return other

    def ladder(self, family: str) -> tuple[str, ...]:
        """The presets of the ladder that `family` is on, small to large; ModelError if there is none of that name."""
        return family_ladder(self.config.families[family].ladder or family, self.image_size(family))

    def presets(self, family: str) -> tuple[str, ...]:
        """The family's ladder and the sizes named for it, small to large.

        A variant under a name of its own has the ladder that its sizes are from, if there is one. A family that names
        one size is that one model, as are weights to start from.
        """
        options = self.config.families[family]
        names = set(options.sizes) if isinstance(options.sizes, tuple) else set()
        if options.start or len(names) == 1:
            return self.within_limits(family, tuple(names))
        if options.ladder or family in LADDERS or not names:
            names.update(self.ladder(family))
        for name in tuple(names):
            names.update(ladder_of(name, self.image_size(family)))
        return self.within_limits(family, sorted(names, key=lambda name: (self.flops_per_image(family, name), name)))

    @property
    def _has_limits(self) -> bool:
        study = self.config.study
        return study.max_parameters is not None or study.max_latency_ms is not None

    def within_limits(self, family: str, names: Sequence[str]) -> tuple[str, ...]:
        """Those of the models `names` that are within the limits on the answer; StudyError where none is."""
        study, kept = self.config.study, tuple(names)
        limits: list[tuple[str, float | None, Callable[[str], float], str]] = [
            ("max_parameters", study.max_parameters, lambda name: self.cost(family, name).parameters, ""),
            ("max_latency_ms", study.max_latency_ms, lambda name: self.latency(family, name), " ms an image"),
        ]
        for key, limit, measure, unit in limits:
            if limit is None:
                continue
            found = {name: measure(name) for name in kept}
            kept = tuple(name for name in kept if found[name] <= limit)
            if not kept:
                least = min(found, key=found.__getitem__)
                raise StudyError(
                    f"study.{key} = {limit:g} leaves no size of family {family}: {least} has the least, "
                    f"{found[least]:.4g}{unit}; raise it, or take the family out"
                )
        return kept

    def latency(self, family: str, model: str) -> float:
        """Milliseconds in which the model sees one image on this machine."""
        key = f"{family}/{model}"
        if key not in self.latency_ms:
            config = self.config.run_config(family, model=model, steps=1, learning_rate=1e-3, warmup=0)
            with on_threads(self.config.study.latency_threads):
                self.latency_ms[key] = latency_ms(config, self.source_of(family))
        return self.latency_ms[key]

    def cost(self, family: str, model: str) -> Cost:
        """Parameters and MACs of preset `model` as `family` builds it, with what the objective adds in training."""
        with said_of(f"families.{family}"):
            return self._cost(family, model, self.config.objective_of(family), self.source, is_first=False)

    def _cost(self, family: str, model: str, objective: ObjectiveConfig, source: Source, *, is_first: bool) -> Cost:
        key = (family, model, is_first)
        if key not in self._costs:
            self._costs[key] = objective_cost(
                objective,
                model,
                num_classes=source.num_classes or 1,
                image_size=self.image_size(family),
                in_channels=source.channels,
                **self.config.families[family].model,
            )
        return self._costs[key]

    def flops_per_image(self, family: str, model: str) -> float:
        """Training FLOPs an image: 3 × forward, a FLOP being half a multiply-add; twice that where SAM is used. What is
        learnt first is shared out among the images that are seen after it."""
        own = float(self.cost(family, model).train_flops_per_image) * self._passes(family)
        first = self.config.families[family].pretraining
        return own / (1 - first.share) if first else own

    def _passes(self, family: str) -> int:
        return PASSES if self.config.families[family].optim.sam else 1

    def pretraining_steps(self, family: str, model: str, steps: int) -> int:
        """Steps of what a run of so many steps learns first: as many as its share of the compute buys."""
        first = self.config.families[family].pretraining
        if first is None:
            return 1
        each = self._pretraining_flops(family, model)
        return max(1, round(steps * self.flops_per_image(family, model) * first.share / each))

    def least_pretrained(self, family: str, model: str) -> float:
        """Training FLOPs of the shortest run in which `MIN_FIRST_STEPS` are learnt first; 0 where none are."""
        first = self.config.families[family].pretraining
        if first is None:
            return 0.0
        return MIN_FIRST_STEPS * self.batch_size * self._pretraining_flops(family, model) / first.share

    def _pretraining_flops(self, family: str, model: str) -> float:
        first = self.config.families[family].pretraining
        assert first
        with said_of(f"families.{family}.pretraining"):
            counted = self._cost(family, model, first.objective, self._first_source(family), is_first=True)
        return float(counted.train_flops_per_image) * self._passes(family)

    def _first_source(self, family: str) -> Source:
        """The images that the runs of `family` learn from first."""
        first = self.config.families[family].pretraining
        data = first.images_of(self.config.data) if first else self.config.data
        if data == self.config.data:
            return self.source
        if family not in self._first_sources:
            self._first_sources[family] = open_split(data, "train")
        return self._first_sources[family]

    def steps(self, family: str, model: str, budget: float) -> int:
        """How many steps of `model` `budget` training FLOPs buy, rounded."""
        return round(budget / self.flops_per_image(family, model) / self.batch_size)

    def run(
        self,
        family: str,
        model: str,
        budget: float,
        learning_rate: float,
        *,
        role: str = "ladder",
        number: int = 0,
        recipe: str = "",
        images: int | None = None,
    ) -> PlannedRun:
        """The run of `model` at `budget`; its warm-up is the same at every budget, so that trunks are shared.

        `number` tells copies of a run apart: each has a seed of its own. `recipe` is the level that the planner chose,
        `images` of how many training images it takes.
        """
        shortest, steps = self.steps(family, model, self.budgets[0]), self.steps(family, model, budget)
        warmup = min(self.config.families[family].schedule.warmup, max(1, int(WARMUP_SHARE * shortest)))
        config = self.config.run_config(
            family,
            model=model,
            steps=steps,
            learning_rate=learning_rate,
            warmup=warmup,
            seed=self.config.study.seed + number,
            recipe=recipe,
            pretraining_steps=self.pretraining_steps(family, model, steps),
        )
        if images is not None:
            config = config.model_copy(update={"data": config.data.model_copy(update={"images": images})})
        if family in self.starts:
            config = self.starts[family].of_run(config)
        if role == "final":
            config = self._keeping_its_best(config)
        counted, first = self.cost(family, model), self.config.families[family].pretraining
        return PlannedRun(
            family=family,
            model=model,
            budget=budget,
            role=role,
            flops_per_image=self.flops_per_image(family, model),
            parameters=counted.parameters,
            config=config,
            begun_at=self.begun_at,
            recipe=recipe,
            pretraining_share=first.share if first else 0.0,
        )

    def run_of(self, trial: Trial) -> PlannedRun:
        """The run of the ladder that the adaptive planner calls `trial`."""
        at = trial.family, trial.model, trial.budget, trial.rate
        return self.run(*at, number=trial.copy, recipe=trial.recipe, images=trial.unique_images)

    def _keeping_its_best(self, config: RunConfig) -> RunConfig:
        """`config` with evaluations on the way, whose best weights are those that the run publishes: a long run on
        repeated images may be better before its end. Rows of the journal stay where they are without them."""
        evaluation, log_every = config.evaluation, config.log_every
        if config.guards.spike:
            return config
        every = evaluation.every
        if every is None:
            affordable = EVALUATION_SHARE * 3 * config.images / self.heldout  # forward only
            apart = config.steps / max(min(BEST_OF, affordable), 1)
            every = math.ceil(apart / log_every) * log_every
        evaluation = evaluation.model_copy(update={"every": every, "restore_best": True})
        return config.model_copy(update={"evaluation": evaluation} if every < config.steps else {})
