"""What a study hands over: the best of its finished runs, the trained answer or a run of the ladder, judged once on the
test part of the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.config import DistilledConfig, StudyConfig, SupervisedConfig
from isoflop.data import open_split
from isoflop.errors import CheckpointError, DataError, ModelError, StudyError
from isoflop.report.inspection.model import save_attention
from isoflop.report.rows import Metric, metric_of
from isoflop.report.text import between, number, quantity
from isoflop.runs.files import read_json, write_json
from isoflop.runs.results import ATTENTION_NUMBERS, JUDGED, Row
from isoflop.study.store import finite_loss
from isoflop.train.device import normalize
from isoflop.transfer import load_backbone
from isoflop.transfer.metrics import LEVEL, wilson_interval
from isoflop.transfer.predict import Evaluation, evaluate


def best_run(rows: Sequence[Row], family: str | None = None) -> Row | None:
    """The finished run with the lowest loss, of one family or of all; of equal ones the answer."""
    done = [r for r in rows if math.isfinite(finite_loss(r)) and family in (None, r["family"])]
    return min(done, key=lambda row: (finite_loss(row), row["role"] != "final"), default=None)


def run_document(row: Row) -> dict[str, Any]:
    """A finished run as JSON values, for `answer.json`."""
    kept = ("run_id", "family", "model", "role", "budget", "images", "learning_rate", "parameters", "heldout_accuracy")
    speed = row["images"] / row["seconds"] if row["seconds"] else None
    recipe = {"recipe": row["recipe"]} if row.get("recipe") else {}
    return {**{name: row[name] for name in kept}, **recipe, "loss": finite_loss(row), "images_per_second": speed}


def _named(run: Mapping[str, Any]) -> str:
    return f"run {run['run_id']} ({run['model']}, {quantity(run['budget'])} FLOPs)"


def _metric(config: StudyConfig) -> Metric:
    return metric_of({"study": {"config": config.model_dump(mode="json")}})


def compared_with_runs(document: Mapping[str, Any], rows: Sequence[Row], config: StudyConfig) -> dict[str, Any]:
    """`best_run` and `advice` for `answer.json`: the best run so far, and a line where the answer is not predicted to
    beat it by more than its uncertainty."""
    best = best_run([row for row in rows if row["role"] == "ladder"])
    if best is None:
        return {"best_run": None, "advice": []}
    found, answer = run_document(best), document["families"][document["best"]]
    interval = answer["interval"]
    advice = []
    if not interval[1] < found["loss"]:
        metric = _metric(config)
        better = found["loss"] <= answer["predicted_loss"]
        advice.append(
            f"{'No gain is predicted' if better else 'The gain is uncertain'}: {_named(found)} is already trained with "
            f"{metric.name} {number(found['loss'])}, and {answer['model']} is predicted at "
            f"{number(answer['predicted_loss'])} ({answer['level']:.0%} interval {between(interval)})."
        )
    return {"best_run": found, "advice": advice}


def selected_run(document: Mapping[str, Any], rows: Sequence[Row], config: StudyConfig) -> dict[str, Any]:
    """What is known once the answers are trained: the run that is `selected` of all, whose weights the study hands
    over; the same by family in `finals`; and `advice`, with a line where it is not the answer."""
    best = best_run(rows)
    finals: dict[str, Any] = {}
    for family, final in document["finals"].items():
        own = best_run(rows, family)
        finals[family] = {**final, "selected": own and own["run_id"]}
    if best is None:
        return {"finals": finals, "selected": None}
    found, advice = run_document(best), list(document.get("advice", ()))
    final = document["finals"].get(document["best"])
    if final and found["run_id"] != final["run_id"]:
        metric = _metric(config)
        loss = final["measured_loss"]
        why = f"is {final['status']}" if loss is None else f"has {metric.name} {number(loss)}"
        advice = [
            f"The study hands over {_named(found)} with {metric.name} {number(found['loss'])}: the trained answer, "
            f"{document['families'][document['best']]['model']}, {why}."
        ]
    elif final:
        advice = []  # it was better than all
    return {"finals": finals, "selected": found, "advice": advice}


# The accuracy: predicted of the answers, measured of what is handed over.


FEWEST_ACCURACIES = 4
USUAL_POWER, POWER_DOUBT = 1.2, 0.25
"""−log accuracy grows with about this power of the loss: 1 where a model is as sure as it is right; small ResNets on
CIFAR-10 go from a loss of 1.5 with 47 % to 0.6 with 78 %."""
SCATTER = 0.06  # of a run's log(−log accuracy) about that
NEAR = 0.5  # runs whose log loss is so much farther away count 0.6 times as much


def predicted_accuracy(rows: Sequence[Row], entry: Mapping[str, Any]) -> dict[str, Any]:
    """`predicted_accuracy` of an answer and its `accuracy_interval`, from its predicted loss, both None where the runs
    do not tell.

    The study's own finished runs give the map, above all those of about that loss: log(−log accuracy) is a line in the
    logarithm of the held-out loss, whose slope is about the usual one.
    """
    nothing = {"predicted_accuracy": None, "accuracy_interval": None}
    told = [
        (math.log(row["heldout_loss"]), row["heldout_accuracy"])
        for row in rows
        if row["status"] == "done" and row["heldout_accuracy"] is not None and 0 < row["heldout_accuracy"] < 1
        if row["target"] == row["heldout_loss"] > 0
    ]
    if len({x for x, _ in told}) < FEWEST_ACCURACIES:
        return nothing
    x, accuracy = np.array(told).T
    y = np.log(-np.log(accuracy))
    weight = np.exp(-0.5 * ((x - math.log(entry["predicted_loss"])) / NEAR) ** 2) + 1e-3
    middle, level = np.average(x, weights=weight), np.average(y, weights=weight)
    weight, opinion = weight / SCATTER**2, POWER_DOUBT**-2
    power = (weight @ ((x - middle) * (y - level)) + opinion * USUAL_POWER) / (weight @ (x - middle) ** 2 + opinion)
    loss = np.array([entry["predicted_loss"], *entry["interval"]])
    with np.errstate(all="ignore"):
        found = [float(value) for value in np.exp(-np.exp(level + power * (np.log(loss) - middle)))]
    if power <= 0 or not all(map(math.isfinite, found)):
        return nothing
    return {"predicted_accuracy": found[0], "accuracy_interval": [found[2], found[1]]}


def accuracy_of(
    directory: Path,
    run: Mapping[str, Any],
    config: StudyConfig,
    heldout: int,
    evaluated: Callable[[Evaluation], None] = lambda _: None,
) -> dict[str, Any] | None:
    """The accuracy of the finished run in `directory`, with its Wilson interval; None where nothing is classified.

    It is that on the test part of the data, which no choice has seen and which is judged once: `evaluated` takes the
    evaluation, which is kept with the run (`JUDGED`). Without a test part it is that on the `heldout` images, which
    have chosen the run.
    """
    objective = config.objective_of(run["family"])
    if not isinstance(objective, SupervisedConfig | DistilledConfig) or run["heldout_accuracy"] is None:
        return None
    kept = {"part": str, "accuracy": float, "interval": list, "level": float, "images": int}
    try:
        found = read_json(directory / JUDGED, kept)
        return {name: found[name] for name in kept}
    except CheckpointError:
        pass
    try:
        judged = evaluate(str(directory), config.data.source, part="test")
    except DataError as error:
        return {**_accuracy("heldout", run["heldout_accuracy"], heldout), "why": " ".join(str(error).split())}
    evaluated(judged)
    found = _accuracy("test", judged.accuracy, judged.images)
    try:
        write_json(directory / JUDGED, {**found, "evaluation": replace(judged, mistakes=[]).document()})
    except OSError as error:
        raise StudyError(f"{directory / JUDGED}: cannot write: {error.strerror}") from error
    return found


def _accuracy(part: str, accuracy: float, images: int) -> dict[str, Any]:
    interval = wilson_interval(round(accuracy * images), images)
    return {"part": part, "accuracy": accuracy, "interval": list(interval), "level": LEVEL, "images": images}


LOOKED_AT = 8  # held-out images that the report shows attention on


def attention_of(directory: Path) -> dict[str, Any] | None:
    """How far the attention of the finished run in `directory` looks, by layer and head; its rollout is a picture
    there. None for a model without attention over all tokens.
    """
    kept = directory / ATTENTION_NUMBERS
    if not kept.exists():
        try:
            model, config = load_backbone(directory)
            heldout = open_split(config.data, "heldout", may_fetch=False)
            pixels, _ = heldout.read(np.arange(min(LOOKED_AT, len(heldout)), dtype=np.int64))
            save_attention(model, normalize(pixels, heldout, next(model.parameters()).device), directory)
        except (ModelError, DataError, CheckpointError):
            return None
        except OSError as error:
            raise StudyError(f"{kept}: cannot write: {error.strerror}") from error
    return read_json(kept, {"layers": list, "pixels": list}, error=StudyError)
