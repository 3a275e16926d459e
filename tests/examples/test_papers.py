"""The five papers as studies: each plans at a hundredth of its compute, and the small ones run."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from isoflop.config import load_study
from isoflop.errors import ConfigError
from isoflop.study import plan_study, run_study
from tests.examples.scripts import script_at
from tests.study.here import Here

PAPERS = Path(__file__).resolve().parents[2] / "papers"
STUDIES = sorted(path.stem for path in PAPERS.glob("*.toml") if path.stem != "preemption")
SCALE, SMALL = 0.01, 0.005
TINY = ("data.source=digits", "data.image_size=8", "data.heldout=64", "batch_size=4", "data.augment=none",
        "laws.bootstrap=20")  # fmt: skip


def script(name: str) -> ModuleType:
    """The script of papers/ of that name."""
    return script_at(PAPERS / f"{name}.py")


def overrides(name: str, folder: Path) -> list[str]:
    families = load_study(PAPERS / f"{name}.toml").config.families
    hidden = any(table.pretraining for table in families.values())
    patches = ["data.image_size=16", "batch_size=2"] if hidden else []  # nine in ten are hidden
    return [*TINY, f"study.output={folder}", *patches]


@pytest.mark.parametrize("name", STUDIES)
def test_each_paper_is_a_study_at_any_scale(tmp_path: Path, name: str) -> None:
    config = load_study(PAPERS / f"{name}.toml", overrides(name, tmp_path), SCALE).config
    whole = load_study(PAPERS / f"{name}.toml", overrides(name, tmp_path)).config
    assert config.study.name == f"{whole.study.name}-x0.01"
    assert config.study.target_budget == pytest.approx(SCALE * whole.study.target_flops)
    assert whole.study.target_flops >= 4 * (whole.study.budgets or ())[-1]  # predictions are four times away
    known = {(family, size): 1e-4 for family, table in config.families.items() for size in table.sizes}  # type: ignore[union-attr]
    plan = plan_study(config, known)
    assert set(plan.sizes) == set(config.families)
    assert [rung.budget for rung in plan.rungs] == pytest.approx([SCALE * b for b in whole.study.budgets or ()])


def test_a_scale_needs_flops(tmp_path: Path) -> None:
    cifar = PAPERS.parent / "examples" / "cifar10.toml"
    with pytest.raises(ConfigError, match=r"--scale multiplies FLOPs .* has none: set its limit itself"):
        load_study(cifar, (), 0.1)
    with pytest.raises(ConfigError, match="--scale is a positive number, not 0"):
        load_study(PAPERS / "vit.toml", (), 0.0)


@pytest.mark.long
@pytest.mark.parametrize("name", STUDIES)
def test_each_paper_predicts_then_measures(tmp_path: Path, name: str) -> None:
    config = load_study(PAPERS / f"{name}.toml", overrides(name, tmp_path / "study"), SMALL).config
    predicted = run_study(config, executor=Here(), predict=True)
    assert "finals" not in predicted or not predicted["finals"]
    document = run_study(config, executor=Here())
    assert set(document["families"]) | set(document["left_out"]) == set(config.families)
    assert len(document["finals"]) == min(config.study.finals, len(document["families"]))
    for family, entry in predicted["families"].items():
        assert document["families"][family]["predicted_loss"] == entry["predicted_loss"]


def test_predictions_are_judged_as_they_were_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(losses: dict[str, float], **more: Any) -> None:
        entry = {"model": "m", "images": 10, "learning_rate": 0.1, "interval": [1.0, 2.0]}
        families = {name: {**entry, "predicted_loss": loss, "p_best": p} for (name, loss), p in zip(
            losses.items(), (0.9, 0.05, 0.05), strict=True)}  # fmt: skip
        document = {"study": {"name": "s"}, "target_flops": 1e12, "families": families, **more}
        (tmp_path / "answer.json").write_text(json.dumps(document))

    predictions = script("predictions")
    answer({"a": 1.4, "b": 1.5, "c": 1.6})
    predictions.main([str(tmp_path), "--out", str(tmp_path / "p.csv")])
    measured = {"a": 1.5, "b": 2.5, "c": 1.2}
    finals = {name: {"measured_loss": loss, "measured_accuracy": 0.5} for name, loss in measured.items()}
    answer({"a": 9.0, "b": 9.0, "c": 9.0}, finals=finals)  # what the study would say now does not count
    predictions.main([str(tmp_path), "--judge", str(tmp_path / "p.csv")])
    out = capsys.readouterr().out
    assert "| s | a | m | 1.400 (1.000–2.000) | 0.90 | 1.500 | yes | 50.0 % |" in out
    assert "| s | b | m | 1.500 (1.000–2.000) | 0.05 | 2.500 | **no** | 50.0 % |" in out
    assert out.endswith("\nInside: 2 of 3. Order right: 1 of 2.\n")


def test_the_best_run_of_a_budget_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["family,model,status,budget,images,unique_images,learning_rate,heldout_loss,heldout_accuracy"]
    lines += ["vit,s,done,1e9,500,1000,0.01,2.5,0.2", "vit,b,done,1.0004e9,250,1000,0.02,2.4,0.25"]
    lines += ["vit,s,diverged,1e9,500,1000,0.1,1.0,0.9", "vit,b,planned,1e9,500,1000,0.1,,"]
    (tmp_path / "results.csv").write_text("\n".join(lines))
    script("predictions").main([str(tmp_path), "--best"])
    assert capsys.readouterr().out.splitlines()[2:] == ["| vit | 1,000 | 1e+09 | b | 0.25 | 0.02 | 2.400 | 25.0 % |"]


@pytest.mark.long
def test_a_run_that_is_killed_ends_as_one_that_is_not(tmp_path: Path) -> None:
    tiny = ["steps=60", "batch_size=4", "data.image_size=8", "data.heldout=64", "checkpoint.every_seconds=0.01",
            "model.name=nfnet_w4d1", "schedule.warmup=2", "data.augment=none"]  # fmt: skip
    found = script("preemption").main(["digits", *tiny, "--out", str(tmp_path), "--preemptions", "3"])[0]
    assert found["never stopped"].heldout_loss == found["preempted, exact resume"].heldout_loss
    assert found["never stopped"].heldout_loss != found["preempted, epoch begins again"].heldout_loss
