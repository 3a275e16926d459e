"""The hours of a study, by a clock that is handed in."""

from pathlib import Path

import pytest

from isoflop.runs.times import Times


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_parts_of_all_attempts_are_counted_and_stages_keep_what_they_took(tmp_path: Path) -> None:
    clock = Clock()
    times = Times(clock)
    clock.now += 7  # start-up, data, prices
    times.begin("ladder")
    clock.now += 20
    assert times.stage(1) == 20
    clock.now += 5
    times.write(tmp_path)
    clock.now += 1000  # killed, and started again much later
    again = Times(clock)
    clock.now += 3
    again.add_earlier(tmp_path)
    again.begin("ladder")
    assert again.stage(1) == 20
    clock.now += 2
    assert again.stage(2) == 27
    again.begin("answer")
    clock.now += 11
    again.begin("evaluation")
    clock.now += 4
    assert again.total == 10 + 27 + 11 + 4
    assert again.seconds == {"preparation": 10, "ladder": 27, "answer": 11, "evaluation": 4}


def test_damaged_times_cost_a_warning(tmp_path: Path) -> None:
    (tmp_path / "times.json").write_text('{"seconds": {"ladder": "long"}, "stages": []}')
    times = Times(Clock())
    with pytest.warns(UserWarning, match=r"times.json: damaged; the hours of earlier attempts are not counted"):
        times.add_earlier(tmp_path)
    assert times.total == 0
