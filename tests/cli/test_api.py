"""`import isoflop` costs nothing, and everything is found under it."""

import subprocess
import sys

import pytest

import isoflop


def test_importing_isoflop_and_its_errors_and_laws_never_loads_torch() -> None:
    code = "import sys, isoflop; isoflop.ConfigError; isoflop.laws; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("name", sorted(set(isoflop.__all__)))
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(isoflop, name) is not None
    assert name in dir(isoflop)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="creat_model"):
        _ = isoflop.creat_model
