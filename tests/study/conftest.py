"""What tests of studies share: workers that die when they are meant to."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.study import mortal


@pytest.fixture
def mortal_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has workers of the local pool die when they have told of a step of these runs, of any for ""."""
    start = subprocess.Popen

    def use(*runs: str) -> None:
        command = [sys.executable, mortal.__file__, str(mortal.deaths_in(tmp_path / "deaths", *runs))]
        monkeypatch.setattr(
            "isoflop.study.executors.local.subprocess.Popen", lambda ours, **more: start(command, **more)
        )

    return use
