"""The figures: each file is one idea, a pure function of the table of results (and the answer) to a `Figure`."""

from isoflop.report.figures.agreement import agreement
from isoflop.report.figures.bars import ablation, families_compared, transfer_bars
from isoflop.report.figures.cost import cost
from isoflop.report.figures.curves import curves
from isoflop.report.figures.efficiency import efficiency
from isoflop.report.figures.frontier import frontier
from isoflop.report.figures.hours import hours
from isoflop.report.figures.learning_rates import learning_rates
from isoflop.report.figures.optima import optima
from isoflop.report.figures.profiles import profiles

__all__ = [
    "ablation",
    "agreement",
    "cost",
    "curves",
    "efficiency",
    "families_compared",
    "frontier",
    "hours",
    "learning_rates",
    "optima",
    "profiles",
    "transfer_bars",
]
