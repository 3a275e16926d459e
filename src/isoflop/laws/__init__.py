"""Scaling laws from tables of results, on NumPy and SciPy alone: fits, intervals, backtests, comparison."""

from isoflop.laws.backtest import Backtests
from isoflop.laws.compare import Comparison, Standing, compare
from isoflop.laws.frontier import FrontierLaw, FrontierPoints, fit_frontier, frontier_points
from isoflop.laws.learning_rate import LearningRateLaw, Optimum, fit_learning_rate
from isoflop.laws.size_data import SizeDataLaw, fit_size_data

__all__ = [
    "Backtests",
    "Comparison",
    "FrontierLaw",
    "FrontierPoints",
    "LearningRateLaw",
    "Optimum",
    "SizeDataLaw",
    "Standing",
    "compare",
    "fit_frontier",
    "fit_learning_rate",
    "fit_size_data",
    "frontier_points",
]
