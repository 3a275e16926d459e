"""Scaling laws from tables of results, with NumPy and SciPy: fits, intervals, backtests, comparison."""

from isoflop.laws.audit import Finding, audit_curve, audit_size_data
from isoflop.laws.backtest import Backtests
from isoflop.laws.compare import Comparison, Crossover, Match, Standing, compare, match_at_equal_compute
from isoflop.laws.curve import CurveLaw, EnsembleMember, fit_curve
from isoflop.laws.finite_data import FiniteDataLaw, fit_finite_data
from isoflop.laws.fit_table import GroupFit, Prediction, TableFit, fit_table, markdown, picture, svg
from isoflop.laws.forms import FORMS, SOURCES, Form, FormLaw, fit_form, load_table
from isoflop.laws.frontier import FrontierLaw, FrontierPoints, fit_frontier, frontier_points, lower_envelope
from isoflop.laws.labels import LabelsCrossover, LabelsLaw, fit_labels, labels_crossover
from isoflop.laws.learning_rate import LearningRateLaw, Optimum, fit_learning_rate
from isoflop.laws.size_data import SizeDataLaw, fit_size_data
from isoflop.laws.speedup import Speedup, speedup

__all__ = [
    "FORMS",
    "SOURCES",
    "Backtests",
    "Comparison",
    "Crossover",
    "CurveLaw",
    "EnsembleMember",
    "Finding",
    "FiniteDataLaw",
    "Form",
    "FormLaw",
    "FrontierLaw",
    "FrontierPoints",
    "GroupFit",
    "LabelsCrossover",
    "LabelsLaw",
    "LearningRateLaw",
    "Match",
    "Optimum",
    "Prediction",
    "SizeDataLaw",
    "Speedup",
    "Standing",
    "TableFit",
    "audit_curve",
    "audit_size_data",
    "compare",
    "fit_curve",
    "fit_finite_data",
    "fit_form",
    "fit_frontier",
    "fit_labels",
    "fit_learning_rate",
    "fit_size_data",
    "fit_table",
    "frontier_points",
    "labels_crossover",
    "load_table",
    "lower_envelope",
    "markdown",
    "match_at_equal_compute",
    "picture",
    "speedup",
    "svg",
]
