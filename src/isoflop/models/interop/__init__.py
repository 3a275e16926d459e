"""Weights in the layouts of timm and Hugging Face, read and written."""

from isoflop.models.interop.files import read_weights
from isoflop.models.interop.layouts import names_in
from isoflop.models.interop.transfer import load_weights, shaped_like, to_layout

__all__ = ["load_weights", "names_in", "read_weights", "shaped_like", "to_layout"]
