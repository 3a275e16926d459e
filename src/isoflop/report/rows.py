"""Queries of the table of results (one dict per run) that figures share."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from isoflop.report.text import number, percent, quantity

# What the runs of a study are judged by, in the words of its axes, tables and sentences.


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
    """The metric of the study of this answer, from the configuration in it; damaged parts are ignored."""
    config = _table(_table(answer.get("study")).get("config"))
    if judged_by := _table(answer.get("study")).get("judged_by"):
        return Metric(str(judged_by), str(judged_by))
    match = re.fullmatch(rf"({'|'.join(_PROTOCOLS)})(\d*)", metric_key(config))
    if match is None:
        objective, *_ = sorted(objectives(config))
        named = {"masked": Metric("held-out reconstruction loss"), "lejepa": Metric("held-out LeJEPA loss")}
        calibrated = _table(config.get("evaluation")).get("calibrate") is True
        return named.get(objective, Metric("calibrated held-out loss") if calibrated else Metric())
    shots, protocol = match[2], _PROTOCOLS[match[1]]
    # Few-shot ridge regression is what papers plainly call the 10-shot error.
    name = f"{shots}-shot error" if shots and match[1] == "fewshot" else f"{protocol} error"
    name = f"{shots}-shot {name}" if shots and match[1] != "fewshot" else name
    dataset = re.split(r"[:/\\]", str(_table(config.get("transfer")).get("dataset") or "digits").rstrip(":/\\"))[-1]
    on = f" on {dataset}" if dataset and len(dataset) <= 24 else ""
    return Metric(name + on, "error", "share of test images")


def objectives(config: Any) -> set[str]:
    """The objectives, by name, that the held-out losses of a study's families are of."""
    families = _table(_table(config).get("families")).values()
    told = [_table(family).get("objective") or _table(config).get("objective") for family in families]
    return {str(_table(objective).get("name", "supervised")) for objective in told or [_table(config).get("objective")]}


def contender(config: Any, family: str) -> str:
    """What tells a family from others beside its models, from the configuration of its study: the weights that it
    starts from, what it learns first, and from what then; "" where that is the study's objective alone."""
    own = _table(_table(_table(config).get("families")).get(family))
    start, first = _table(own.get("start")).get("weights"), _table(own.get("pretraining"))
    steps = [f"from {_last(start)}"] if start else []
    if _table(own.get("model")).get("pretrained"):
        steps = ["from timm's weights"]
    if first:
        share = first.get("share")
        steps.append(_learnt(first.get("objective")) + (f" ({percent(share)} of the compute)" if finite(share) else ""))
    if steps or own.get("objective"):
        steps.append(_learnt(own.get("objective") or _table(config).get("objective")))
    return ", then ".join(steps)


def contenders(config: Any, families: Iterable[str]) -> dict[str, str]:
    """`contender` of each family; where some differ, the others have the study's objective in words."""
    told = {family: contender(config, family) for family in families}
    usual = _learnt(_table(config).get("objective")) if any(told.values()) else ""
    return {family: text or usual for family, text in told.items()}


def _learnt(objective: Any) -> str:
    name = str(_table(objective).get("name", "supervised"))
    if name == "distilled":
        return f"labels and the teacher {_last(_table(objective).get('teacher'))}"
    return "labels" if name == "supervised" else name


def _last(path: Any) -> str:
    """The name of a run's folder or of a file, whatever lies before it."""
    parts = [part for part in re.split(r"[/\\]", str(path)) if part not in ("", "model.safetensors")]
    return parts[-1] if parts else str(path)


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


Row = dict[str, Any]
Answer = dict[str, Any]
BROKEN = ("diverged", "failed")


def finite(value: Any) -> TypeGuard[float]:
    """Whether `value` is a finite number (and not a bool or text)."""
    if type(value) is float:  # asked a million times of a large study
        return math.isfinite(value)
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def compute_of(entry: Row, answer: Row) -> float | None:
    """Training FLOPs of a family's answer: its own where it has them (at equal time they differ), else the target."""
    if positive(entry, "flops_per_image") and positive(entry, "images"):
        return float(entry["flops_per_image"]) * float(entry["images"])
    target = answer.get("target_flops")
    return float(target) if finite(target) else None


def positive(row: Row, *names: str) -> bool:
    """Whether every named cell of `row` is a finite number above zero, so that a logarithmic axis can show it."""
    for name in names:  # half the time of all(), and asked a million times of a large study
        value = row.get(name)
        if not (finite(value) and value > 0):
            return False
    return True


def measured(rows: Iterable[Row], role: str | None = None) -> list[Row]:
    """The finished runs with a loss and a compute that can be drawn, of one role or of all."""
    return [
        row
        for row in rows
        if row.get("status") == "done"
        and positive(row, "train_flops", "heldout_loss", "flops_per_image", "images")
        and (role is None or row.get("role", "ladder") == role)
    ]


def families(rows: Iterable[Row], answer: Answer) -> tuple[str, ...]:
    """The families in the order of the answer: the best, then by their probability to be it, then those that it left
    out, then those of the table alone by first mention."""
    entries = answer.get("families") or {}

    def rank(name: str) -> tuple[bool, float]:
        share = (entries[name] or {}).get("p_best")
        return name != answer.get("best"), -share if finite(share) else 0.0

    seen = dict.fromkeys(str(row["family"]) for row in rows if row.get("family"))
    return tuple(dict.fromkeys([*sorted(map(str, entries), key=rank), *map(str, answer.get("left_out") or ()), *seen]))


def of_family(rows: Iterable[Row], family: str) -> list[Row]:
    """The rows of one family."""
    return [row for row in rows if row.get("family") == family]


def rung(row: Row) -> float:
    """The budget (training FLOPs) that the run was planned for; what it used, where the plan is not known."""
    return float(row["budget"] if positive(row, "budget") else row["train_flops"])


def rungs(rows: Iterable[Row]) -> list[float]:
    """The distinct budgets, ascending."""
    return sorted({rung(row) for row in rows})


def best_by(rows: Iterable[Row], *names: str) -> list[Row]:
    """The row with the lowest loss for each combination of the named cells, in order of appearance; the `budget` of a
    row that was not planned for one is what it used."""
    best: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = tuple(rung(row) if name == "budget" else row.get(name) for name in names)
        if key not in best or row["heldout_loss"] < best[key]["heldout_loss"]:
            best[key] = row
    return list(best.values())


def envelope(rows: Sequence[Row]) -> list[Row]:
    """The best run of each budget, ascending in compute."""
    best: dict[float, Row] = {}
    for row in rows:
        key = rung(row)
        if key not in best or row["heldout_loss"] < best[key]["heldout_loss"]:
            best[key] = row
    return [best[key] for key in sorted(best)]


def final_runs(rows: Iterable[Row], answer: Answer) -> dict[str, Row]:
    """Family → the finished run that trained its answer, for those that were trained."""
    wanted = {(entry or {}).get("run_id") for entry in (answer.get("families") or {}).values()}
    wanted.add((answer.get("final") or {}).get("run_id"))
    found: dict[str, Row] = {}
    for row in measured(rows, "final"):
        if not row.get("family"):
            continue
        if row.get("family") not in found or row.get("run_id") in wanted:
            found[str(row.get("family"))] = row
    return found


def final_run(rows: Iterable[Row], answer: Answer) -> Row | None:
    """The finished run that trained the answer, if there is one."""
    return final_runs(rows, answer).get(str(answer.get("best")))


def interval(entry: Row) -> tuple[float, float] | None:
    """The prediction interval of a family's entry in the answer, or None where it is missing or not of numbers."""
    bounds = entry.get("interval")
    if isinstance(bounds, Sequence) and len(bounds) == 2 and finite(bounds[0]) and finite(bounds[1]):
        return float(bounds[0]), float(bounds[1])
    return None


def describe(row: Row, metric: Metric) -> str:
    """One line about a run, for the pointer."""
    return (
        f"{row.get('model', '?')}, {quantity(row.get('images'), 3)} images, "
        f"learning rate {quantity(row.get('learning_rate'))}, "
        f"{metric.name} {number(row.get('heldout_loss'))}"
    )
