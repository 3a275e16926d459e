"""What one training run is. Everything that decides its outcome is here; nothing is read from anywhere else."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from isoflop.config.fields import (
    BelowOne,
    Count,
    Fraction,
    Maybe,
    Natural,
    NonNegative,
    Positive,
    Scalar,
    Table,
    Text,
    no_effect,
    problem,
)
from isoflop.config.objective import ObjectiveConfig, SupervisedConfig


class ModelConfig(Table):
    """Which backbone: a preset's name; any other key of the table replaces a value of that preset (`depth = 6`)."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Scalar]

    name: Text
    """Preset, one of those that `isoflop models` lists."""

    @property
    def overrides(self) -> dict[str, Scalar]:
        """The values that replace the preset's."""
        return dict(self.__pydantic_extra__)


class DataConfig(Table):
    """Which images, at what size, in which order."""

    source: Text = "fractals?classes=1000"
    """What kind and where: `fractals?classes=1000`, `digits`, or one of `folder:`, `table:`, `parquet:`, `shards:`,
    `hf:`, `torchvision:` and `mixture:` followed by a path, name or list (docs/data.md)."""
    image_size: Count = 32
    """Height and width of the images that the model sees, pixels."""
    heldout: Count = 8192
    """Images kept out of training to measure the loss on."""
    augment: Literal["none", "crop_flip", "crop_flip_erase", "inception", "mae", "jitter", "randaugment", "deit"] = (
        "none"
    )
    """What is done to a training image: a random crop and flip (`crop_flip`: a shift by up to 1/8; `inception`: 8–100 %
    of the area, `mae`: 20–100 %), to which the others add colour jitter, RandAugment or random erasing."""
    mixup: NonNegative = 0.0
    """Mixup of neighbours in a batch and of their labels: α of the Beta distribution of the shares; 0 is none
    (arXiv 1710.09412). With `cutmix` too, each pair is mixed by one of the two."""
    cutmix: NonNegative = 0.0
    """CutMix of neighbours in a batch and of their labels: α of the Beta distribution of the areas; 0 is none
    (arXiv 1905.04899)."""
    seed: Natural = 0
    """Decides the generated images, the held-out ones, the order and the augmentation."""
    workers: Natural = no_effect(0)
    """Processes that prepare batches, which are the same for any number; with 0 the training process does it."""


class OptimizerConfig(Table):
    """The optimizer and what is done to loss and gradient on the way, all but the learning rate."""

    name: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov momentum."""
    weight_decay: NonNegative = 1e-4
    """AdamW takes it off the weights, times the rate; SGD adds it to the gradient. Biases and norms have none."""
    betas: Annotated[tuple[BelowOne, BelowOne], Field(strict=False)] = (0.9, 0.999)
    """AdamW's averaging of the gradient and of its square."""
    momentum: BelowOne = 0.9
    """SGD's Nesterov momentum."""
    agc: Maybe[Positive] = None
    """Adaptive gradient clipping: the largest ratio of a unit's gradient norm to its weight norm (arXiv 2102.06171)."""
    clip: Maybe[Positive] = 1.0
    """The largest norm of the whole gradient; above it the gradient is scaled down."""
    label_smoothing: BelowOne = 0.0
    """Share of the target's probability that is spread over all classes."""


class OptimConfig(OptimizerConfig):
    """The optimizer of a run."""

    learning_rate: Positive = 1e-3
    """The peak of the schedule."""


class ScheduleConfig(Table):
    """The learning rate over the steps, as a multiple of `optim.learning_rate`."""

    name: Literal["constant", "cosine", "rsqrt"] = "constant"
    """Constant or reciprocal-√, each with a linear cooldown at the end, or a half cosine to zero."""
    warmup: Natural = 0
    """Steps of linear rise from zero."""
    cooldown: Fraction = 0.2
    """Share of all steps over which the rate falls linearly to zero at the end; a cosine has none."""
    timescale: Count = 10_000
    """Steps after which the reciprocal-√ rate has fallen to 1/√2 (arXiv 2106.04560)."""


class EvaluationConfig(Table):
    """When and how the held-out images are looked at. They always are at the end."""

    every: Maybe[Count] = None
    """Steps between evaluations; only at the end when left out."""
    batch_size: Count = no_effect(256)
    """Images at a time."""


class CheckpointConfig(Table):
    """When the state of a run is written. An interrupted run continues bit for bit from any checkpoint."""

    every_seconds: Positive = no_effect(30.0)
    """Seconds between checkpoints."""
    keep: Count = no_effect(2)
    """Checkpoints kept; with two, one that is found damaged can be passed over for the one before."""


class SharedConfig(Table):
    """What the runs of a study have in common; a run file holds the same tables."""

    batch_size: Count = 64
    """Images a step."""
    device: Literal["auto", "cpu", "cuda"] = no_effect("auto")
    """Where it trains; `auto` takes a GPU when there is one. Not part of a run's identity, though rounding differs."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the forward pass; weights and optimizer stay in float32."""
    data: DataConfig = DataConfig()
    """The images."""
    objective: ObjectiveConfig = SupervisedConfig()
    """What the backbone is trained for; a bare name stands for a table of defaults."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over time."""
    log_every: Count = no_effect(10)
    """Steps between rows of the journal."""
    tensorboard: bool = no_effect(True)
    """Write the journal for TensorBoard, too."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out loss."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Saving."""


class RunConfig(SharedConfig):
    """One training run."""

    model: ModelConfig
    """The backbone."""
    steps: Count
    """Optimizer steps; the run sees steps × batch_size images."""
    seed: Natural = 0
    """Decides the initial weights and everything random in training."""
    threads: Maybe[Count] = no_effect(None)
    """CPU threads; PyTorch decides when left out. Not part of a run's identity, though rounding differs."""
    optim: OptimConfig = OptimConfig()
    """The optimizer."""

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        falling = 0.0 if self.schedule.name == "cosine" else self.schedule.cooldown * self.steps
        if self.schedule.warmup > self.steps - falling:
            raise problem(
                "schedule.warmup",
                f"= {self.schedule.warmup} does not fit: `steps` = {self.steps} leave "
                f"{int(self.steps - falling)} before the cooldown",
            )
        return self

    @property
    def images(self) -> int:
        """Images seen by the end of the run, repeats counted."""
        return self.steps * self.batch_size
