"""Looking inside a model, as the ViT paper does.

attention   weights, distance, rollout
structure   positions, first filters, principal components of features
pictures    arrays as pictures; masked images beside their reconstructions
masked      what a masked autoencoder makes of images, now and while it was trained
model       all of it for one model, into a folder
"""

from isoflop.report.inspection.masked import Made, progress_sheet, reconstruction_sheet
from isoflop.report.inspection.model import distance_figure, inspect_model
from isoflop.report.inspection.pictures import reconstruction_grid, save_png

__all__ = [
    "Made",
    "distance_figure",
    "inspect_model",
    "progress_sheet",
    "reconstruction_grid",
    "reconstruction_sheet",
    "save_png",
]
