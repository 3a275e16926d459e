"""Which runs are stopped halfway: those that will not become the best of their family and rung, told by their curve.

Everything is known before a stage begins: what the family's finished runs gained from halfway to their end says above
which loss a run of that size, length and learning rate is hopeless. So a run's fate hangs on its own curve and on
earlier stages, not on which of its neighbours was faster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from isoflop import laws
from isoflop.study.arena import Arena, Result
from isoflop.study.belief import DRIFT, Belief, Trial
from isoflop.train.halfway import Limit, halfway

TIE = 0.01
"""A run this share of the loss above the best of its rung is as good as that."""
FEWEST_CURVES = 12
"""Finished runs of the family that it takes to judge one by its curve."""
FEWEST_STEPS = 20
"""At which a run is looked at, at the earliest."""
LEVELS = np.exp(np.linspace(-1.0, 3.0, 801))
"""The halfway losses that are tried for a limit, as multiples of the loss to be reached."""


def limits(
    arena: Arena, beliefs: Mapping[str, Belief], results: Sequence[Result], trials: Sequence[Trial]
) -> dict[Trial, Limit]:
    """The limits of those of `trials` that have one, given all finished runs; none where `arena.give_up` is 0.

    A run is hopeless if the probability that it becomes the best of its family and budget, or ties with it, is below
    `arena.give_up`, by the end that its curve leads to and by the best end that the family's belief expects there.
    """
    found = {}
    for family in {trial.family for trial in trials} if arena.give_up else ():
        ends = curve_ends(results, family)
        if ends is None:
            continue
        for trial in trials:
            if trial.family == family:
                limit = _limit(arena, beliefs[family], ends, results, trial)
                if limit:
                    found[trial] = limit
    return found


def curve_ends(results: Sequence[Result], family: str) -> laws.CurveEnds | None:
    """What the family's finished runs say about how a curve ends; None while they are too few."""
    own = [
        (r.halfway, _features(r.trial), r.loss)
        for r in results
        if r.trial.family == family and r.is_whole and r.halfway and math.isfinite(r.halfway)
    ]
    if len(own) < FEWEST_CURVES:
        return None
    middles, features, ends = zip(*own, strict=True)
    return laws.fit_curve_ends(middles, features, ends)


def beyond(budget: float, known: Sequence[float]) -> float:
    """How much less sure an expected end is above the highest rung known, as deviation of its log: as the belief's walk
    (curves on real runs were 6 to 14 % off there, where they said 6 to 9 %)."""
    return DRIFT * math.sqrt(max(math.log(budget / max(known)), 0.0))


def stopped(trial: Trial, loss: float, results: Sequence[Result], share: float) -> Result:
    """A run that was stopped after a share of its steps with that loss: what it was expected to end with.

    `results` are those that its limit came from.
    """
    ends = curve_ends(results, trial.family)
    assert ends
    mean, deviation = ends.predict(loss, _features(trial))
    drift = beyond(trial.budget, [r.trial.budget for r in results if r.trial.family == trial.family])
    return Result(trial, math.exp(mean[0]), loss, share, math.hypot(float(deviation[0]), drift))


def _features(trial: Trial) -> tuple[float, float, float]:
    return math.log(trial.rate), math.log(trial.n), math.log(trial.d)


def _limit(arena: Arena, belief: Belief, ends: laws.CurveEnds, results: Sequence[Result], trial: Trial) -> Limit | None:
    step = halfway(round(trial.d / arena.batch_size))
    if step < FEWEST_STEPS:
        return None
    best, doubt = _best_of_rung(arena, belief, results, trial)
    doubt = math.hypot(doubt, beyond(trial.budget, [r.trial.budget for r in results if r.trial.family == trial.family]))
    levels = best * LEVELS
    hopeless = ends.probability_below(best * (1 + TIE), levels, _features(trial), doubt) < arena.give_up
    if not hopeless.any():
        return None
    offset, slope = ends.line(_features(trial))
    return Limit(step, float(levels[hopeless.argmax()]), offset, slope, best) if slope > 0 else None


def _best_of_rung(arena: Arena, belief: Belief, results: Sequence[Result], trial: Trial) -> tuple[float, float]:
    """The lowest loss that the family is believed to reach with that budget, over the sizes tried, and how unsure its
    log is."""
    sizes = {r.trial.model for r in results if r.trial.family == trial.family} | {trial.model}
    rung = [arena.trial(trial.family, m, trial.budget, 1.0) for m in sorted(sizes)]
    rung = [at for at in rung if arena.trains(at.family, at.model, at.budget)]
    rung = [arena.trial(at.family, at.model, at.budget, belief.best_rate(at.n, at.d)) for at in rung]
    value, gradient = belief.predict(rung)
    k = int(value.argmin())
    return math.exp(value[k]), math.sqrt(max(float(gradient[k] @ belief.covariance @ gradient[k]), 0.0))
