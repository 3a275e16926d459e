"""The live view of a study, or of a single run.

state     the study's folder as it is now, and a run's journal, read as it grows
server    the page of a study or of a run, on loopback, with a token
"""

from isoflop.report.watch.server import Watch, watch

__all__ = ["Watch", "watch"]
