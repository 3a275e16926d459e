"""Configuration of a run. It determines the result; nothing is read from elsewhere."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from isoflop.config.fields import (
    BelowOne,
    Count,
    Fraction,
    Listed,
    Maybe,
    Natural,
    NonNegative,
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
from isoflop.config.objective import (
    DetectConfig,
    DistilledConfig,
    LeJEPAConfig,
    ObjectiveConfig,
    SegmentConfig,
    SupervisedConfig,
    UnlabelledConfig,
)
from isoflop.config.problems import sentences

# Trained weights that a run starts from.


class StartConfig(Table):
    """Fine-tuning: the source of the weights, and how the classifier starts."""

    weights: Text = names_weights()
    """A `.safetensors` file with the backbone's own names, or the folder of a finished run."""
    head: Literal["new", "keep", "batchnorm"] = "new"
    """A new classifier, the one in the file, or a new one after BatchNorm without affine (arXiv 2111.06377)."""
    freeze_batchnorm: bool = later_option(False)
    """BatchNorm normalises by the statistics of the weights, in training too, in place of those of the batch: for few
    images and small batches."""


# Lengths given in epochs, made into steps before a run is validated.


DEFAULT_BATCH = 64


def in_steps(raw: Any) -> Any:
    """`raw` with `steps` and `schedule.warmup` filled in from `epochs` and `warmup_epochs`, where these are given.

    Raises a problem where `data.epoch_images` is missing, or where both ways of saying it are used and differ.
    """
    if not isinstance(raw, Mapping):
        return raw
    epochs, warmup = (_number(raw.get(key)) for key in ("epochs", "warmup_epochs"))
    if epochs is None and warmup is None:
        return raw
    data = raw.get("data", {})
    images = _number(data.get("epoch_images")) if isinstance(data, Mapping) else data.epoch_images
    batch = _number(raw.get("batch_size", DEFAULT_BATCH))
    if images is None:
        key = "warmup_epochs" if epochs is None else "epochs"
        raise problem(key, "needs `data.epoch_images`, the number of images in an epoch")
    if not batch:
        return raw  # told where batch_size is validated
    told = dict(raw)
    if epochs is not None:
        steps = max(1, round(epochs * images / batch))
        if told.setdefault("steps", steps) != steps:
            raise problem("steps", f"= {told['steps']}, but `epochs` = {epochs:g} come to {steps}: {_choose('epochs')}")
    schedule = raw.get("schedule", {})
    if warmup is not None and isinstance(schedule, Mapping):
        steps = round(warmup * images / batch)
        told["schedule"] = {"warmup": steps, **schedule}
        if told["schedule"]["warmup"] != steps:
            given = told["schedule"]["warmup"]
            text = f"= {given}, but `warmup_epochs` = {warmup:g} come to {steps}: {_choose('warmup_epochs')}"
            raise problem("schedule.warmup", text)
    return told


def _choose(key: str) -> str:
    return f"give one of them (`{key}=none` takes the other away)"


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None


# Training on many devices, and what is watched while it goes on.


ENOUGH_LOSSES = 10  # that a spike is judged by


class ParallelConfig(Table):
    """How a run is spread over the processes that torchrun starts. None of it changes what is learned but by rounding.

    The global batch is `batch_size`, whatever the number of processes; each takes its part of it.
    """

    sharding: Literal["none", "full", "hybrid"] = no_effect("none")
    """What a process stores: all weights (`none`), its shard of weights and optimizer state (`full`, FSDP2), or its
    shard among the processes of its host (`hybrid`)."""
    device_batch_size: Maybe[Count] = no_effect(None)
    """Largest microbatch of a device; a larger part of the batch uses gradient accumulation."""
    recompute: Natural = no_effect(0)
    """Gradient checkpointing: recompute the activations of every block (1), every second (2), … to save memory."""
    compile: bool = no_effect(False)
    """Compile each block with `torch.compile`, which takes about a minute at the start."""


class GuardsConfig(Table):
    """What happens when training goes wrong."""

    skip_nonfinite: Natural = 0
    """Steps with a loss or gradient that is not finite, which are skipped without an update. One more ends the run as
    diverged."""
    spike: Maybe[Positive] = None
    """Spike guard: if the loss is this many robust standard deviations above the median of the last `window` steps, the
    run rolls back to its last snapshot and skips the samples since. A snapshot in memory is taken every `window` steps,
    and checkpoints are made of snapshots. Default off."""
    window: Count = 100
    """Steps between snapshots, and the number of losses for the median; at least 10 with `spike`."""
    rollbacks: Natural = 3
    """Number of rollbacks before the run ends as diverged."""
    stuck_seconds: Positive = no_effect(1800.0)
    """A process that makes no step for this time writes its stack to `stuck/`; one of several then exits, so that
    torchrun restarts all."""

    @model_validator(mode="after")
    def _can_judge(self) -> Self:
        if self.spike and self.window < ENOUGH_LOSSES:
            raise problem(
                "window", f"= {self.window} losses are too few to detect a spike: use {ENOUGH_LOSSES} or more"
            )
        return self


# The optimizer of a run, and what is done to gradients and weights around it.


Names = Annotated[tuple[Text, ...], Listed, Field(min_length=1)]
ParameterKind = Literal["kernel", "bias", "gain", "scale", "position", "token"]
OptimizerName = Literal["adamw", "sgd", "adafactor", "lamb", "lars", "muon"]


class GroupConfig(Table):
    """What is different for some of the parameters."""

    parameters: Names
    """Names of parameters of the model; `*` matches any text (`head.*`)."""
    weight_decay: Maybe[NonNegative] = None
    """Overrides `optim.weight_decay`."""
    learning_rate_scale: Positive = 1.0
    """Factor of the learning rate."""
    freeze: bool = False
    """Do not train these parameters."""


class OptimizerConfig(Table):
    """The optimizer and what is done to loss, gradient and weights on the way, all but the learning rate."""

    name: OptimizerName = "adamw"
    """AdamW; SGD with momentum; Adafactor with the momentum in half precision (arXiv 2106.04560); LAMB
    (arXiv 1904.00962); LARS (arXiv 1708.03888); Muon for hidden matrices, at the rate of AdamW, which does the rest."""
    weight_decay: NonNegative = 1e-4
    """Weight decay. SGD and LARS add it to the gradient; the others subtract it from the weights, times the rate."""
    weight_decay_on: Annotated[tuple[ParameterKind, ...], Listed] = later_option(("kernel",))
    """Kinds of parameters with weight decay: `kernel`, `bias`, `gain` (of norms and standardised weights), `scale`
    (LayerScale, SkipInit), `position`, `token` (docs/training.md)."""
    head_weight_decay: Maybe[NonNegative] = None
    """Weight decay of the classifier, if different (arXiv 2106.04560)."""
    betas: Annotated[tuple[BelowOne, BelowOne], Listed] = (0.9, 0.999)
    """Decay of the averages of gradient and squared gradient; of Adafactor, momentum and limit of the second."""
    momentum: BelowOne = 0.9
    """Momentum of SGD, LARS and Muon."""
    nesterov: bool = later_option(True)
    """Whether SGD uses Nesterov momentum."""
    agc: Maybe[Positive] = None
    """Adaptive gradient clipping: the largest ratio of a unit's gradient norm to its weight norm (arXiv 2102.06171)."""
    clip: Maybe[Positive] = 1.0
    """Gradient clipping: the largest norm of the whole gradient."""
    sam: Maybe[Positive] = None
    """Sharpness-aware minimisation: the radius ρ (arXiv 2010.01412). It doubles the cost."""
    layer_decay: Maybe[Annotated[float, Field(gt=0, le=1)]] = None
    """Layer decay: the rate of each layer as a fraction of that of the next one (arXiv 2106.08254); the head has the
    full rate."""
    mup: Maybe[Count] = later_option(None)
    """μP (arXiv 2203.03466): the base width of the first stage. At other widths, rates and initialisation are scaled so
    that one learning rate is suitable for all; for AdamW and MetaFormers."""
    average: Maybe[BelowOne] = None
    """Decay of the EMA (exponential moving average) of the weights, used for evaluation and export; usually 0.9999."""
    label_smoothing: BelowOne = 0.0
    """Label smoothing: the probability that is distributed over all classes."""
    groups: dict[str, GroupConfig] = Field(default={})
    """Rules for parameters by name. Each parameter must then be named by one of them."""

    @model_validator(mode="after")
    def _has_mup(self) -> Self:
        if self.mup and self.name != "adamw":
            raise problem("mup", f"is defined for AdamW, not for {self.name}; take `name` = adamw, or `mup` = none")
        return self


class OptimConfig(OptimizerConfig):
    """The optimizer of a run."""

    learning_rate: Positive = 1e-3
    """Learning rate at the peak of the schedule."""


# What create_model is told by others, and by whom.
NOT_OF_THE_MODEL = {
    "num_classes": "comes from the data (`data.num_classes` is what they must have)",
    "in_channels": "comes from the data",
    "image_size": "is `data.image_size`",
    "seed": "is that of the run",
}


# The presets of now. Those that a later revision made another model, or began with other weights, are another run.
REVISION = 2
REVISED = (
    *("nfnet_", "convformer_", "caformer_", "poolformer_", "mae_", "deit_", "resmlp_", "swin_mixer_"),
    *("pvt_ti", "pvt_s", "pvt_m", "pvt_l"),
)


def is_revised(name: str, options: Mapping[str, Any]) -> bool:
    """Whether the preset `name`, or one of its `options`, stood for something else in an earlier revision."""
    return name.startswith(REVISED) or options.get("positions") == "sincos"


def is_code(name: str) -> bool:
    """Whether a model or a mixer is code of the user's own: `path/to/file.py:Name` or `package.module:Name`."""
    return not name.startswith("timm:") and re.fullmatch(r".*\.py:\w+|\w+(\.\w+)*:\w+", name, re.DOTALL) is not None


def code_of(name: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Of the model `name` and its mixers, those that are code of the user's own."""
    mixers = options.get("mixers", ())
    named = (name, *(mixers if isinstance(mixers, tuple | list) else ()))
    return tuple(dict.fromkeys(each for each in named if isinstance(each, str) and is_code(each)))


class ModelConfig(Table):
    """Which backbone: a preset's name; any other key of the table replaces a value of that preset (`depth = 6`)."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Scalar | Annotated[tuple[Scalar, ...], Listed]]

    name: Text
    """A preset, see `isoflop models`. Or `timm:NAME` for any model of timm, or your own model, `path/to/file.py:Name`
    (docs/models.md)."""
    revision: Annotated[Count, Field(le=REVISION)] = REVISION
    """What presets stand for: 1 is what they were up to version 0.1 (docs/sharing.md)."""

    @model_validator(mode="after")
    def _is_of_the_model(self) -> Self:
        for key in self.__pydantic_extra__:
            if key in NOT_OF_THE_MODEL:
                raise problem(key, f"cannot be set: it {NOT_OF_THE_MODEL[key]}")
        return self

    @property
    def code(self) -> tuple[str, ...]:
        """The code of the user's own that the model is made of: it, or its mixers."""
        return code_of(self.name, self.__pydantic_extra__)

    @property
    def is_revised(self) -> bool:
        """See `is_revised`."""
        return is_revised(self.name, self.__pydantic_extra__)

    @property
    def overrides(self) -> dict[str, Scalar | tuple[Scalar, ...]]:
        """The values that replace the preset's, and the revision of that where it is not today's."""
        earlier = self.revision < REVISION and self.is_revised
        return {**self.__pydantic_extra__, **({"revision": self.revision} if earlier else {})}


EARLIER = "earlier"
"""What a stored run says of its RandAugment that was trained before `data.randaugment` there was."""
RANDAUGMENT = "rand-m9-mstd0.5-inc1"
"""Of DeiT, PoolFormer and the fine-tuning of masked autoencoders."""
WITH_RANDAUGMENT = ("randaugment", "deit")


Augment = Literal[
    "none",
    "crop_flip",
    "crop_flip_erase",
    "inception",
    "mae",
    "jitter",
    "randaugment",
    "deit",
    "big_vision",
    "nfnet",
    "flip",
    "multi_scale",
    "scale_crop",
    "large_scale_jitter",
]

Moment = Annotated[tuple[float, ...], Listed, Field(min_length=1)]
"""A number for each channel."""


class DataConfig(Table):
    """Which images, at what size, in which order."""

    source: Text = names_data("fractals?classes=1000")
    """Kind and place of the images: `fractals?classes=1000`, `digits`, or one of `folder:`, `table:`, `parquet:`,
    `shards:`, `hf:`, `torchvision:` and `mixture:` followed by a path, name or list (docs/data.md)."""
    image_size: Count = 32
    """Height and width of the images of the model, in pixels."""
    heldout: Count = 8192
    """Images that are excluded from training and used for evaluation."""
    images: Maybe[Count] = later_option(None)
    """Of the training images only so many, drawn by `data.seed`; fewer are a part of more. Default: all."""
    augment: Augment = "none"
    """Augmentation of training images: a random crop and flip (`crop_flip`: a shift by up to 1/8; `inception`: 8–100 %
    of the area, `mae`: 20–100 %; as TensorFlow draws it, `nfnet`: 8–100 %, `big_vision`: 5–100 %), to which the others
    add colour jitter, RandAugment or random erasing. Where there are boxes or maps of classes: a flip alone, or after a
    random scale of 60–100 %, 50–200 % or 10–200 %."""
    randaugment: Maybe[Text] = later_option(None)
    """RandAugment after the crop: timm's variant (`rand-m9-mstd0.5-inc1`) or TensorFlow's (`google-n2-m10`). With
    `augment` = randaugment or deit, timm's `rand-m9-mstd0.5-inc1` when left out."""
    interpolation: Literal["bilinear", "bicubic", "random"] = later_option("bilinear")
    """Interpolation of stored images, antialiased. `random` is either one in training, bicubic in evaluation."""
    mean: Maybe[Moment] = later_option(None)
    """To normalize images: the mean of each channel, of pixels in 0 … 1. Weights want that of the images that they were
    trained on. Default: ImageNet's (0.485, 0.456, 0.406) for stored colour images (docs/data.md)."""
    std: Maybe[Moment] = later_option(None)
    """To normalize images: the standard deviation of each channel; given with `mean`."""
    mixup: NonNegative = 0.0
    """Mixup of neighbours in a batch and of their labels: α of the Beta distribution of the mixing ratio; 0 disables it
    (arXiv 1710.09412). With `cutmix` too, each pair is mixed by one of the two."""
    cutmix: NonNegative = 0.0
    """CutMix of neighbours in a batch and of their labels: α of the Beta distribution of the areas; 0 disables it
    (arXiv 1905.04899)."""
    epoch_images: Maybe[Count] = no_effect(None)
    """Images of an epoch, for a run with a length in `epochs`."""
    num_classes: Maybe[Count] = no_effect(None)
    """Classes that the source must have; with it, the cost of a run can be predicted without its data."""
    seed: Seed = 0
    """Seed of generated images, held-out images, sample order and augmentation."""
    workers: Natural = no_effect(0)
    """Processes that prepare batches; 0 uses the training process. The batches do not depend on it."""

    @model_validator(mode="before")
    @classmethod
    def _names_its_randaugment(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("augment") in WITH_RANDAUGMENT:
            given = raw.get("randaugment", "none")
            return {**raw, "randaugment": RANDAUGMENT if given in (None, "none") else given}
        return raw

    @model_validator(mode="after")
    def _resizes_whole_pictures(self) -> Self:
        if self.augment in ("flip", "multi_scale", "scale_crop", "large_scale_jitter"):
            for key, value in (("randaugment", None), ("interpolation", "bilinear")):
                if getattr(self, key) != value:
                    raise problem(
                        key, f"is for pictures of one class, and `augment` = {self.augment} for boxes and maps"
                    )
        return self


class ScheduleConfig(Table):
    """The learning rate over the steps, as a multiple of `optim.learning_rate`."""

    name: Literal["constant", "cosine", "rsqrt", "steps", "poly"] = "constant"
    """Constant or reciprocal-√, each with a linear cooldown at the end; a half cosine to zero; drops to a tenth; or the
    share of steps left to the power of 0.9."""
    warmup: Natural = 0
    """Steps of linear warmup from zero, or from `warmup_from`."""
    warmup_from: BelowOne = later_option(0.0)
    """Start of the warmup, as a fraction of the peak."""
    floor: BelowOne = later_option(0.0)
    """`cosine`: the final rate, as a fraction of the peak."""
    hold: Fraction = later_option(0.0)
    """`cosine`: the fraction of all steps, at the end, with the rate `floor`."""
    cooldown: Fraction = 0.2
    """`constant` and `rsqrt`: the fraction of all steps of linear cooldown to zero at the end."""
    drops: Annotated[tuple[Fraction, ...], Listed] = (0.3, 0.6, 0.9)
    """`steps`: the fractions of all steps after which the rate is divided by ten (arXiv 1912.11370)."""
    timescale: Count = 10_000
    """`rsqrt`: steps after which the rate is 1/√2 of the peak (arXiv 2106.04560)."""


class EvaluationConfig(Table):
    """When and how the held-out images are looked at. They always are at the end."""

    every: Maybe[Count] = None
    """Steps between evaluations; default only at the end."""
    batch_size: Count = no_effect(256)
    """Images per forward pass."""
    calibrate: bool = later_option(False)
    """The held-out loss of images of one class each is that at the best temperature of the logits (arXiv 1706.04599),
    so that a model that is sure of too much, or of too little, is not worse for it: images that repeat cause the first,
    label smoothing the second. Of N images it is at least 1/(N + 1)."""
    restore_best: bool = later_option(False)
    """At the end, restore and publish the weights with the lowest held-out loss in place of the last ones; needs
    `every`. The answers of a study do."""

    @model_validator(mode="after")
    def _has_something_to_restore(self) -> Self:
        if self.restore_best and self.every is None:
            raise problem("restore_best", "needs `every`, the steps between evaluations")
        return self


class CheckpointConfig(Table):
    """When the state of a run is written. An interrupted run continues bit for bit from any checkpoint."""

    every_seconds: Positive = no_effect(30.0)
    """Seconds between checkpoints."""
    keep: Count = no_effect(2)
    """Number of checkpoints to keep; with two, the previous one is used if the last is damaged."""
    keep_every: Maybe[Count] = no_effect(None)
    """Steps: one checkpoint in each interval of this length is kept permanently."""
    keep_best: bool = no_effect(False)
    """Also keep the checkpoint with the lowest held-out loss; one is saved at every new minimum."""
    folder: Maybe[Text] = no_effect(None)
    """Folder of the checkpoints, or an address that fsspec supports (`s3://…`); default in the run's folder. Each
    run has its own folder there, named by its identity."""


class SharedConfig(Table):
    """What the runs of a study have in common; a run file holds the same tables."""

    device: Literal["auto", "cpu", "cuda"] = no_effect("auto")
    """Device; `auto` uses a GPU if there is one. Not part of a run's identity, although rounding differs."""
    precision: Literal["auto", "float32", "bfloat16", "float8"] = "auto"
    """Precision of the forward pass; weights and optimizer stay in float32. `auto` is bfloat16 if the device supports
    it and the model trains faster with it, else float32; the choice is stored with the run or study. `float8` applies
    to linear layers of blocks, and needs torchao and a GPU that supports it."""
    data: DataConfig = DataConfig()
    """The images."""
    objective: ObjectiveConfig = SupervisedConfig()
    """The training objective; a name alone uses its defaults."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over time."""
    log_every: Count = no_effect(10)
    """Steps between rows of the journal."""
    tensorboard: bool = no_effect(True)
    """Also write the journal for TensorBoard."""
    wandb: bool = no_effect(False)
    """Also send the journal to Weights & Biases (`pip install isoflop[wandb]`)."""
    mlflow: bool = no_effect(False)
    """Also send the journal to MLflow (`pip install isoflop[mlflow]`)."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out loss."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Saving."""
    parallel: ParallelConfig = ParallelConfig()
    """Spreading a run over processes and devices."""
    guards: GuardsConfig = GuardsConfig()
    """What is watched."""


class PretrainingTable(Table):
    """What a run learns first, in a run of its own, whose weights it then starts from under a new classifier."""

    objective: ObjectiveConfig
    """Its training objective: one without labels (`masked`), or one with labels on other images."""
    learning_rate: Positive = 1e-3
    """Its learning rate at the peak of the schedule."""
    source: Maybe[Text] = names_data(None)
    """Its images, as in `data.source`; default the training images of the run."""
    all_images: bool = later_option(False)
    """Learn from all training images of `data.source`, where the run itself learns from the labels of some
    (`data.images`, `study.images`). They need no labels."""
    augment: Maybe[Augment] = None
    """Its augmentation, as in `data.augment`; default that of the run. Objectives without labels mix no images."""

    @model_validator(mode="after")
    def _teaches_something_else(self) -> Self:
        if isinstance(self.objective, DetectConfig | SegmentConfig):
            raise problem("objective", f"= {self.objective.name} is not for pretraining: take one of whole images")
        if isinstance(self.objective, SupervisedConfig) and self.source is None:
            raise problem("objective", "= supervised is what the run itself does: give other images as `source`")
        if self.all_images and self.source:
            raise problem("all_images", "= true is for the images of the run: leave out `source`, which names others")
        return self

    def images_of(self, data: DataConfig) -> DataConfig:
        """The images that it learns from, where the run itself learns from `data`."""
        if self.source:
            return data.model_copy(update={"source": self.source, "images": None, "num_classes": None})
        return data.model_copy(update={"images": None}) if self.all_images else data


class PretrainingConfig(PretrainingTable):
    """What one run learns first."""

    steps: Count
    """Its optimizer steps, of the batch size of the run."""


class RunConfig(SharedConfig):
    """One training run."""

    model: ModelConfig
    """The backbone."""
    batch_size: Count = DEFAULT_BATCH
    """Global batch size: images per step."""
    start: Maybe[StartConfig] = None
    """Trained weights to start from; default random."""
    pretraining: Maybe[PretrainingConfig] = later_option(None)
    """What it learns first, from `start` where there are such weights; default nothing."""
    steps: Count
    """Optimizer steps; the run sees steps × batch_size images."""
    epochs: Maybe[Positive] = no_effect(None)
    """Instead of `steps`: the number of passes over `data.epoch_images` images."""
    warmup_epochs: Maybe[NonNegative] = no_effect(None)
    """Instead of `schedule.warmup`: the length of the warmup in epochs."""
    seed: Seed = 0
    """Seed of the initial weights and of the random numbers in training."""
    threads: Maybe[Annotated[Count, Field(le=1024)]] = no_effect(None)
    """CPU threads; default of PyTorch. Not part of a run's identity, although rounding differs."""
    optim: OptimConfig = OptimConfig()
    """The optimizer."""

    @model_validator(mode="before")
    @classmethod
    def _count_steps(cls, raw: Any) -> Any:
        return in_steps(raw)

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        ends = {"cosine": self.schedule.hold, "steps": 0.0, "poly": 0.0}
        falling = ends.get(self.schedule.name, self.schedule.cooldown) * self.steps
        if self.schedule.warmup > self.steps - falling:
            raise problem(
                "schedule.warmup",
                f"= {self.schedule.warmup} does not fit: `steps` = {self.steps} leave "
                f"{int(self.steps - falling)} before the cooldown",
            )
        return self

    @model_validator(mode="after")
    def _floor_fits(self) -> Self:
        schedule = self.schedule
        if schedule.name != "cosine":
            for key in ("floor", "hold"):
                if getattr(schedule, key):
                    raise problem(f"schedule.{key}", f"is of the cosine, not of {schedule.name}")
        if schedule.hold and not schedule.floor:
            raise problem("schedule.hold", "trains at a rate of zero: set `schedule.floor`")
        return self

    @model_validator(mode="after")
    def _mup_fits(self) -> Self:
        if self.optim.mup and not isinstance(self.objective, SupervisedConfig):
            raise problem("optim.mup", f"is defined for supervised training, not for {self.objective.name}")
        return self

    @model_validator(mode="after")
    def _best_is_saved(self) -> Self:
        if self.evaluation.restore_best and self.guards.spike:
            raise problem("evaluation.restore_best", "does not go with `guards.spike`, which saves other steps")
        return self

    @model_validator(mode="after")
    def _has_images_to_compare(self) -> Self:
        if isinstance(self.objective, LeJEPAConfig) and self.batch_size < 2:
            raise problem(
                "batch_size", f"= {self.batch_size}, and lejepa compares the images of a batch: use 2 or more"
            )
        return self

    @model_validator(mode="after")
    def _classifier_is_trained(self) -> Self:
        if not isinstance(self.objective, SupervisedConfig | DistilledConfig):
            for key in ("label_smoothing", "head_weight_decay"):
                if getattr(self.optim, key):
                    raise problem(f"optim.{key}", f"is of a classifier, which {self.objective.name} does not train")
        return self

    @model_validator(mode="after")
    def _can_be_pretrained(self) -> Self:
        if self.pretraining is None:
            return self
        if self.start and self.start.head == "keep":
            raise problem("start.head", "= keep does not go with `[pretraining]`, which trains no such classifier")
        try:
            self.pretraining_run()
        except ValidationError as error:
            (key, *_), told = next(sentences(error, RunConfig, {}))
            raise problem(str(key), f"does not go with `[pretraining]`: {told}") from error
        return self

    def pretraining_run(self) -> Self:
        """The run that trains what `[pretraining]` says.

        It is this one, with the objective, images, steps and learning rate of the table. The warm-up is the same share
        of its steps. What is of fine-tuning or of a classifier alone (layer decay, rules by the names of parameters,
        `evaluation.restore_best`; without labels smoothing, Mixup and CutMix) is left out.
        """
        first = self.pretraining
        assert first
        data, optim = dict(first.images_of(self.data)), dict(self.optim)
        optim |= {"learning_rate": first.learning_rate, "layer_decay": None, "groups": {}}
        data |= {"augment": first.augment, "randaugment": None} if first.augment else {}
        if isinstance(first.objective, UnlabelledConfig):
            data |= {"mixup": 0.0, "cutmix": 0.0}
            optim |= {"label_smoothing": 0.0, "head_weight_decay": None}
        warmup = self.schedule.warmup * first.steps // self.steps
        return type(self).model_validate(
            dict(self)
            | {
                "objective": first.objective,
                "start": self.start and self.start.model_copy(update={"head": "new"}),
                "pretraining": None,
                "steps": first.steps,
                "epochs": None,
                "warmup_epochs": None,
                "data": data,
                "optim": optim,
                "schedule": self.schedule.model_copy(update={"warmup": warmup}),
                "evaluation": self.evaluation.model_copy(update={"restore_best": False}),
            }
        )

    def as_trained(self) -> Self:
        """The same run for who reads its weights: its model is built, and no other weights are fetched for it."""
        kept = {name: value for name, value in self.model.overrides.items() if name != "pretrained"}
        return self.model_copy(update={"model": ModelConfig.model_validate({"name": self.model.name, **kept})})

    @property
    def images(self) -> int:
        """Images seen by the end of the run, repeats counted."""
        return self.steps * self.batch_size
