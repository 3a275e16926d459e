"""What is decided now, how sure that is, and what each further run would be worth.

The decision is a family, a size and a learning rate for the target budget. Its regret is what it is expected to lose
against the best choice if everything were known. A run is worth as much regret as knowing its result is expected to
remove: the knowledge gradient for correlated normal beliefs (Frazier, Powell & Dayanik, 2009), per unit of cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.study.belief import Array, Belief, Trial

DRAWS = 1024
REPEATS = (1.0, 4.0, 16.0)
"""One run often cannot turn a decision, though a few like it would: a run is worth the best mean over so many."""
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(15)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


@dataclass(frozen=True)
class Standing:
    """What a family would do at the target, and how it stands: expected log loss, its deviation, P(best), regret.

    The regret is the share of the loss that this answer is expected to lose against the best if all were known.
    """

    answer: Trial
    log_loss: float
    deviation: float
    p_best: float
    regret: float


@dataclass(frozen=True)
class Outlook:
    """Families, best first."""

    standings: tuple[Standing, ...]

    @property
    def regret(self) -> float:
        """The expected regret of the best answer."""
        return self.standings[0].regret

    def p_best(self, family: str) -> float:
        return next((s.p_best for s in self.standings if s.answer.family == family), 0.0)


@dataclass(frozen=True)
class _Answers:
    """The answers that a family could give: trials at the target, expected log losses (j,), gradients (j, p)."""

    trials: Sequence[Trial]
    mean: Array
    gradient: Array


class Decision:
    """The beliefs about all families and the answers each could give; updated as runs are chosen, not yet made."""

    def __init__(self, beliefs: Mapping[str, Belief], answers: Mapping[str, Sequence[Trial]]) -> None:
        self.beliefs = beliefs
        self.answers = {
            family: _Answers(trials, *beliefs[family].predict(trials)) for family, trials in answers.items()
        }
        self.covariance = {family: beliefs[family].covariance for family in answers}
        size = max(belief.mean.size for belief in beliefs.values())
        # The same draws for the same question, whatever was asked before.
        self.draws = np.random.default_rng(0).standard_normal((len(self.answers), DRAWS // 2, size))

    def outlook(self) -> Outlook:
        """How the families stand before any further run."""
        lowest, deviations = [], []
        for k, (family, answers) in enumerate(self.answers.items()):
            spread = answers.gradient @ _root(self.covariance[family])
            normal = self.draws[k, :, : spread.shape[1]] @ spread.T
            lowest.append((answers.mean + np.concatenate([normal, -normal])).min(axis=1))
            deviations.append(np.sqrt((spread**2).sum(axis=1)))
        losses = np.stack(lowest)
        share = np.bincount(losses.argmin(axis=0), minlength=len(losses)) / losses.shape[1]
        perfect = float(losses.min(axis=0).mean())
        standings = []
        for k, answers in enumerate(self.answers.values()):
            j = int(answers.mean.argmin())
            mean = float(answers.mean[j])
            regret = max(mean - perfect, 0.0)
            standings.append(Standing(answers.trials[j], mean, float(deviations[k][j]), float(share[k]), regret))
        return Outlook(tuple(sorted(standings, key=lambda standing: standing.log_loss)))

    def worth(self, trials: Sequence[Trial], costs: Sequence[float]) -> Array:
        """Regret that each trial of one family is expected to remove, per unit of its cost (m,)."""
        family = trials[0].family
        answers, belief = self.answers[family], self.beliefs[family]
        gradient = belief.predict(trials)[1] @ self.covariance[family]
        shift = gradient @ answers.gradient.T  # covariance of each trial with each answer
        variance = (gradient * belief.predict(trials)[1]).sum(axis=1)
        others = min((a.mean.min() for f, a in self.answers.items() if f != family), default=np.inf)
        now = min(float(answers.mean.min()), others)
        best = np.zeros(len(trials))
        for repeats in REPEATS:
            scale = shift / np.sqrt(variance + belief.noise**2 / repeats)[:, None]
            lowest = (answers.mean[None, :, None] + scale[:, :, None] * NODES).min(axis=1)
            gain = now - np.minimum(lowest, others) @ WEIGHTS
            best = np.maximum(best, gain / repeats)
        return np.asarray(best / np.asarray(costs))

    def chosen(self, trial: Trial) -> None:
        """From now on the result of `trial` counts as known, though not what it is."""
        belief, covariance = self.beliefs[trial.family], self.covariance[trial.family]
        gradient = belief.predict([trial])[1][0]
        pull = covariance @ gradient
        self.covariance[trial.family] = covariance - np.outer(pull, pull) / (gradient @ pull + belief.noise**2)

    def gain(self, trials: Sequence[Trial]) -> float:
        """The regret that the results of all `trials` together are expected to remove."""
        lowest = np.full(DRAWS, np.inf)
        for k, (family, answers) in enumerate(self.answers.items()):
            own = [trial for trial in trials if trial.family == family]
            value = np.broadcast_to(answers.mean, (DRAWS, answers.mean.size))
            if own:
                belief = self.beliefs[family]
                gradient = belief.predict(own)[1]
                joint = gradient @ belief.covariance @ gradient.T + belief.noise**2 * np.eye(len(own))
                shift = answers.gradient @ belief.covariance @ gradient.T @ np.linalg.inv(_root(joint)).T
                half = np.resize(self.draws[k], (DRAWS // 2, len(own)))
                normal = half @ shift.T
                value = answers.mean + np.concatenate([normal, -normal])
            lowest = np.minimum(lowest, value.min(axis=1))
        now = min(float(answers.mean.min()) for answers in self.answers.values())
        return max(now - float(lowest.mean()), 0.0)


def _root(covariance: Array) -> Array:
    """A lower-triangular square root; rounding may have cost a covariance its last positive eigenvalues."""
    return np.asarray(np.linalg.cholesky(covariance + 1e-12 * np.trace(covariance) * np.eye(len(covariance))))
