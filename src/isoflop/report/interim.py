"""The laws of a table of runs by family, and the answer so far while a study runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isoflop import laws
from isoflop.errors import LawError
from isoflop.laws.compare import Table
from isoflop.report import rows as table
from isoflop.report.rows import Answer, Row

OUTCOMES = {
    "diverged": "diverged",
    "failed": "failed",
    "stopped": "were stopped halfway",
    "running": "are still running",
    "planned": "have not started",
}


@dataclass(frozen=True)
class FamilyFits:
    """Family → the law of its ladder and the table it was fitted to; and why the other families have none."""

    laws: dict[str, laws.SizeDataLaw]
    tables: dict[str, Table]
    left_out: dict[str, str]


def fit_families(rows: Sequence[Row], families: Iterable[str], *, seed: int = 0, bootstrap: int = 200) -> FamilyFits:
    """The law of each family's ladder: of its best learning rates, with copies averaged."""
    fits = FamilyFits({}, {}, {})
    for family in families:
        own = ladder_of_family(rows, family)
        columns = best_table(own)
        unique = [row.get("unique_images") or math.nan for row in best_rates(own)]
        try:
            fits.laws[family] = laws.fit_size_data(*columns, unique, seed=seed, bootstrap=bootstrap)
        except LawError as error:
            fits.left_out[family] = without_law(own, str(error))
            continue
        fits.tables[family] = best_table(on_all_images(own))
    return fits


def ladder_of_family(rows: Sequence[Row], family: str) -> list[Row]:
    """The rows of a family's ladder."""
    return [row for row in table.of_family(rows, family) if (row.get("role") or "ladder") == "ladder"]


def on_all_images(rows: Sequence[Row]) -> list[Row]:
    """`rows` without the runs on a part of the training images."""
    most = max((row.get("unique_images") or 0 for row in rows), default=0)
    return [row for row in rows if (row.get("unique_images") or most) == most]


def at_the_best_recipe(rows: Sequence[Row]) -> list[Row]:
    """`rows` without those whose level of regularisation is not that of the best run of their model and budget."""
    best = {(r.get("model"), table.rung(r)): r for r in table.best_by(table.measured(rows), "model", "budget")}
    return [r for r in rows if r.get("recipe") == best.get((r.get("model"), table.rung(r)), r).get("recipe")]


def best_table(rows: Iterable[Row]) -> Table:
    """(n, d, loss) of the best learning rates among `rows`."""
    best = best_rates(rows)
    n, d, loss = ([row[name] for row in best] for name in ("flops_per_image", "images", "heldout_loss"))
    return n, d, loss


def without_law(rows: Sequence[Row], problem: str) -> str:
    """Why the ladder `rows` of a family gave no law, in a sentence about its runs."""
    if not rows:
        return "it has no runs"
    count, done = len(rows), len(table.measured(rows))
    states = Counter(str(row.get("status") or "planned") for row in rows)
    states["done"] -= done
    parts = [(states[state], words) for state, words in OUTCOMES.items() if states[state]]
    parts += [(states["done"], "ended without a loss that can be used")] if states["done"] else []
    error = next((str(row["error"]) for row in rows if row.get("status") in table.BROKEN and row.get("error")), "")
    first = f" (the first: {error[:200]})" if error else ""
    if not done and len(parts) == 1:
        return f"all its runs, {count}, {parts[0][1]}{first}"
    told = ", ".join(f"{number} {words}" for number, words in parts)
    if not done:
        return f"none of its {count} runs gave a loss: {told}{first}"
    return f"{done} of its {count} runs gave a loss{f' ({told}{first})' if told else ''}; {problem}"


def best_rates(rows: Iterable[Row]) -> list[Row]:
    """The finished run with the best learning rate and recipe of each model, budget and set of images, small to large;
    copies are one run of their mean loss."""
    copies: dict[tuple[Any, ...], list[Row]] = {}
    for row in table.measured(rows):
        tried = row.get("learning_rate"), row.get("recipe")
        key = row.get("model"), table.rung(row), row.get("unique_images"), *tried
        copies.setdefault(key, []).append(row)
    best: dict[tuple[Any, ...], Row] = {}
    for copy, alike in copies.items():
        mean, run = sum(row["heldout_loss"] for row in alike) / len(alike), copy[:3]
        if run not in best or mean < best[run]["heldout_loss"]:
            best[run] = {**alike[0], "heldout_loss": mean}
    return sorted(best.values(), key=lambda row: (row["flops_per_image"], table.rung(row)))


def interim_answer(
    rows: Sequence[Row], target: float, level: float = 0.9, *, bootstrap: int = 200, families: Sequence[str] = ()
) -> Answer:
    """What the finished runs of the ladder say about `target` training FLOPs, in the form of a study's answer.

    Families with too few runs are in `left_out` with the reason; `families` names some that may have none. The size is
    the law's optimum, the model and the learning rate those of the nearest size measured.
    """
    fits = fit_families(rows, dict.fromkeys([*families, *table.families(rows, {})]), bootstrap=bootstrap)
    answer = answer_of_laws(rows, fits, target, level)
    if fits.laws:
        comparison = laws.compare(fits.tables, target, laws=fits.laws, level=level, bootstrap=bootstrap)
        answer |= comparison_entries(comparison, answer)
    return answer


def answer_of_laws(rows: Sequence[Row], fits: FamilyFits, target: float, level: float) -> Answer:
    """The form of a study's answer for laws fitted already, without a comparison."""
    runs = table.measured(rows, "ladder")
    entries = {f: _entry(law, table.of_family(runs, f), target, level) for f, law in fits.laws.items()}
    answer: Answer = {"target_flops": target, "families": entries, "left_out": fits.left_out, "interim": True}
    if len(entries) == 1:
        answer["best"] = next(iter(entries))
    return answer


def comparison_entries(comparison: laws.Comparison, answer: Answer) -> dict[str, Any]:
    """What a comparison adds to `answer`: the best family, P(best) of each, the naive ranking."""
    for standing in comparison.standings:
        answer["families"][standing.family]["p_best"] = p_best(standing.p_best, len(comparison.standings), answer)
    return {
        "best": comparison.best,
        "naive_best": comparison.naive_best,
        "naive_budget": comparison.naive_compute,
    }


def images_entry(law: laws.SizeDataLaw, target: float, images: float, level: float) -> dict[str, Any]:
    """How many epochs the answer means, and its loss with twice as many different images, as a ratio to the predicted
    one with an interval; {} where images never repeat."""
    if law.unique is None:
        return {}
    entry: dict[str, Any] = {"unique_images": law.unique, "epochs": images / law.unique}
    if law.variants:
        ratio, interval = law.more_images(target, level=level)
        entry["twice_the_images"] = {"loss_ratio": ratio, "interval": list(interval)}
    return entry


def p_best(probability: float, compared: int, answer: Mapping[str, Any]) -> float | None:
    """P(best) among the families that trained; None where only one of several did: it was compared with nothing."""
    return None if compared == 1 and answer["left_out"] else probability


def _entry(law: laws.SizeDataLaw, runs: Sequence[Row], target: float, level: float) -> dict[str, Any]:
    size, images, loss = law.optimal(target)
    nearest = min(table.envelope(runs), key=lambda row: abs(math.log(row["flops_per_image"] / size)))
    return {
        "model": nearest.get("model"),
        "flops_per_image": size,
        "images": int(images),
        "learning_rate": nearest.get("learning_rate"),
        "predicted_loss": loss,
        "interval": list(law.optimal_interval(target, level)["loss"]),
        "level": level,
        "p_best": None,
        "law": law.to_dict(),
        "warnings": [far] if (far := law.beyond_epochs(images)) and far not in law.warnings else [],
        **images_entry(law, target, images, level),
    }
