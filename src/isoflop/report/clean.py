"""Validation of results read from files: damaged or partial values become missing.

After it, every text cell is text, every number is finite or None, every list is a list, and a law can be evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isoflop.report.law import FamilyLaw
from isoflop.report.rows import Answer, Row, finite

TEXT = ("run_id", "family", "model", "status", "role", "error")
NUMBERS = (
    "flops_per_image", "images", "unique_images", "train_flops", "budget", "learning_rate", "seed", "batch_size",
    "steps", "trunk_steps", "stopped_at", "heldout_loss", "heldout_accuracy", "probe_accuracy", "rankme",
    "seconds", "utilisation", "parameters",
)  # fmt: skip
_ENTRY_NUMBERS = ("flops_per_image", "images", "steps", "learning_rate", "predicted_loss", "level", "p_best",
                  "parameters", "hours", "predicted_accuracy")  # fmt: skip
_LARGEST, _SMALLEST = 1e200, 1e-200
"""Numbers beyond overflow or vanish when they are multiplied, and stand for nothing that can be trained."""


def clean_rows(rows: Sequence[Any]) -> list[Row]:
    """The rows that are tables' rows, with every cell that a figure asks for, of its type."""
    return [_cells(row) for row in rows if isinstance(row, Mapping)]


def clean_answer(answer: Any) -> Answer:
    """The answer with every part of its type; parts that are not are left out, and laws that cannot be evaluated."""
    answer = _mapping(answer)
    kept: Answer = {
        "target_flops": _number(answer.get("target_flops"), above=0),
        "families": {str(name): _entry(entry) for name, entry in _mapping(answer.get("families")).items()},
        "study": dict(_mapping(answer.get("study"))),
        "transfer": {
            "rows": [dict(row) for row in _sequence(_mapping(answer.get("transfer")).get("rows")) if _is(row)]
        },
        "planner": dict(_mapping(answer.get("planner"))),
        "left_out": {str(k): str(v) for k, v in _mapping(answer.get("left_out")).items()},
        "labels": _labels(answer.get("labels")),
        "starts": {str(k): dict(_mapping(v)) for k, v in _mapping(answer.get("starts")).items()},
        "naive_best": str(answer.get("naive_best") or ""),
        "naive_budget": _number(answer.get("naive_budget"), above=0),
        "interim": answer.get("interim") is True,
        "advice": [str(text) for text in _sequence(answer.get("advice"))],
        "hours": dict(_mapping(answer.get("hours"))),
        "selected": dict(_mapping(answer.get("selected"))),
        "attention": {"pixels": _distances(_mapping(answer.get("attention")).get("pixels"))},
    }
    if str(answer.get("best")) in kept["families"]:
        kept["best"] = str(answer["best"])
    final = dict(_mapping(answer.get("final")))
    if final:
        kept["final"] = {
            **final,
            "run_id": str(final.get("run_id")),
            "measured_loss": _number(final.get("measured_loss"), above=0),
        }
    return kept


def clean_confusion(evaluation: Any) -> dict[str, Any]:
    """What an evaluation says of confusions, as far as it is of its types; {} where that is nothing."""
    found = _mapping(evaluation)
    names = [{"name": str(_mapping(score).get("name"))} for score in _sequence(found.get("classes"))]
    table = [list(_sequence(row)) for row in _sequence(found.get("confusion"))]
    counts = all(isinstance(count, int) and 0 <= count < 2**40 for row in table for count in row)
    square = names and len(table) == len(names) and all(len(row) == len(names) for row in table)
    pairs = [list(_sequence(pair)) for pair in _sequence(found.get("confusions"))]
    return {
        "part": str(found.get("part")),
        "classes": names,
        "confusion": table if square and counts and any(map(any, table)) else [],
        "confusions": [(str(p[0]), str(p[1]), p[2]) for p in pairs if len(p) == 3 and isinstance(p[2], int)],
    }


def clean_curves(curves: Any) -> dict[str, dict[str, list[Any]]]:
    """Run id → columns of numbers or None."""
    return {
        str(run): {str(name): [_number(v) for v in _sequence(column)] for name, column in _mapping(curve).items()}
        for run, curve in _mapping(curves).items()
    }


def _cells(row: Mapping[str, Any]) -> Row:
    cells: Row = {name: "" if row.get(name) is None else str(row[name]) for name in TEXT}
    cells |= {name: _number(row.get(name)) for name in NUMBERS}
    cells["role"] = cells["role"] or "ladder"
    return {**{k: v for k, v in row.items() if k not in cells}, **cells}


def _distances(value: Any) -> list[list[float]]:
    """Attention distances by layer and head; [] unless all of them are numbers."""
    layers = [[_number(distance) for distance in _sequence(heads)] for heads in _sequence(value)]
    told = [[distance for distance in heads if distance is not None and distance >= 0] for heads in layers]
    return told if all(heads and len(heads) == len(all_) for heads, all_ in zip(told, layers, strict=True)) else []


def _labels(value: Any) -> dict[str, Any]:
    """What runs on shares of the images say, as far as it is of its types; {} where nothing is."""
    families = {}
    for name, entry in _mapping(_mapping(value).get("families")).items():
        entry = _mapping(entry)
        law = {key: _number(_mapping(entry.get("law")).get(key)) for key in ("level", "slope", "centre")}
        images, loss = ([_number(x, above=0) for x in _sequence(entry.get(key))] for key in ("images", "loss"))
        points = [(u, z) for u, z in zip(images, loss, strict=False) if u is not None and z is not None]
        twice = _mapping(entry.get("twice"))
        ends = [_number(x, above=0) for x in _sequence(twice.get("interval"))]
        ratio = _number(twice.get("loss_ratio"), above=0)
        if points and None not in (*law.values(), *ends, ratio) and len(ends) == 2:
            families[str(name)] = {
                "points": points,
                "law": law,
                "twice": {"loss_ratio": ratio, "interval": ends},
                "budget": _number(entry.get("budget"), above=0),
            }
    crossovers = []
    for found in map(_mapping, _sequence(_mapping(value).get("crossovers"))):
        ends = [_number(x, above=0) for x in _sequence(found.get("interval"))]
        if len(ends) == 2 and None not in ends and (at := _number(found.get("images"), above=0)):
            named = {key: str(found.get(key)) for key in ("earlier", "later")}
            share = _number(found.get("probability")) or 0.0
            crossovers.append({**named, "images": at, "interval": ends, "probability": share})
    return {"families": families, "crossovers": crossovers} if families else {}


def _entry(entry: Any) -> dict[str, Any]:
    entry = _mapping(entry)
    if not entry:
        return {}
    kept = {name: _number(entry.get(name)) for name in _ENTRY_NUMBERS}
    bounds = [_number(bound, above=0) for bound in _sequence(entry.get("interval"))]
    accuracies = [_number(bound) for bound in _sequence(entry.get("accuracy_interval"))]
    law = FamilyLaw.from_entry(entry)
    return {
        **kept,
        **_repeats(entry),
        "model": str(entry.get("model") or ""),
        "run_id": str(entry.get("run_id") or ""),
        "recipe": str(entry.get("recipe") or ""),
        "interval": bounds if len(bounds) == 2 and None not in bounds else None,
        "accuracy_interval": accuracies if len(accuracies) == 2 and None not in accuracies else None,
        "warnings": [str(text) for text in _sequence(entry.get("warnings"))],
        "law": entry.get("law") if law.size_data is not None else None,
        "frontier": entry.get("frontier") if law.frontier_law is not None else None,
        "learning_rate_law": entry.get("learning_rate_law") if law.rate_law is not None else None,
    }


def _repeats(entry: Mapping[str, Any]) -> dict[str, Any]:
    """How often the answer sees its images, and what twice as many would bring; {} where an answer does not say."""
    kept: dict[str, Any] = {name: _number(entry.get(name), above=0) for name in ("epochs", "unique_images")}
    twice = _mapping(entry.get("twice_the_images"))
    ratio, ends = _number(twice.get("loss_ratio"), above=0), [_number(v) for v in _sequence(twice.get("interval"))]
    if ratio is not None and len(ends) == 2 and None not in ends:
        kept["twice_the_images"] = {"loss_ratio": ratio, "interval": ends}
    return kept if None not in (kept["epochs"], kept["unique_images"]) else {}


def _number(value: Any, above: float | None = None) -> float | int | None:
    if (
        not finite(value)
        or abs(value) > _LARGEST
        or 0 < abs(value) < _SMALLEST
        or (above is not None and value <= above)
    ):
        return None
    return value


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is(value: Any) -> bool:
    return isinstance(value, Mapping)


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else ()
