"""Trained weights that a run starts from."""

from typing import Literal

from isoflop.config.fields import Table, Text, names_weights


class StartConfig(Table):
    """Fine-tuning: where the weights come from, and what becomes of the classifier."""

    weights: Text = names_weights()
    """A `.safetensors` file with the backbone's own names, or the folder of a finished run."""
    head: Literal["new", "keep", "batchnorm"] = "new"
    """A new classifier, the one in the file, or a new one after BatchNorm without affine (arXiv 2111.06377)."""
