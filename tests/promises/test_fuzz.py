"""Damaged files are healed, refused in one line, or counted: data, weights, runs, studies and caches."""

import pytest

from tests.promises.fuzz import FORMATS, OURS, attempt

SLOW = ("half a run", "study", "weights timm", "weights hugging face")


@pytest.mark.parametrize("kind", [*FORMATS, *OURS])
def test_damage_is_healed_refused_or_counted(kind: str) -> None:
    for number in range(6 if kind in SLOW else 24):
        attempt(kind, number)


@pytest.mark.long
@pytest.mark.timeout(36_000)
@pytest.mark.parametrize("kind", FORMATS)
def test_ten_thousand_damages_to_data_and_weights(kind: str) -> None:
    for number in range(100, 100 + 10_000 // len(FORMATS) + 1):
        attempt(kind, number)


@pytest.mark.long
@pytest.mark.timeout(36_000)
@pytest.mark.parametrize("kind", OURS)
def test_a_thousand_damages_to_runs_studies_and_caches(kind: str) -> None:
    for number in range(100, 100 + 1000 // len(OURS) + 1):
        attempt(kind, number)
