"""How a backbone is judged on another task, and by which number the runs of a study are."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from isoflop.config.fields import Count, Listed, Maybe, Natural, Positive, Table, Text, names_data, no_effect, problem

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
    """Labelled images a class, one number or several; 0 takes all. Left out, 10 for `ridge` and `finetune`, and all for
    the other protocols."""
    seeds: Seeds = (0, 1, 2)
    """Each draws other images; the spread over them is reported."""
    protocols: Annotated[tuple[Protocol, ...], Listed] = ("ridge", "finetune")
    """On frozen features: ridge regression in closed form, nearest neighbours, logistic regression, the linear probe of
    the masked autoencoders. Training of all weights: a few steps of AdamW (`finetune`), or as a paper does it. `head`
    tries the classifier that the backbone has."""
    finetune_steps: Count = 100
    """Steps of `finetune`."""
    finetune_learning_rate: Positive = 1e-3
    """Peak learning rate of `finetune`."""
    learning_rates: Maybe[Annotated[tuple[Positive, ...], Listed, Field(min_length=1)]] = None
    """Rates that fine-tuning chooses from on a held-out part of its images; those of the protocol when left out."""
    last_blocks: Maybe[Natural] = None
    """Blocks, from the last, that fine-tuning trains beside the classifier; all when left out."""
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
