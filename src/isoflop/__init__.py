"""isoflop finds the best vision backbone, size and length of training by measuring small runs at equal compute.

    isoflop.open_study("studies/demo")       a study from its folder: answer, table of runs, figures, trained weights
    isoflop.study.run_study(config)          run a study of a StudyConfig, or resume it
    isoflop.train.train(config, "runs/vit")  train one run of a RunConfig, or resume it
    isoflop.create_model("vit_s16")          a backbone by name
    isoflop.transfer.evaluate(...)           a classifier on labelled images; `predict` on others
    isoflop.laws.fit_table("runs.csv")       scaling laws of any table
    isoflop.config.load_study("study.toml")  a configuration, and where each value comes from

A study, a figure and the laws of a table show themselves in a notebook. All errors are IsoflopError. Names are imported
on first use (PEP 562), so `import isoflop` does not load torch; without the extra `train`, names that need it are not
listed, and raise MissingExtra.
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
_TRAINING = ("auto", "create_model", "data", "models", "objectives", "share", "study", "train", "transfer")

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
    from importlib.util import find_spec

    if find_spec("torch") is None:  # `help(isoflop)` and completion get every name that is listed
        return sorted(name for name in __all__ if name not in _TRAINING)
    return sorted(__all__)
