"""Reading and writing of weights in the layouts of timm, Hugging Face and big_vision."""

from isoflop.models.interop.names import names_in
from isoflop.models.interop.recognise import Recognised, recognise
from isoflop.models.interop.transfer import load_weights, read_tensors, read_weights, shaped_like, to_layout

__all__ = [
    "Recognised",
    "load_weights",
    "names_in",
    "read_tensors",
    "read_weights",
    "recognise",
    "shaped_like",
    "to_layout",
]
