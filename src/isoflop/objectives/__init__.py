"""What a backbone learns from a batch."""

from isoflop.objectives.objective import Objective, Uniforms
from isoflop.objectives.supervised import Supervised

__all__ = ["Objective", "Supervised", "Uniforms"]
