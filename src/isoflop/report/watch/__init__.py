"""The live view of a study, or of a single run.

tail      a run's journal, read as it grows
state     the study's folder as it is now
page      what is shown
run       the same of a single run
server    on loopback, with a token
"""

from isoflop.report.watch.server import Watch, watch

__all__ = ["Watch", "watch"]
