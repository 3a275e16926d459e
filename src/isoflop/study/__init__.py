"""Studies: plan a ladder of runs at equal compute, train them, answer, train the answer."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoflop.study.narrator import Narrator
    from isoflop.study.plan import Plan, plan_study
    from isoflop.study.result import StudyResult, open_study
    from isoflop.study.run import run_study
    from isoflop.study.store import Store

__all__ = ["Narrator", "Plan", "Store", "StudyResult", "open_study", "plan_study", "run_study"]

_HOMES = {
    "Narrator": "narrator",
    "Plan": "plan",
    "plan_study": "plan",
    "StudyResult": "result",
    "open_study": "result",
    "run_study": "run",
    "Store": "store",
}


def __getattr__(name: str) -> Any:
    """Imports what is asked for: a study's table is read without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
