"""What is released works where nothing of ours was before."""

import subprocess
from pathlib import Path

import pytest

from tests.smoke import wheel


@pytest.mark.long
def test_the_wheel_installs_into_an_empty_environment_and_works(tmp_path: Path) -> None:
    built = wheel.build(tmp_path)
    assert wheel.version() in built.name
    assert wheel.megabytes(built) < 3
    python = wheel.environment(tmp_path / "empty")
    before = wheel.megabytes(wheel.packages(python))  # pip
    wheel.install(python, built)
    wheel.use_base(python, tmp_path)
    assert wheel.megabytes(wheel.packages(python)) - before < 250
    wheel.install(python, built, "train")
    wheel.use(python, tmp_path)
    told = subprocess.run([python.with_name("isoflop"), "doctor"], check=True, capture_output=True, text=True).stdout
    assert "missing faster-coco-eval, torchmetrics: pip install 'isoflop[dense]'" in told
