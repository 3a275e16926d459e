"""What the runs of a study are judged by, in the words of its axes, tables and sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HELDOUT = "heldout_loss"
_PROTOCOLS = {
    "fewshot": "ridge-regression",
    "knn": "nearest-neighbour",
    "logistic": "logistic-regression",
    "finetune": "fine-tuning",
    "probe": "linear-probe",
}


@dataclass(frozen=True)
class Metric:
    """`name` is the whole of it (`10-shot error on digits`), `short` what a sentence calls it (`error`).

    `unit` is what an axis adds; a loss has the unit of its objective, which no reader needs.
    """

    name: str = "held-out loss"
    short: str = "loss"
    unit: str = ""

    @property
    def axis(self) -> str:
        """The title of an axis."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    @property
    def heading(self) -> str:
        """The axis's title as the beginning of a sentence."""
        return self.axis[:1].upper() + self.axis[1:]

    @property
    def capital(self) -> str:
        """The beginning of a figure's title."""
        return self.short.capitalize()


def metric_key(config: Any) -> str:
    """The `target.metric` of a study's configuration; the held-out loss where it does not say."""
    return str(_table(_table(config).get("target")).get("metric") or HELDOUT)


def metric_of(answer: Mapping[str, Any]) -> Metric:
    """The metric of the study whose answer this is, from the configuration in it; whatever is damaged says nothing."""
    config = _table(_table(answer.get("study")).get("config"))
    if judged_by := _table(answer.get("study")).get("judged_by"):
        return Metric(str(judged_by), str(judged_by))
    match = re.fullmatch(rf"({'|'.join(_PROTOCOLS)})(\d*)", metric_key(config))
    if match is None:
        masked = _table(config.get("objective")).get("name") == "masked"
        return Metric("held-out reconstruction loss") if masked else Metric()
    shots, protocol = match[2], _PROTOCOLS[match[1]]
    # Few-shot ridge regression is what papers plainly call the 10-shot error.
    name = f"{shots}-shot error" if shots and match[1] == "fewshot" else f"{protocol} error"
    name = f"{shots}-shot {name}" if shots and match[1] != "fewshot" else name
    dataset = re.split(r"[:/\\]", str(_table(config.get("transfer")).get("dataset") or "digits").rstrip(":/\\"))[-1]
    on = f" on {dataset}" if dataset and len(dataset) <= 24 else ""
    return Metric(name + on, "error", "share of test images")


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
