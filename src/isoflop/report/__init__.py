"""Figures and pages made from results.

figure             a figure as plain data, and the meaning of its colours
figures/           the figures, one topic per module
export             SVG, PDF and CSV of figures
page, interim      the report of a study; its answer while the study runs
tabled             the report of a CSV table
compare            the comparison of several studies
watch/             the live view of a study or a run
"""

from isoflop.report.compare import StudyTables, differences, write_comparison
from isoflop.report.export import write_figures
from isoflop.report.page import report_figures, write_report
from isoflop.report.tabled import tabled_report

__all__ = [
    "StudyTables",
    "differences",
    "report_figures",
    "tabled_report",
    "write_comparison",
    "write_figures",
    "write_report",
]
