"""Figures and pages made from results.

figure             a figure as plain data; what its colours mean
figures/           the figures, one idea a file
                   into a page that needs nothing else
export             into SVG, PDF and CSV
page, interim      the report of a study; its answer while there is no other
tabled             the report of anybody's table
studies, compare   several studies side by side
watch/             a study or a run that is still going on
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
