"""Configuration of a study: a ladder of runs at equal compute for each family, and the budget of the answer.

A study file holds the tables of a run file (`[data]`, `[optim]`, `[schedule]`, ...), shared by all of its runs, except
those that the study chooses (model, steps, learning rate), and a table for each family, which takes precedence.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from isoflop.config.fields import (
    BelowOne,
    Count,
    FilePath,
    Listed,
    Maybe,
    Natural,
    Positive,
    Scalar,
    Seed,
    Table,
    Text,
    later_option,
    names_data,
    names_weights,
    no_effect,
    problem,
)
from isoflop.config.load import Loaded, load, parse, read_toml
from isoflop.config.objective import DistilledConfig, MaskedConfig, ObjectiveConfig, SupervisedConfig
from isoflop.config.problems import sentences
from isoflop.config.run import (
    DEFAULT_BATCH,
    EARLIER,
    NOT_OF_THE_MODEL,
    WITH_RANDAUGMENT,
    ModelConfig,
    OptimConfig,
    OptimizerConfig,
    PretrainingConfig,
    PretrainingTable,
    RunConfig,
    ScheduleConfig,
    SharedConfig,
    StartConfig,
)
from isoflop.errors import ConfigError

# How a backbone is judged on another task, and by which number the runs of a study are.


Seeds = Annotated[tuple[Natural, ...], Listed, Field(min_length=1)]
Shots = Annotated[
    tuple[Natural, ...],
    Listed,
    Field(min_length=1),
    BeforeValidator(lambda value: (value,) if isinstance(value, int) else value),
]
Protocol = Literal[
    "ridge",
    "knn",
    "logistic",
    "probe",
    "finetune",
    "finetune_vit",
    "finetune_bit",
    "finetune_mae",
    "finetune_nfnet",
    "finetune_vtab",
    "head",
]
FEW_SHOT: tuple[Protocol, ...] = ("ridge", "finetune")
DEFAULT_SHOTS = 10


class TransferConfig(Table):
    """Where backbones are tried after pretraining, beside the same backbones with random weights."""

    dataset: Text = names_data("digits")
    """A labelled source, as in `data.source`."""
    shots: Maybe[Shots] = None
    """Labelled images per class, one number or several; 0 is all. Default 10 for `ridge` and `finetune`, and all for
    the other protocols."""
    seeds: Seeds = (0, 1, 2)
    """Seeds of the labelled images; the spread over seeds is reported."""
    protocols: Annotated[tuple[Protocol, ...], Listed] = ("ridge", "finetune")
    """On frozen features: ridge regression in closed form, nearest neighbours, logistic regression, the linear probe of
    masked autoencoders. Training of all weights: a few steps of AdamW (`finetune`), or as a paper does it. `head`
    evaluates the classifier of the backbone."""
    finetune_steps: Count = 100
    """Steps of `finetune`."""
    finetune_learning_rate: Positive = 1e-3
    """Peak learning rate of `finetune`."""
    learning_rates: Maybe[Annotated[tuple[Positive, ...], Listed, Field(min_length=1)]] = None
    """Learning rates to choose from, on a held-out part of the images; default those of the protocol."""
    last_blocks: Maybe[Natural] = None
    """Number of last blocks to fine-tune with the classifier; default all."""
    probe_epochs: Count = 90
    """Epochs of `probe`, of 78 steps each."""
    run: dict[str, Any] = Field(default={})
    """Keys of a run that replace those of the fine-tuning protocols (`run.steps`, `run.optim.learning_rate`)."""
    workers: Natural = no_effect(0)
    """Processes that decode images for features."""

    def shots_of(self, protocol: Protocol) -> tuple[int, ...]:
        """The numbers of labelled images a class for `protocol`; 0 is all."""
        if self.shots is not None:
            return self.shots
        return (DEFAULT_SHOTS,) if protocol in FEW_SHOT else (0,)


METRICS: dict[str, Protocol] = {
    "fewshot": "ridge",
    "knn": "knn",
    "logistic": "logistic",
    "probe": "probe",
    "finetune": "finetune",
}


class TargetConfig(Table):
    """The number by which the runs of a study are judged, and to which the laws are fitted."""

    metric: Text = "heldout_loss"
    """`heldout_loss`, or the error (1 - accuracy) of a transfer protocol with so many labelled images a class:
    `fewshot10`, `knn5`, `logistic25`, `finetune10`, `probe`; without a number, with all images. The task and the
    rest of the protocol are those of `[transfer]`."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.metric != "heldout_loss" and self._match is None:
            known = ", ".join(("heldout_loss", *(f"{name}10" for name in METRICS)))
            raise problem("metric", f'= "{self.metric}" is not one of {known}')
        return self

    @property
    def _match(self) -> re.Match[str] | None:
        return re.fullmatch(rf"({'|'.join(METRICS)})(\d*)", self.metric)

    def protocol(self, transfer: TransferConfig) -> TransferConfig | None:
        """What is to be run for the metric; None for the held-out loss."""
        match = self._match
        if match is None:
            return None
        return transfer.model_copy(update={"protocols": (METRICS[match[1]],), "shots": (int(match[2] or 0),)})


Names = Annotated[tuple[Text, ...], Listed, Field(min_length=1)]
Rates = Annotated[tuple[Positive, ...], Listed, Field(min_length=1)]
Budgets = Annotated[tuple[Positive, ...], Listed, Field(min_length=3)]  # what a law needs


Shares = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Listed, Field(min_length=3)]


class StudyTable(Table):
    """The ladder and the question."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the study and its folder: letters, digits, `.`, `_` and `-`."""
    target_budget: Maybe[Positive] = None
    """Training FLOPs of the answer; default what 70 % of the study's limit buys on this machine."""
    budgets: Maybe[Budgets] = None
    """The rungs: training FLOPs of one run (2 × MACs; a step is 3 × forward), ascending; default by the planner."""
    budget: Maybe[Positive] = None
    """A limit: training FLOPs of the whole study, including answers. The planner then chooses the runs."""
    hours: Maybe[Positive] = None
    """A limit instead of `budget`: hours of this machine with all its workers, answers included."""
    device_hours: Maybe[Positive] = None
    """A limit instead of `budget`: hours of one worker (a CPU core, or an accelerator)."""
    money: Maybe[Positive] = None
    """A limit instead of `budget`: in the currency of `price_per_hour`."""
    price_per_hour: Maybe[Positive] = None
    """Price of a device-hour; without `money`, only for the cost in plan and report."""
    max_parameters: Maybe[Count] = later_option(None)
    """Largest number of parameters of the answer. Larger sizes are neither trained nor answered."""
    max_latency_ms: Maybe[Positive] = later_option(None)
    """Longest time in which the answer may see one image, in milliseconds, measured on this machine before the study
    begins. Slower sizes are neither trained nor answered."""
    latency_threads: Count = later_option(1)
    """CPU threads for `max_latency_ms`."""
    images: Maybe[Shares] = later_option(None)
    """Data axis: shares of the training images, ascending up to 1, on which each family is trained at one budget, to
    tell what more labels would bring and with how many one family overtakes another (`[0.25, 0.5, 1.0]`)."""
    sure: BelowOne = 0.95
    """Early stopping: P(best) at which a study with a limit stops."""
    seed: Seed = 0
    """Seed of the runs; repeats of a run use the next seeds."""
    finals: Count = 1
    """Number of families, best first, that are trained at the target budget."""
    workers: Maybe[Count] = no_effect(None)
    """Runs trained side by side, each with one CPU thread; when left out, one per core of this machine, as many as the
    Ray cluster has room for, or 16 jobs of SLURM."""
    executor: Literal["local", "ray", "slurm"] = no_effect("local")
    """Where runs are trained: processes of this machine, a Ray cluster, or SLURM."""
    address: Maybe[Text] = no_effect(None)
    """Address of the Ray cluster, `HOST:PORT`; default `RAY_ADDRESS`, or the cluster of this machine."""
    runs_per_gpu: Count = no_effect(1)
    """Runs that share a GPU of a Ray cluster."""
    output: Maybe[FilePath] = no_effect(None)
    """Folder of the study; default `studies/NAME`."""

    @property
    def limited(self) -> bool:
        """Whether the study has a budget of its own."""
        return bool(self._limits)

    @property
    def _limits(self) -> list[str]:
        return [name for name in ("budget", "hours", "device_hours", "money") if getattr(self, name) is not None]

    @property
    def target_flops(self) -> float:
        """Training FLOPs of the answer, where that is decided."""
        assert self.target_budget is not None
        return self.target_budget

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        given = self._limits
        if len(given) > 1:
            raise problem(given[1], f"and `{given[0]}` both limit the study: keep one of them")
        if not given and self.budgets is None:
            raise problem("budgets", "is missing: give the rungs, or what the study may cost as `budget` (FLOPs), "
                          "`hours`, `device_hours` or `money`")  # fmt: skip
        if self.money is not None and self.price_per_hour is None:
            raise problem("money", "has no effect without `price_per_hour`: give both")
        if self.budgets is not None:
            _check_ascending("budgets", self.budgets)
            if self.target_budget is None:
                if not given:
                    raise problem("target_budget", "is missing: give the training FLOPs of the answer, or a limit of "
                                  "the study as `hours`")  # fmt: skip
            elif self.target_budget < self.budgets[-1]:
                raise problem("target_budget", f"= {self.target_budget:g} is below the last rung, {self.budgets[-1]:g}")
        if self.hours is not None and self.executor != "local":
            raise problem("hours", f"are of this machine, not of {self.executor}: give `device_hours`")
        if self.images is not None:
            _check_ascending("images", self.images)
            if self.images[-1] != 1.0:
                raise problem("images", f"ends with {self.images[-1]:g}: the last share is 1, all images")
        finals = self.finals * (self.target_budget or 0.0)
        if self.budget is not None and self.budget <= finals:
            raise problem("budget", f"= {self.budget:g} FLOPs leaves nothing to measure: training the answer alone "
                          f"takes {finals:g} (finals × target_budget)")  # fmt: skip
        return self


RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "light": {"data": {"augment": "crop_flip", "randaugment": None, "mixup": 0.0, "cutmix": 0.0},
              "optim": {"label_smoothing": 0.0}},
    "medium": {"data": {"augment": "crop_flip_erase", "randaugment": None, "mixup": 0.0, "cutmix": 0.0},
               "optim": {"label_smoothing": 0.1}},
    "strong": {"data": {"augment": "crop_flip_erase", "randaugment": None, "mixup": 0.0, "cutmix": 1.0},
               "optim": {"label_smoothing": 0.1}},
}  # fmt: skip
"""Levels of regularisation: what each sets of a run. Their order is that of the epochs for which they are best."""


SEARCH = "search"


class FamilyStartConfig(Table):
    """Trained weights that a family starts from, and the classifier that it puts on them."""

    weights: Text = names_weights()
    """Whatever `isoflop transfer` takes: the folder of a run, a file or folder of weights, `timm:NAME`."""
    head: Literal["probe", "new", "keep"] = "probe"
    """The classifier that runs start with: logistic regression on frozen features (`probe`, linear probing then
    fine-tuning, arXiv 2202.10054), one of zeros (`new`), or that of the weights (`keep`)."""

    freeze_batchnorm: bool = True
    """As in `start` of a run. With 1,000 images, batches of 32 and statistics that hardly move (momentum 0.01), 76 % of
    test images were right with it, 65 % without."""

    @property
    def run_head(self) -> Literal["new", "keep"]:
        """`start.head` of a run whose weights have no probe."""
        return "keep" if self.head == "keep" else "new"


class FamilyPretrainingConfig(PretrainingTable):
    """What the runs of a family learn first, and how much of their compute that takes."""

    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the training FLOPs of each run that pretraining takes; the labels get the rest."""


class FamilyConfig(Table):
    """One candidate: its ladder of sizes, its learning rates, and what it does differently from the others."""

    sizes: Names | Count = 4
    """Presets, small to large, or the number of presets to choose from the family's ladder. Of several, neighbours on
    the ladder may be the answer; one that is named is the only one."""
    learning_rates: Maybe[Rates] = None
    """Learning rates to try, ascending; default a grid around the usual rate of the family."""
    ladder: Maybe[Text] = later_option(None)
    """The ladder of presets, for a family under a name of its own; default the ladder of that name."""
    recipe: Maybe[Literal["light", "medium", "strong", "search"]] = later_option(None)
    """Regularisation in place of that of `[data]` and `[optim]`: random crops and flips (`light`), random erasing and
    label smoothing 0.1 with them (`medium`), CutMix too (`strong`). Few images and many epochs want more of it.
    `search`: the planner of a study with a limit chooses the level, as it does the learning rate."""
    start: Maybe[FamilyStartConfig] = later_option(None)
    """Trained weights that every run of the family starts from: fine-tuning, beside families that learn from nothing.
    They are of one model, the only one in `sizes`, and know which it is, if `sizes` is left out."""
    image_size: Maybe[Count] = later_option(None)
    """Replaces `data.image_size`: weights may want larger images than models that learn from nothing."""
    objective: Maybe[ObjectiveConfig] = later_option(None)
    """How the runs of the family learn, in place of the study's `objective`: distillation beside labels, say. Where
    runs are judged by their held-out loss, it must be the same loss for all families."""
    pretraining: Maybe[FamilyPretrainingConfig] = later_option(None)
    """What every run of the family learns first, with a share of its compute; default nothing."""
    model: dict[str, Scalar | Annotated[tuple[Scalar, ...], Listed]] = Field(default={})
    """Values that override those of every preset of the family (`mixers = "identity"`)."""
    optim: OptimizerConfig = OptimizerConfig()
    """Overrides of the study's `[optim]`."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Overrides of the study's `[schedule]`."""

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        _check_ascending("learning_rates", self.learning_rates or ())
        if isinstance(self.sizes, tuple) and len(set(self.sizes)) < len(self.sizes):
            raise problem("sizes", "names a preset twice")
        if (
            self.start
            and "sizes" in self.model_fields_set
            and not (isinstance(self.sizes, tuple) and len(self.sizes) == 1)
        ):
            raise problem("start.weights", "are of one model: name it as the only one in `sizes`, or leave that out")
        for key, reason in ({"name": "is one of `sizes`"} | NOT_OF_THE_MODEL).items():
            if key in self.model:
                raise problem(f"model.{key}", f"cannot be set: it {reason}")
        return self


class LawsConfig(Table):
    """How the laws are fitted."""

    bootstrap: Count = 200
    """Number of bootstrap replicates for intervals and probabilities."""
    level: BelowOne = 0.9
    """Coverage of the intervals."""


class ReportConfig(Table):
    """The page."""

    title: Maybe[Text] = None
    """Title; default the name of the study."""


class StudyConfig(SharedConfig):
    """A study: which family, how large, for how long, at what learning rate."""

    study: StudyTable
    """The ladder and the question."""
    families: Annotated[dict[str, FamilyConfig], Field(min_length=1)]
    """The families, each under the name of its ladder of presets."""
    batch_size: Maybe[Count] = None
    """Global batch size of all runs: images per step. Default: the largest power of two up to 128 (64 for images above
    64 px) with which the smallest size of every family makes 200 steps on the lowest rung; at least 16."""
    optim: OptimizerConfig = OptimizerConfig()
    """The optimizer of every family that does not say otherwise."""
    laws: LawsConfig = no_effect(LawsConfig())
    """Fits."""
    target: TargetConfig = TargetConfig()
    """What the runs are judged by."""
    transfer: TransferConfig = TransferConfig()
    """Transfer of the answers; without the table they are not tried on another task."""
    report: ReportConfig = no_effect(ReportConfig())
    """The page."""
    slurm: dict[str, Scalar] = Field(default={}, json_schema_extra={"in_hash": False})
    """Options of SLURM jobs: `timeout_min`, `mem_gb`, `cpus_per_task`, `gpus_per_node`, and those of sbatch."""

    inherited: ClassVar[tuple[str, ...]] = ("optim", "schedule")

    @classmethod
    def inherits(cls, path: tuple[str | int, ...]) -> tuple[str | int, ...] | None:
        """`families.NAME.optim.x` comes from `optim.x` unless it is set."""
        return path[2:] if len(path) > 3 and path[0] == "families" and path[2] in cls.inherited else None

    @model_validator(mode="before")
    @classmethod
    def _hand_down(cls, raw: Any) -> Any:
        """Put the shared optimizer and schedule under each family's own, so that a family's table is complete."""
        if not isinstance(raw, Mapping) or not isinstance(raw.get("families"), Mapping):
            return raw
        families = dict(raw["families"])
        for name, family in families.items():
            if isinstance(family, Mapping):
                families[name] = {**family, **{key: _over(raw.get(key), family.get(key, {})) for key in cls.inherited}}
        return {**raw, "families": families}

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        for name, family in self.families.items():
            if family.recipe == SEARCH and not self.study.limited:
                raise problem(f"families.{name}.recipe", "= search is for a study with a limit (`study.hours`, "
                              "`study.budget`), whose planner chooses: name a level")  # fmt: skip
        if self.study.finals > len(self.families):
            raise problem("study.finals", f"= {self.study.finals}, but there are {len(self.families)} families to "
                          "answer: each has one answer")  # fmt: skip
        self._check_judged_alike()
        return self

    def _check_judged_alike(self) -> None:
        if self.target.metric != "heldout_loss":
            return
        first, *others = self.families
        for name in others:
            ours, theirs = self.objective_of(name), self.objective_of(first)
            if judged_by(ours) != judged_by(theirs):
                which = name if self.families[name].objective else first
                told = f"{ours.name} and {theirs.name}" if ours.name != theirs.name else f"{ours.name} otherwise"
                raise problem(f"families.{which}.objective", f"makes the held-out losses of {first} and {name} "
                              f"different numbers ({told}): judge all by a transfer metric (`target.metric` = "
                              "fewshot10), or have a family learn so first, as `pretraining`")  # fmt: skip

    def objective_of(self, family: str) -> ObjectiveConfig:
        """How the runs of `family` learn, after what they may learn first."""
        return self.families[family].objective or self.objective

    @property
    def has_scratch(self) -> bool:
        """Whether a family learns to classify these images from nothing: without trained weights or other images."""
        return any(
            isinstance(self.objective_of(name), SupervisedConfig | DistilledConfig)
            and not (family.start or family.model.get("pretrained"))
            and not (family.pretraining and family.pretraining.source)
            for name, family in self.families.items()
        )

    @property
    def has_transfer(self) -> bool:
        """Whether the answers are tried on another task: there is a `[transfer]` table."""
        return "transfer" in self.model_fields_set

    @property
    def directory(self) -> Path:
        """Where the study lives."""
        return self.study.output or Path("studies") / self.study.name

    def run_config(
        self,
        family: str,
        *,
        model: str,
        steps: int,
        learning_rate: float,
        seed: int | None = None,
        warmup: int | None = None,
        recipe: str = "",
        pretraining_steps: int = 1,
    ) -> RunConfig:
        """One run of the study: the shared tables, the family's, and what the planner chose.

        `seed` replaces the study's; `warmup` (steps) the configured one, for runs too short for it; `recipe` is the
        level where the family searches it, by default the first; `pretraining_steps` are for families that learn
        something else first. Raises ConfigError where such a run cannot be.
        """
        own = self.families[family]
        values = {name: getattr(self, name) for name in SharedConfig.model_fields} | {
            "model": ModelConfig.model_validate({**own.model, "name": model}),
            "steps": steps,
            "batch_size": self.batch_size or DEFAULT_BATCH,
            "seed": self.study.seed if seed is None else seed,
            "start": own.start
            and StartConfig(
                weights=own.start.weights, head=own.start.run_head, freeze_batchnorm=own.start.freeze_batchnorm
            ),
            "objective": self.objective_of(family),
            "threads": 1,
            "optim": OptimConfig(**own.optim.model_dump(), learning_rate=learning_rate),
            "schedule": own.schedule if warmup is None else own.schedule.model_copy(update={"warmup": warmup}),
        }
        if own.image_size is not None:
            values["data"] = values["data"].model_copy(update={"image_size": own.image_size})
        if own.pretraining:
            kept = {name: getattr(own.pretraining, name) for name in PretrainingTable.model_fields}
            values["pretraining"] = PretrainingConfig(**kept, steps=pretraining_steps)
        level = (recipe or next(iter(RECIPES))) if own.recipe == SEARCH else own.recipe
        for table, changes in RECIPES.get(level or "", {}).items():
            values[table] = values[table].model_copy(update=changes)
        try:
            return RunConfig.model_validate(values)
        except ValidationError as error:
            _, told = next(sentences(error, RunConfig, values))
            raise ConfigError(f"`families.{family}`: a run of {model} is not possible: {told}") from error


def judged_by(objective: ObjectiveConfig) -> tuple[Any, ...]:
    """What the held-out loss under `objective` is: losses are comparable where this is equal."""
    match objective:
        case SupervisedConfig() | DistilledConfig():
            return "labels", getattr(objective, "loss", None) == "sigmoid"
        case MaskedConfig():
            return objective.name, objective.ratio, objective.sampler, objective.normalise
        case _:
            return tuple(objective.model_dump().items())


def _over(shared: Any, own: Any) -> Any:
    return {**shared, **own} if isinstance(shared, Mapping) and isinstance(own, Mapping) else own


def _check_ascending(key: str, values: Sequence[float]) -> None:
    if any(low >= high for low, high in pairwise(values)):
        raise problem(key, "must ascend")


# The two kinds of configuration file: a run's and a study's.


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> Loaded[RunConfig]:
    """The run in a TOML file, with `key=value` overrides; `ConfigError` lists every problem."""
    if _is_study(path):
        raise ConfigError(f"{path} is a study, not a run: `isoflop study run {path}`")
    return load(path, overrides, RunConfig)


def stored_run(raw: Any, source: str = "configuration") -> RunConfig:
    """The run in the `config.json` of a run's folder; `ConfigError` lists every problem.

    Where no `precision` is stored, it was float32. Where no `model.revision` is, it was trained before there was a
    second; where no `data.randaugment` is, with another one than there is today, which can be read but not continued.
    """
    if isinstance(raw, dict) and isinstance(raw.get("model"), dict):
        raw = {"precision": "float32", **raw, "model": {"revision": 1, **raw["model"]}}
        data = raw.get("data")
        if isinstance(data, dict) and data.get("augment") in WITH_RANDAUGMENT:
            raw = {**raw, "data": {"randaugment": EARLIER, **data}}
    return parse(raw, RunConfig, source)


def stored_study(raw: Any) -> StudyConfig:
    """The study in the `config` of a `study.json`. Options that there are no longer may stand there at the default that
    they had; ConfigError lists every problem."""
    raw = {"precision": "float32", **raw} if isinstance(raw, dict) else raw
    table = raw.get("study") if isinstance(raw, dict) else None
    if isinstance(table, dict) and table.get("give_up") == 0.0:
        raw = {**raw, "study": {name: value for name, value in table.items() if name != "give_up"}}
    return parse(raw, StudyConfig)


def load_study(path: str | Path, overrides: Sequence[str] = (), scale: float = 1.0) -> Loaded[StudyConfig]:
    """The study in a TOML file, with `key=value` overrides, and with `scale` times its FLOPs under a name that says so;
    `ConfigError` lists every problem."""
    if not _is_study(path) and "model" in read_toml(path)[0]:
        raise ConfigError(f"{path} is a run, not a study: `isoflop train {path}`")
    loaded = load(path, overrides, StudyConfig)
    return loaded if scale == 1 else load(path, [*overrides, *_scaled(loaded.config.study, scale)], StudyConfig)


def _scaled(study: StudyTable, scale: float) -> Iterator[str]:
    """Overrides that make the same study with `scale` times the compute."""
    if not 0 < scale < math.inf:
        raise ConfigError(f"--scale is a positive number, not {scale:g}")
    if study.budgets is None and study.budget is None:
        raise ConfigError("--scale multiplies FLOPs (`study.budgets`, `study.target_budget`, `study.budget`), and this "
                          "study has none: set its limit itself, as study.hours=2")  # fmt: skip
    yield f"study.name={study.name}-x{scale:g}"
    for key in ("target_budget", "budget"):
        if (value := getattr(study, key)) is not None:
            yield f"study.{key}={value * scale:g}"
    if study.budgets is not None:
        yield f"study.budgets=[{', '.join(f'{budget * scale:g}' for budget in study.budgets)}]"


def load_any(path: str | Path, overrides: Sequence[str] = ()) -> Loaded[RunConfig] | Loaded[StudyConfig]:
    """Whichever of the two the file holds."""
    return load_study(path, overrides) if _is_study(path) else load_run(path, overrides)


def _is_study(path: str | Path) -> bool:
    return bool({"study", "families"} & read_toml(path)[0].keys())
