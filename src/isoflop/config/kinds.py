"""The two kinds of configuration file: a run's and a study's."""

from collections.abc import Sequence
from pathlib import Path

from isoflop.config.load import Loaded, load, read_toml
from isoflop.config.run import RunConfig
from isoflop.config.study import StudyConfig
from isoflop.errors import ConfigError


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> Loaded[RunConfig]:
    """The run in a TOML file, with `key=value` overrides; `ConfigError` lists every problem."""
    if _is_study(path):
        raise ConfigError(f"{path} is a study, not a run: `isoflop study run {path}`")
    return load(path, overrides, RunConfig)


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Loaded[StudyConfig]:
    """The study in a TOML file, with `key=value` overrides; `ConfigError` lists every problem."""
    if not _is_study(path) and "model" in read_toml(path)[0]:
        raise ConfigError(f"{path} is a run, not a study: `isoflop train {path}`")
    return load(path, overrides, StudyConfig)


def load_any(path: str | Path, overrides: Sequence[str] = ()) -> Loaded[RunConfig] | Loaded[StudyConfig]:
    """Whichever of the two the file holds."""
    return load_study(path, overrides) if _is_study(path) else load_run(path, overrides)


def _is_study(path: str | Path) -> bool:
    return bool({"study", "families"} & read_toml(path)[0].keys())
