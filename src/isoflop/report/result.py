"""The results of a study, read from its folder: the table of its runs, the answer, the figures."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from isoflop.errors import StudyError
from isoflop.report import report_figures
from isoflop.report.figure import Figure, inline_page
from isoflop.report.law import answer_sentence, study_name
from isoflop.report.watch.state import read_curves
from isoflop.runs.results import Row, answer_directory, judged, read_document, read_results


class StudyResult:
    """A study as it is in its folder now. `repr` gives the answer in a sentence; a notebook shows the figures.

    Attributes:
        rows: one dict a run, as in `results.csv`.
        answer: what `answer.json` says; empty before there is one.
    """

    def __init__(self, directory: Path | str) -> None:
        """Raises StudyError where the folder is no study."""
        self.directory = Path(directory)
        read_document(self.directory, "study.json")
        self.rows: list[Row] = judged(read_results(self.directory))
        try:
            self.answer: dict[str, Any] = read_document(self.directory, "answer.json")
        except StudyError:
            self.answer = {}

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """The figures of the report by their names (`frontier`, `profiles` …), those that have something to show."""
        curves = read_curves(self.directory, self.rows)
        return {figure.key: figure for figure in report_figures(self.rows, self.answer, curves) if figure.panels}

    def run_directory(self, family: str | None = None) -> Path:
        """The folder of the trained answer of a family, by default the best: what `isoflop transfer` takes.

        Raises StudyError where no answer of that family was trained.
        """
        return answer_directory(self.directory, family)

    def __repr__(self) -> str:
        return f"{study_name(self.answer)} ({self.directory}): {answer_sentence(self.rows, self.answer)}"

    def _repr_html_(self) -> str:
        return inline_page(
            study_name(self.answer), answer_sentence(self.rows, self.answer), list(self.figures.values())
        )


def open_study(directory: Path | str) -> StudyResult:
    """The study in `directory`, finished or not. Raises StudyError where there is none."""
    return StudyResult(directory)
