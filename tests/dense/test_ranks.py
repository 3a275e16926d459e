"""Detectors and segmenters on many processes: the losses of one, and no step lost or different after a kill."""

from pathlib import Path
from typing import Any

import pytest

from isoflop.config import RunConfig
from isoflop.train import read_journal, train
from tests.dense.small import BACKBONES
from tests.promises.chaos import EVERY_STEP, Blow, join, kill_after, run_config, start_ranks

OBJECTIVES: dict[str, dict[str, Any]] = {
    "mask_rcnn": {"name": "detect", "head": "mask_rcnn", "width": 16, "proposals": 32, "samples": 32, "anchor": 4},
    "retinanet": {"name": "detect", "width": 16},
    "upernet": {"name": "segment", "head": "upernet", "width": 16},
}


def short(head: str, **parallel: Any) -> RunConfig:
    """Five steps of seven pictures, of which ranks have three and four."""
    task = OBJECTIVES[head]["name"]
    return run_config(
        model={"name": "poolformer_s12", **BACKBONES["poolformer_s12"], "drop_path": 0.2},
        objective=OBJECTIVES[head],
        steps=5,
        optim={"learning_rate": 1e-3},
        schedule={"warmup": 1},
        batch_size=7,
        log_every=1,
        data={
            "source": f"scenes?classes=3&images=40&task={task}",
            "image_size": 64,
            "heldout": 5,
            "augment": "large_scale_jitter",
        },
        evaluation={"batch_size": 2},
        checkpoint=EVERY_STEP,
        parallel=parallel,
    )


def journal(directory: Path) -> list[tuple[float, float]]:
    return [(row["loss"], row["gradient_norm"]) for row in read_journal(directory)]


def agree(ours: Path, theirs: Path) -> None:
    """Two steps to the rounding of float32; then it may tip which candidates Mask R-CNN takes for the better ones."""
    found, expected = journal(ours), journal(theirs)
    assert [loss for loss, _ in found[:2]] == pytest.approx([loss for loss, _ in expected[:2]], rel=1e-5)
    assert [norm for _, norm in found[:2]] == pytest.approx([norm for _, norm in expected[:2]], rel=1e-4)
    assert [loss for loss, _ in found] == pytest.approx([loss for loss, _ in expected], rel=0.01)
    last, other = read_journal(ours)[-1], read_journal(theirs)[-1]
    assert last["heldout_loss"] == pytest.approx(other["heldout_loss"], rel=0.05)


@pytest.mark.parametrize("head", OBJECTIVES)
def test_a_batch_in_parts_has_the_losses_of_the_whole(head: str, tmp_path: Path) -> None:
    train(short(head), tmp_path / "whole")
    train(short(head, device_batch_size=2), tmp_path / "parts")
    agree(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize(
    "head", ["retinanet", *(pytest.param(head, marks=pytest.mark.long) for head in ("mask_rcnn", "upernet"))]
)
def test_two_ranks_have_the_losses_of_one_and_go_on_exactly_after_a_kill(head: str, tmp_path: Path) -> None:
    train(short(head), tmp_path / "alone")
    for name in ("whole", "killed"):
        if name == "killed":
            kill_after(short(head), tmp_path / name, 2, Blow(3))
        assert set(join(start_ranks(short(head), tmp_path / name, 2))) == {0}
    assert journal(tmp_path / "killed") == journal(tmp_path / "whole")
    agree(tmp_path / "whole", tmp_path / "alone")
