"""What all tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Runs of tests are of the same precision on every machine: `auto` is float32 where bfloat16 may not be used.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")

# No test judges a clock, and a busy machine must not make one fail.
settings.register_profile("isoflop", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("isoflop")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets beside the project; tests that need it are skipped where there is none."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder


@pytest.fixture(scope="session", autouse=True)
def few_test_images() -> Iterator[None]:
    """The test part of fractals is 8,192 images, which take longer than the studies of tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isoflop.data.sources.fractals._TEST_IMAGES", 256)
        yield
