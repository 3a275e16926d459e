"""Looking inside a model, as the ViT paper does.

attention   weights, distance, rollout
structure   positions, first filters, principal components of features
pictures    arrays as pictures; masked images beside their reconstructions
model       all of it for one model, into a folder
"""

from isoflop.report.inspection.model import distance_figure, inspect_model
from isoflop.report.inspection.pictures import reconstruction_grid

__all__ = ["distance_figure", "inspect_model", "reconstruction_grid"]
