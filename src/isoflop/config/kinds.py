"""The two kinds of configuration file: a run's and a study's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isoflop.config.load import Loaded, load, parse, read_toml
from isoflop.config.run import EARLIER, WITH_RANDAUGMENT, RunConfig
from isoflop.config.study import StudyConfig
from isoflop.errors import ConfigError


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> Loaded[RunConfig]:
    """The run in a TOML file, with `key=value` overrides; `ConfigError` lists every problem."""
    if _is_study(path):
        raise ConfigError(f"{path} is a study, not a run: `isoflop study run {path}`")
    return load(path, overrides, RunConfig)


def stored_run(raw: Any, source: str = "configuration") -> RunConfig:
    """The run in the `config.json` of a run's folder; `ConfigError` lists every problem.

    Where no `model.revision` is stored, it was trained before there was a second; where no `data.randaugment` is, with
    another one than there is today, which can be read but not continued.
    """
    if isinstance(raw, dict) and isinstance(raw.get("model"), dict):
        raw = {**raw, "model": {"revision": 1, **raw["model"]}}
        data = raw.get("data")
        if isinstance(data, dict) and data.get("augment") in WITH_RANDAUGMENT:
            raw = {**raw, "data": {"randaugment": EARLIER, **data}}
    return parse(raw, RunConfig, source)


def stored_study(raw: Any) -> StudyConfig:
    """The study in the `config` of a `study.json`. Options that there are no longer may stand there at the default that
    they had; ConfigError lists every problem."""
    table = raw.get("study") if isinstance(raw, dict) else None
    if isinstance(table, dict) and table.get("give_up") == 0.0:
        raw = {**raw, "study": {name: value for name, value in table.items() if name != "give_up"}}
    return parse(raw, StudyConfig)


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
