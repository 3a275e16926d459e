"""Model inspection, as in the ViT paper.

attention   weights, distance, rollout; positions, first filters, principal components of features
pictures    arrays as pictures; reconstructions of a masked autoencoder
model       all of it for one model, into a folder

`pictures` loads no torch, so import the module that you need.
"""

from isoflop import needs_training  # noqa: F401
