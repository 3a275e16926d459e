"""The figures: each file is one, a pure function of the table of results (and the answer) to a `Figure`."""

from isoflop.report.figures.agreement import agreement
from isoflop.report.figures.curves import curves
from isoflop.report.figures.frontier import frontier
from isoflop.report.figures.learning_rates import learning_rates
from isoflop.report.figures.optima import optima
from isoflop.report.figures.profiles import profiles

__all__ = ["agreement", "curves", "frontier", "learning_rates", "optima", "profiles"]
