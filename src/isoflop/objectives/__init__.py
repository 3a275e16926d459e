"""What a backbone learns from a batch."""

from isoflop.objectives.supervised import Supervised

__all__ = ["Supervised"]
