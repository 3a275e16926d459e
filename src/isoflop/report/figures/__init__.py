"""The figures: each module has one topic and maps the table of results (and the answer) to a `Figure`."""

from isoflop.report.figures.agreement import agreement
from isoflop.report.figures.attention import attention_distance
from isoflop.report.figures.bars import ablation, families_compared, transfer_bars
from isoflop.report.figures.cost import cost, efficiency, hours
from isoflop.report.figures.curves import curves
from isoflop.report.figures.fitted import profiles
from isoflop.report.figures.frontier import frontier
from isoflop.report.figures.labels import labels
from isoflop.report.figures.optima import learning_rates, optima

__all__ = [
    "ablation",
    "agreement",
    "attention_distance",
    "cost",
    "curves",
    "efficiency",
    "families_compared",
    "frontier",
    "hours",
    "labels",
    "learning_rates",
    "optima",
    "profiles",
    "transfer_bars",
]
