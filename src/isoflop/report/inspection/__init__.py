"""Looking inside a model, as the ViT paper does.

attention   weights, distance, rollout; positions, first filters, principal components of features
pictures    arrays as pictures; what a masked autoencoder makes of images, now and while it was trained
model       all of it for one model, into a folder

Import the module you need: pictures needs no torch.
"""
