"""The fitted laws of an answer as curves to draw, without fitting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.laws import FrontierLaw, LearningRateLaw, SizeDataLaw
from isoflop.laws.columns import tells_nothing
from isoflop.report import rows as table
from isoflop.report.rows import Answer, Row, metric_of
from isoflop.report.text import between, duration, number, quantity, share_of

Array = NDArray[np.float64]


@dataclass(frozen=True)
class FamilyLaw:
    """What one family's laws say; a missing law gives None or falls back on the other one."""

    size_data: SizeDataLaw | None
    frontier_law: FrontierLaw | None
    rate_law: LearningRateLaw | None = None
    level: float = 0.9

    @staticmethod
    def from_entry(entry: Mapping[str, Any]) -> FamilyLaw:
        """The laws of a family's entry in an answer; those that cannot be read or evaluated are None."""
        level = entry.get("level")
        return FamilyLaw(
            _size_data(entry.get("law")),
            _frontier(entry.get("frontier")),
            _rates(entry.get("learning_rate_law")),
            float(level) if isinstance(level, int | float) and 0 < level < 1 else 0.9,
        )

    def loss(self, n: Array, d: Array) -> Array:
        """Loss at n training FLOPs an image and d images (NaN when only the frontier is known)."""
        if self.size_data is None:
            return np.full(np.broadcast(n, d).shape, np.nan)
        return np.asarray(self.size_data.predict(n, d, best=True), dtype=np.float64)

    def optimum(self, compute: Array) -> tuple[Array, Array]:
        """Best size and images at each compute (NaN when only the frontier is known)."""
        if self.size_data is None:
            return np.full(compute.shape, np.nan), np.full(compute.shape, np.nan)
        n = np.array([self.size_data.optimal(float(c))[0] for c in compute])
        return n, compute / n

    def optimum_bands(self, compute: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]] | None:
        """((lo, hi) of the best size, (lo, hi) of the best images) at each compute, at the answer's level."""
        if self.size_data is None:
            return None
        found = [self.size_data.optimal_interval(float(c), self.level) for c in compute]
        bands = [tuple(np.array([f[name][end] for f in found]) for end in (0, 1)) for name in ("n", "d")]
        return (bands[0][0], bands[0][1]), (bands[1][0], bands[1][1])

    def learning_rate(self, compute: Array) -> Array:
        """The best learning rate of the best size at each compute (NaN when nothing is known about it)."""
        n, d = self.optimum(compute)
        if self.rate_law is None or self.size_data is None:
            return np.full(compute.shape, np.nan)
        return np.asarray(self.rate_law.predict(n, d), dtype=np.float64)

    def frontier(self, compute: Array) -> Array:
        """Loss of the best run at each compute, by the frontier's own law if it was fitted, by size and data if not."""
        if self.frontier_law is not None:
            return np.asarray(self.frontier_law.predict(compute), dtype=np.float64)
        if self.size_data is None:
            return np.full(compute.shape, np.nan)
        return self.size_data.frontier(compute)

    def band(self, compute: Array) -> tuple[Array | None, Array | None]:
        """(lo, hi) of the best run's loss at the answer's level, NaN where that is no answer; or (None, None).

        By the law of size and data, which makes the predictions; by the frontier's where there is no other.
        """
        if self.size_data is not None:
            bounds = [self.size_data.optimal_interval(float(c), self.level)["loss"] for c in compute]
            return _told(np.array([b[0] for b in bounds]), np.array([b[1] for b in bounds]))
        if self.frontier_law is not None:
            lower, upper = self.frontier_law.interval(compute, self.level)
            return _told(lower, upper)
        return None, None

    def exponents(self) -> str:
        """The exponents of size and of images in compute, with their bootstrap intervals: `0.52 (0.44–0.60) and …`."""
        if self.size_data is None:
            return ""
        values = self.size_data.exponents()
        alpha, beta = np.array(self.size_data.replicates, dtype=np.float64).T[3:5]
        shares = {"size": beta / (alpha + beta), "images": alpha / (alpha + beta)}
        ends = [0.5 - self.level / 2, 0.5 + self.level / 2]
        parts = []
        for name, share in shares.items():
            share = share[np.isfinite(share)]
            shown = number(values[name], 2)
            if share.size:
                low, high = np.quantile(share, ends)
                shown += f" ({number(float(low), 2)}–{number(float(high), 2)})"
            parts.append(shown)
        return " and ".join(parts)


def _told(lower: Array, upper: Array) -> tuple[Array, Array]:
    """The ends of an interval, with gaps where it is no answer: it would span the figure."""
    gap = np.array([tells_nothing(float(lo), float(hi)) for lo, hi in zip(lower, upper, strict=True)])
    return np.where(gap, np.nan, lower), np.where(gap, np.nan, upper)


def family_laws(answer: Answer) -> dict[str, FamilyLaw]:
    """Family → its laws, for those that have one. A law that cannot be read or evaluated counts as missing."""
    laws = {str(family): FamilyLaw.from_entry(entry or {}) for family, entry in (answer.get("families") or {}).items()}
    return {family: law for family, law in laws.items() if law.size_data is not None or law.frontier_law is not None}


_BROKEN = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


def _size_data(values: Any) -> SizeDataLaw | None:
    try:
        law = SizeDataLaw.from_dict(values)
        compute = float(law.compute_range[1])
        probe = [*law.optimal(compute), *law.optimal_interval(compute)["loss"], *law.exponents().values()]
        return law if _drawable(probe) else None
    except _BROKEN:
        return None


def _frontier(values: Any) -> FrontierLaw | None:
    try:
        law = FrontierLaw.from_dict(values)
        compute = np.geomspace(law.compute_range[0], 10 * law.compute_range[1], 3)
        low, high = law.interval(compute, 0.9)
        return law if _drawable([*law.predict(compute), *low, *high]) else None
    except _BROKEN:
        return None


def _rates(values: Any) -> LearningRateLaw | None:
    try:
        law = LearningRateLaw.from_dict(values)
        return law if _drawable([*law.predict(np.array([1e6]), np.array([1e5]))]) else None
    except _BROKEN:
        return None


def _drawable(values: list[Any]) -> bool:
    return bool(np.all(np.isfinite(values)) and np.all(np.greater(values, 0)))


# The answer in one sentence, and the warnings that belong to it.


def answer_sentence(rows: Sequence[Row], answer: Answer) -> str:
    """What to train, how sure that is, and whether it came true; what is missing where there is no answer."""
    entries = answer.get("families") or {}
    best = answer.get("best")
    entry = entries.get(best)
    if not entry:
        done = len(table.measured(rows))
        return (
            f"No answer yet: {done} of {len(rows)} runs have finished."
            if rows
            else "No answer yet: no run was planned."
        )
    so_far = "So far: with" if answer.get("interim") else "With"
    rate = f" at learning rate {quantity(entry['learning_rate'])}" if entry.get("learning_rate") else ""
    hours = f" ({duration(3600 * entry['hours'])} here)" if table.finite(entry.get("hours")) else ""
    size = f" ({quantity(entry['parameters'], 3)} parameters)" if table.finite(entry.get("parameters")) else ""
    text = (
        f"{so_far} {quantity(answer.get('target_flops'))} FLOPs of training{hours}, "
        f"train {_model(str(best), entry)}{size} on {quantity(entry.get('images'), 3)} images{rate}"
        f"{with_recipe(entry)}: expected {metric_of(answer).name} {number(entry.get('predicted_loss'))}"
        f"{_interval(entry)}{expected_accuracy(entry)}"
    )
    left_out = answer.get("left_out") or {}
    if table.finite(entry.get("p_best")) and len(entries) > 1:
        those = " that trained" if left_out else ""
        text += f", the best of {len(entries)} families{those} with probability {number(entry['p_best'], 2)}"
    text += "." + _repeated(entry) + "".join(f" {f} is not compared: {why}." for f, why in left_out.items())
    run = table.final_run(rows, answer)
    loss = run["heldout_loss"] if run else (answer.get("final") or {}).get("measured_loss")
    if table.finite(loss):
        text += f" Trained, it reached {number(loss)}, {_verdict(entry, loss)}."
    return " ".join([text, *answer.get("advice", ()), *filter(None, [accuracy_sentence(answer)])])


def with_recipe(entry: Row) -> str:
    """What follows a learning rate: the level of regularisation, where it was chosen, too."""
    return f" with the {entry['recipe']} recipe" if entry.get("recipe") else ""


def expected_accuracy(entry: Row) -> str:
    """What follows an expected loss: the accuracy that it means, with its interval; "" where that is not known."""
    expected, bounds = entry.get("predicted_accuracy"), table.interval({"interval": entry.get("accuracy_interval")})
    if not table.finite(expected):
        return ""
    shown = f" ({number(100 * bounds[0], 1)}–{share_of(bounds[1])})" if bounds else ""
    return f", held-out accuracy about {share_of(expected)}{shown}"


def accuracy_sentence(answer: Mapping[str, Any]) -> str:
    """The accuracy of the run that the study hands over, with its interval, and on which images; "" where there is
    none."""
    found = (answer.get("selected") or {}).get("accuracy")
    if not isinstance(found, dict) or (bounds := table.interval(found)) is None:
        return ""
    accuracy, images, level = (found.get(name) for name in ("accuracy", "images", "level"))
    if not (table.finite(accuracy) and table.finite(images) and table.finite(level)):
        return ""
    is_test = found.get("part") == "test"
    return (
        f"{'Test' if is_test else 'Held-out'} accuracy {share_of(accuracy)} ({100 * level:.0f}\u00a0% interval "
        f"{number(100 * bounds[0], 1)}–{share_of(bounds[1])}) on {images:,.0f} images, which "
        + ("no choice has used." if is_test else "have chosen the run too: the data have no test part.")
    )


def _repeated(entry: Row) -> str:
    """How often the answer sees its images, and what twice as many would bring; "" where they never repeat."""
    if not table.finite(entry.get("epochs")) or entry["epochs"] <= 1:
        return ""
    text = f" It sees each of {quantity(entry.get('unique_images'), 3)} images {number(entry['epochs'], 1)} times"
    twice = entry.get("twice_the_images")
    if isinstance(twice, dict) and table.finite(twice.get("loss_ratio")):
        low, high = (f"{100 * (v - 1):+.1f}".replace("-", "−") for v in twice["interval"])
        loss = number(twice["loss_ratio"] * entry["predicted_loss"])
        text += f"; with twice as many the loss would be {loss} ({low} to {high}\u00a0%)"
    return f"{text}."


def _model(family: str, entry: Row) -> str:
    model = str(entry.get("model") or family)
    return model if family in model else f"{family} {model}"


def _interval(entry: Row) -> str:
    interval, level = table.interval(entry), entry.get("level")
    if interval is None:
        return ""
    shown = f"{100 * level:.0f} % interval " if table.finite(level) else "interval "
    return f" ({shown}{between(interval)})"


def _verdict(entry: Row, loss: float) -> str:
    interval = table.interval(entry)
    if interval is not None and not tells_nothing(*interval):
        if interval[0] <= loss <= interval[1]:
            return "inside the interval"
        return "below the interval" if loss < interval[0] else "above the interval"
    predicted = entry.get("predicted_loss")
    if table.finite(predicted) and predicted:
        return f"{100 * (loss / predicted - 1):+.1f} % from the prediction".replace("-", "−")
    return "with no prediction to compare it with"


def headline(rows: Sequence[Row], answer: Answer) -> str:
    """What to use or to train, in one short sentence; what is missing where there is no answer."""
    entry = (answer.get("families") or {}).get(answer.get("best"))
    if not entry:
        return answer_sentence(rows, answer)
    run: Row | None = answer.get("selected") or table.final_run(rows, answer)
    shown = run or entry
    size = f" ({quantity(shown['parameters'], 3)} parameters)" if table.finite(shown.get("parameters")) else ""
    rate = f" at learning rate {quantity(shown['learning_rate'])}" if shown.get("learning_rate") else ""
    rate += with_recipe(entry) if shown.get("family", answer.get("best")) == answer.get("best") else ""
    how = f"on {quantity(shown.get('images'), 3)} images{rate}"
    model = _model(str(shown.get("family") or answer.get("best")), shown)
    if run is None:
        return f"{'So far: train' if answer.get('interim') else 'Train'} {model}{size} {how}."
    text = f"Use {model}{size}, which this study has trained {how}."
    return text if run.get("role") == "final" else f"{text} No other run of the study has a lower loss."


MOST_WARNINGS = 3  # that are read where there are many

# What a warning says, from the one that matters most, and what to do where it does not say so itself.
_REMEDIES = (
    ("did worse than a smaller one", ""),
    ("of guessing among", "raise the budgets"),
    ("no law was fitted", "give the study more hours"),
    ("backtests fell inside", "expect misses of the intervals until a larger budget is measured"),
    ("no budget has three sizes", "give the study more hours, or name more sizes"),
    ("epochs, but no run had more", "add images, or expect less of the last epochs"),
    ("one of the two terms vanished", "measure sizes that lie further apart"),
    ("smallest or largest", ""),
    ("of the grid", ""),
    ("no irreducible loss", "measure a larger budget before trusting the law far beyond the ladder"),
    ("weak opinions fill in", "measure more budgets"),
)


def answer_warnings(answer: Answer) -> list[str]:
    """The warnings of the families and their laws, the weightiest first, those of the best family before others; each
    with the families that it is of, and with what to do."""
    found: dict[str, list[str]] = {}
    for family in table.families((), answer):
        entry = (answer.get("families") or {}).get(family) or {}
        sources: list[Any] = [entry, entry.get("law") or {}, entry.get("frontier") or {}]
        texts = [str(text) for source in sources for text in source.get("warnings") or ()]
        for text in dict.fromkeys(texts):
            found.setdefault(text, []).append(family)

    def weight(text: str) -> int:
        return next((place for place, (part, _) in enumerate(_REMEDIES) if part in text), len(_REMEDIES) // 2)

    told = []
    for text in sorted(found, key=lambda text: (answer.get("best") not in found[text], weight(text))):
        what = next((remedy for part, remedy in _REMEDIES if part in text), "")
        told.append(f"{', '.join(found[text])}: {text}" + (f" – {what}" if what else ""))
    return told


def study_name(answer: Answer) -> str:
    """The title of the study, or its name, or `study` when it has neither."""
    study = answer.get("study") or {}
    return str(study.get("title") or study.get("name") or "study")
