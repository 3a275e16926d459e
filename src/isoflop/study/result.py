"""What a study has found, read from its folder: the table of its runs, the answer, the figures."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from isoflop.errors import StudyError
from isoflop.report import report_figures
from isoflop.report.figure import Figure
from isoflop.report.headline import sentence, study_name
from isoflop.report.inline import inline_page
from isoflop.runs.results import Row
from isoflop.study.store import Store


class StudyResult:
    """A study as it is in its folder now. `repr` gives the answer in a sentence; a notebook shows the figures.

    Attributes:
        rows: one dict a run, as in `results.csv`.
        answer: what `answer.json` says; empty before there is one.
    """

    def __init__(self, directory: Path | str) -> None:
        """Raises StudyError where the folder is no study."""
        self.directory = Path(directory)
        self._store = Store(self.directory)
        self._store.read("study.json")
        self.rows: list[Row] = self._store.judged(self._store.rows())
        try:
            self.answer: dict[str, Any] = self._store.read("answer.json")
        except StudyError:
            self.answer = {}

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """The figures of the report by their names (`frontier`, `profiles` …), those that have something to show."""
        curves = self._store.curves(row["run_id"] for row in self.rows)
        return {figure.key: figure for figure in report_figures(self.rows, self.answer, curves) if figure.panels}

    def run_directory(self, family: str | None = None) -> Path:
        """The folder of the trained answer of a family, by default the best: what `isoflop transfer` takes.

        Raises StudyError where no answer of that family was trained.
        """
        family = family or self.answer.get("best")
        finals = [row for row in self.rows if row["role"] == "final" and row["family"] == family]
        if not finals:
            raise StudyError(f"{self.directory}: no answer of {family or 'any family'} was trained; see study.finals")
        return self._store.run_directory(finals[0]["run_id"])

    def __repr__(self) -> str:
        return f"{study_name(self.answer)} ({self.directory}): {sentence(self.rows, self.answer)}"

    def _repr_html_(self) -> str:
        return inline_page(study_name(self.answer), sentence(self.rows, self.answer), list(self.figures.values()))


def open_study(directory: Path | str) -> StudyResult:
    """The study in `directory`, finished or not. Raises StudyError where there is none."""
    return StudyResult(directory)
