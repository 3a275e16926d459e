"""The results of a study, read from its folder: the table of its runs, the answer, the figures."""

from __future__ import annotations

import base64
import sys
import warnings
from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from isoflop.errors import MissingExtra, StudyError
from isoflop.report import report_figures, write_report
from isoflop.report.figure import Figure, inline_page
from isoflop.report.law import answer_sentence, study_name
from isoflop.report.page import Picture
from isoflop.report.rows import Answer
from isoflop.report.watch.state import read_curves
from isoflop.runs.files import read_json
from isoflop.runs.results import ATTENTION, COLUMNS, JUDGED, Row, answer_directory, judged, read_document, read_results


class StudyResult:
    """A study as it is in its folder now. `repr` gives the answer in a sentence; a notebook shows the figures.

    Attributes:
        rows: one dict a run, as in `results.csv`; `table` is the same as a frame.
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

    @property
    def table(self) -> Any:
        """`rows` as a frame of pandas or polars: of the one that is imported, else of the one that is installed.

        Raises MissingExtra where neither is installed.
        """
        columns = {column: [row.get(column) for row in self.rows] for column in COLUMNS}
        for name in sorted(("pandas", "polars"), key=lambda name: name not in sys.modules):
            if find_spec(name) is not None:
                # A column may have whole and other numbers, which polars refuses unless told.
                options = {"strict": False} if name == "polars" else {}
                return import_module(name).DataFrame(columns, **options)
        raise MissingExtra("a table needs pandas or polars: install one of them, or use `rows`")

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """The figures of the report by their names (`frontier`, `profiles` …), those that have something to show."""
        curves = read_curves(self.directory, self.rows)
        return {figure.key: figure for figure in report_figures(self.rows, self.answer, curves)}

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


def write_study_report(directory: Path, rows: Sequence[Row], answer: Answer, path: Path | None = None) -> Path:
    """Write the report of the study in `directory` to `path` (by default `report.html` there), with what the folders of
    its runs have: curves, the evaluation of what is handed over, its attention, reconstructions."""
    selected = str((answer.get("selected") or {}).get("run_id") or "")
    run = directory / "runs" / selected
    pictures: list[Picture] = []
    evaluation = None
    if selected and (run / ATTENTION).is_file():
        try:
            png = base64.b64encode((run / ATTENTION).read_bytes()).decode()
        except OSError as error:
            raise StudyError(f"{run / ATTENTION}: not readable: {error.strerror}") from error
        caption = "Held-out images, and where the answer looks: attention followed through all layers."
        pictures.append(Picture("Attention", caption, png))
    if selected and (run / JUDGED).is_file():
        evaluation = read_json(run / JUDGED, error=StudyError).get("evaluation")
    if any(directory.glob("runs/*/reconstructions")):
        try:
            from isoflop.report.inspection.pictures import reconstruction_pictures
        except MissingExtra as error:
            warnings.warn(f"{directory}: the page is without reconstructions: {error}", stacklevel=2)
        else:
            pictures += reconstruction_pictures(directory, rows)
    curves = read_curves(directory, rows)
    return write_report(rows, answer, curves, path or directory / "report.html", pictures, evaluation)


def open_study(directory: Path | str) -> StudyResult:
    """The study in `directory`, finished or not. Raises StudyError where there is none."""
    return StudyResult(directory)
