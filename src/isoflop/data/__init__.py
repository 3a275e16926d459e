"""Data: the order of the samples, where they come from, and the batches that a run sees."""

from isoflop.data.loader import Batch, batches
from isoflop.data.opening import open_source
from isoflop.data.order import locate
from isoflop.data.source import Source, Split

__all__ = ["Batch", "Source", "Split", "batches", "locate", "open_source"]
