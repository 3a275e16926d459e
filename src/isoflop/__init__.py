"""isoflop finds the best vision backbone, size and length of training by measuring small runs at equal compute.

Names are imported on first use (PEP 562), so `import isoflop` does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import RunConfig as RunConfig
    from .config import StudyConfig as StudyConfig
    from .errors import CheckpointError as CheckpointError
    from .errors import ConfigError as ConfigError
    from .errors import DataError as DataError
    from .errors import IsoflopError as IsoflopError
    from .errors import LawError as LawError
    from .errors import ModelError as ModelError
    from .errors import StudyError as StudyError
    from .models import create_model as create_model
    from .report.result import open_study as open_study
    from .study.auto import auto as auto

_HOME = {
    "RunConfig": "config",
    "StudyConfig": "config",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "DataError": "errors",
    "IsoflopError": "errors",
    "LawError": "errors",
    "ModelError": "errors",
    "StudyError": "errors",
    "create_model": "models",
    "open_study": "report.result",
    "auto": "study.auto",
}
_PACKAGES = (
    *("config", "data", "errors", "laws", "models", "objectives"),
    *("report", "share", "study", "train", "transfer"),
)

__all__ = [*_HOME, "__version__", *_PACKAGES]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    if name in _PACKAGES:
        return import_module(f".{name}", __name__)
    if name == "__version__":
        from importlib.metadata import version

        return version("isoflop")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
