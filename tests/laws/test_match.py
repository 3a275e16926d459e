"""NFNets match ViTs at equal compute (arXiv 2310.16764), as a statement with an interval."""

import numpy as np
import pytest

from isoflop.errors import LawError
from isoflop.laws import fit_frontier, load_table, lower_envelope, match_at_equal_compute


def nfnet_frontier():
    table = load_table("nfnet_jft4b_digitised")
    hours = np.append(np.array(table["tpu_v4_core_hours"], float), 110e3)  # the published run that is not digitised
    error = np.append(np.array(table["value"], float), 100 - 90.3)
    best = lower_envelope(hours, error)
    return fit_frontier(hours[best], error[best])


def test_vits_match_nfnets_at_equal_compute():
    """g/14 90.2 % at 120k TPU-v4 core-hours, G/14 90.45 % at 280k, SoViT-400m 90.3 % at 130k."""
    law = nfnet_frontier()
    match = match_at_equal_compute(
        law, [120e3, 280e3, 130e3], [9.8, 9.55, 9.7], names=("the ViTs", "the NFNets"), unit=" points"
    )
    assert match.matched
    assert abs(match.mean) < 0.5
    assert match.mean_interval[1] - match.mean_interval[0] < 2.0
    assert match.statement.startswith("At equal compute the ViTs match the NFNets")


def test_a_family_that_is_clearly_better_does_not_match():
    match = match_at_equal_compute(nfnet_frontier(), [20e3, 40e3], [8.5, 8.2])
    assert not match.matched
    assert "beat" in match.statement


def test_the_envelope_is_what_no_cheaper_run_beats():
    assert lower_envelope([4, 1, 2, 3], [1.0, 3.0, 3.5, 2.0]).tolist() == [1, 3, 0]


def test_a_match_needs_runs():
    with pytest.raises(LawError, match="positive"):
        match_at_equal_compute(nfnet_frontier(), [1.0], [-1.0])
