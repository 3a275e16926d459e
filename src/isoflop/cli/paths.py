"""Files and folders that must be there."""

from pathlib import Path

from isoflop.errors import ConfigError


def existing(path: Path) -> Path:
    """`path`, where there is something of that name; ConfigError with the nearest name where there is not."""
    if not path.exists():
        from isoflop.config.nearest import nearest_path

        raise ConfigError(f"{path}: no such file{nearest_path(path)}")
    return path
