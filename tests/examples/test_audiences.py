"""The worked examples work, at toy size."""

from pathlib import Path

import numpy as np
import pytest

from isoflop.config import load_study
from isoflop.study import plan_study
from tests.examples.scripts import EXAMPLES, example


def test_architectures_are_compared_seed_by_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare = example("compare")
    families = {"vit_w8d1p8": ((5e-3, 1e-2), {}), "poolformer_w4d1p8": ((1e-2,), {})}
    arguments = ["--flops", "3e8", "--seeds", "2", "--output", str(tmp_path), "--formats", "svg", "csv"]
    found = compare.main([*arguments, "--heldout", "64"], families)
    assert set(found) == set(families)
    assert all(np.isfinite(losses).all() and len(losses) == 2 for losses in found.values())
    assert "learning rate" in capsys.readouterr().out
    assert (tmp_path / "figures" / "compared.svg").stat().st_size > 1000
    # SciPy's own interval of a mean
    from scipy import stats

    values = np.array([1.0, 1.2, 0.9, 1.3])
    mean, spread = compare.interval(values)
    low, high = stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values))
    assert (mean - spread, mean + spread) == pytest.approx((low, high))


def test_laws_of_a_strangers_table_predict_what_was_held_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table_laws = example("table_laws")
    table = tmp_path / "theirs.csv"
    rows = "".join(
        f"{name},{x},{a * x**-0.3}\n" for name, a in (("a", 40), ("b", 60)) for x in 1000 * 2 ** np.arange(12)
    )
    table.write_text("model,images,error\n" + rows)
    arguments = [str(table), "--x", "images", "--y", "error", "--by", "model", "--picture", str(tmp_path / "laws.svg")]
    fitted = table_laws.main(arguments)
    budget = 4 * 1000 * 2**11
    assert fitted.groups[0].prediction is not None
    assert fitted.groups[0].prediction.value == pytest.approx(40 * budget**-0.3, rel=0.05)
    assert capsys.readouterr().out.count(" inside its 90 % interval") == 2
    assert (tmp_path / "laws.svg").read_text().startswith("<svg ")
    assert set(table_laws.published()["model"]) == set(table_laws.MODELS)


def test_the_cluster_study_asks_slurm_for_gpus_and_can_be_planned_here() -> None:
    config = load_study(EXAMPLES / "cluster.toml", []).config
    assert config.slurm["gpus_per_node"] == 1
    changes = [
        "study.budget=8e12",
        "study.target_budget=8e11",
        "batch_size=8",
        "data.source=digits",
        "data.image_size=32",
        *(f"families.{family}.sizes=2" for family in ("vit", "poolformer", "nfnet")),
    ]
    plan = plan_study(load_study(EXAMPLES / "cluster.toml", [*changes, "data.augment=none", "data.workers=0"]).config)
    assert set(plan.sizes) == {"vit", "poolformer", "nfnet"}
    assert plan.funds is not None
    assert plan.funds.reserved == pytest.approx(1.6e12)  # two answers
