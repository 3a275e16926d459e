"""The optimizer of a run, and what is done to gradients and weights around it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from isoflop.config.fields import (
    BelowOne,
    Count,
    Listed,
    Maybe,
    NonNegative,
    Positive,
    Table,
    Text,
    later_option,
    problem,
)

Names = Annotated[tuple[Text, ...], Listed, Field(min_length=1)]
ParameterKind = Literal["kernel", "bias", "gain", "scale", "position", "token"]
OptimizerName = Literal["adamw", "sgd", "adafactor", "lamb", "lars", "muon"]


class GroupConfig(Table):
    """What is different for some of the parameters."""

    parameters: Names
    """Names of parameters as the model has them; `*` stands for any text (`head.*`)."""
    weight_decay: Maybe[NonNegative] = None
    """In the place of `optim.weight_decay`."""
    learning_rate_scale: Positive = 1.0
    """Times the learning rate."""
    freeze: bool = False
    """Leave these parameters as they are."""


class OptimizerConfig(Table):
    """The optimizer and what is done to loss, gradient and weights on the way, all but the learning rate."""

    name: OptimizerName = "adamw"
    """AdamW; SGD with momentum; Adafactor with the momentum in half precision (arXiv 2106.04560); LAMB
    (arXiv 1904.00962); LARS (arXiv 1708.03888); Muon for hidden matrices, at the rate of AdamW, which does the rest."""
    weight_decay: NonNegative = 1e-4
    """SGD and LARS add it to the gradient, the others take it off the weights, times the rate."""
    weight_decay_on: Annotated[tuple[ParameterKind, ...], Listed] = later_option(("kernel",))
    """The kinds of parameters that decay: `kernel`, `bias`, `gain` (of norms and of standardised weights), `scale`
    (LayerScale, SkipInit), `position`, `token` (docs/training.md)."""
    head_weight_decay: Maybe[NonNegative] = None
    """The classifier's, where it is another (arXiv 2106.04560)."""
    betas: Annotated[tuple[BelowOne, BelowOne], Listed] = (0.9, 0.999)
    """Averaging of the gradient and of its square; of Adafactor, the momentum and the most that the second may grow
    to."""
    momentum: BelowOne = 0.9
    """Of SGD, LARS and Muon."""
    nesterov: bool = later_option(True)
    """SGD has Nesterov's momentum; without, plain momentum."""
    agc: Maybe[Positive] = None
    """Adaptive gradient clipping: the largest ratio of a unit's gradient norm to its weight norm (arXiv 2102.06171)."""
    clip: Maybe[Positive] = 1.0
    """The largest norm of the whole gradient; above it the gradient is scaled down."""
    sam: Maybe[Positive] = None
    """Sharpness-aware minimisation: how far uphill the gradient is taken (arXiv 2010.01412). It doubles the cost."""
    layer_decay: Maybe[Annotated[float, Field(gt=0, le=1)]] = None
    """Each layer learns at this share of the rate of the layer after it (arXiv 2106.08254); the head at the full
    rate."""
    mup: Maybe[Count] = later_option(None)
    """μP (arXiv 2203.03466): the width of the first stage at which rates and starts are those written. At other widths,
    matrices over the width learn and start at a scale at which one learning rate serves all; for AdamW and MetaFormers.
    """
    average: Maybe[BelowOne] = None
    """Decay of a running average of the weights, which is what is evaluated and exported; 0.9999 is usual."""
    label_smoothing: BelowOne = 0.0
    """Share of the target's probability that is spread over all classes."""
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
    """The peak of the schedule."""
