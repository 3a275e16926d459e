import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.report.text import duration, log_ticks, number, quantity, script_json


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.234e12, "1.2×10¹²"), (1e12, "10¹²"), (9.96e5, "10⁶"), (320_400, "320,000"), (0.01249, "0.012"), (1.0, "1.0"),
        (0, "0"), (1.2e-5, "1.2×10⁻⁵"), (None, "–"), (math.nan, "–"), (math.inf, "–"), (-2e7, "-2×10⁷"),
    ],
)  # fmt: skip
def test_quantities_read_as_in_a_paper(value: float | None, shown: str) -> None:
    assert quantity(value) == shown


def test_numbers_that_are_not_numbers_are_a_dash() -> None:
    assert [number(v) for v in (None, "1", True, math.nan, -1.0)] == ["–", "–", "–", "–", "−1.000"]


def test_durations_read_as_people_say_them() -> None:
    assert [duration(s) for s in (0.84, 45, 200, 7500, 1e6)] == [
        "0.8 s",
        "45 s",
        "3 min 20 s",
        "2 h 05 min",
        "11.6 days",
    ]


@given(st.recursive(st.text() | st.floats(allow_nan=False, allow_infinity=False), st.lists))
def test_json_in_a_script_comes_back_as_it_was_and_never_ends_the_script(value: object) -> None:
    text = script_json(value)
    assert json.loads(text) == value
    assert not set(text) & set("<>&\u2028\u2029")


@given(st.floats(1e-6, 1e20), st.floats(1.01, 1e12), st.integers(3, 9))
def test_logarithmic_axes_have_a_few_ticks_inside_their_range(low: float, factor: float, most: int) -> None:
    ticks, texts = log_ticks(low, low * factor, most)
    assert all(low * (1 - 1e-9) <= tick <= low * factor * (1 + 1e-9) for tick in ticks)
    assert len(set(texts)) == len(texts) == len(ticks) <= most + 2
    assert ticks == sorted(ticks)


@pytest.mark.parametrize("factor", [1.05, 1.3, 2, 5, 30, 1e3, 1e8])
def test_every_axis_has_at_least_two_labels(factor: float) -> None:
    assert all(len(log_ticks(low, low * factor, 4)[0]) >= 2 for low in (0.31, 1.0, 7.3, 4.2e11))
