"""Figures and pages made from results.

figure, theme      a figure as plain data; what its colours mean
figures/           the figures, one idea a file
to_plotly, shell   into a page that needs nothing else
page               the report of a study
"""

from isoflop.report.page import write_report

__all__ = ["write_report"]
