"""Studies: plan a ladder of runs at equal compute, train them, compute the answer, train the answer."""

from isoflop import needs_training  # noqa: F401
from isoflop.report.result import StudyResult, open_study
from isoflop.study.plan import Plan, plan_study
from isoflop.study.run import Narrator, run_study
from isoflop.study.store import Store

__all__ = ["Narrator", "Plan", "Store", "StudyResult", "open_study", "plan_study", "run_study"]
