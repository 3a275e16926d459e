"""The live view of a study, or of a single run.

state     the folder of a study and the journal of a run, read incrementally
server    the page of a study or of a run, on loopback, with a token
"""

from isoflop.report.watch.server import Watch, watch

__all__ = ["Watch", "watch"]
