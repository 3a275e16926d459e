"""Weights that leave isoflop for other libraries, and those that come in."""

from isoflop.share.export import FORMATS, Exported, export
from isoflop.share.importing import Imported, import_weights

__all__ = ["FORMATS", "Exported", "Imported", "export", "import_weights"]
