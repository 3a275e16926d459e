"""Export of weights to other libraries, and import of public weights."""

from isoflop import needs_training  # noqa: F401
from isoflop.share.export import FORMATS, Exported, export
from isoflop.share.importing import Imported, import_weights

__all__ = ["FORMATS", "Exported", "Imported", "export", "import_weights"]
