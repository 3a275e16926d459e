"""Figures and pages made from results.

figure, theme      a figure as plain data; what its colours mean
figures/           the figures, one idea a file
to_plotly, shell   into a page that needs nothing else
export             into SVG, PDF and CSV
page               the report of a study
studies, compare   several studies side by side
watch/             a study that is still running
"""

from isoflop.report.compare import write_comparison
from isoflop.report.export import write_figures
from isoflop.report.page import report_figures, write_report
from isoflop.report.studies import StudyTables, differences

__all__ = ["StudyTables", "differences", "report_figures", "write_comparison", "write_figures", "write_report"]
