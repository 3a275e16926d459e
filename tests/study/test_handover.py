"""What a study hands over: never less than the best run that it has trained, judged once on the test part."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isoflop.config import RunConfig, StudyConfig
from isoflop.data import open_split
from isoflop.report.law import accuracy_sentence, answer_sentence, expected_accuracy
from isoflop.runs.files import read_json
from isoflop.runs.results import ATTENTION, JUDGED, answer_directory, read_results, write_results
from isoflop.study.handover import (
    accuracy_of,
    attention_of,
    best_run,
    compared_with_runs,
    predicted_accuracy,
    selected_run,
)
from isoflop.train import RunResult, train
from isoflop.transfer.metrics import wilson_interval
from tests.study.test_answer import row
from tests.study.test_rungs import study_config

ROOT = Path(__file__).parents[2]


def ladder_row(name: str, loss: float, **values: Any) -> dict[str, Any]:
    own = {
        "family": "vit",
        "images": 10_000,
        "role": "ladder",
        "parameters": 1000,
        "seconds": 5.0,
        "heldout_accuracy": 0.5,
    }
    return row(**{**own, "run_id": name, "heldout_loss": loss, "target": loss, **values})


ROWS = [ladder_row("a", 0.69), ladder_row("b", 0.637), ladder_row("c", 0.1, status="failed")]


def answered(predicted: float, interval: tuple[float, float]) -> dict[str, Any]:
    entry = {
        "model": "vit_w32d4p4",
        "predicted_loss": predicted,
        "interval": list(interval),
        "level": 0.9,
        "run_id": "f",
    }
    return {"best": "vit", "families": {"vit": entry}}


@pytest.mark.parametrize(
    ("predicted", "interval", "said"),
    [(0.5, (0.4, 0.6), None), (0.6, (0.5, 0.7), "The gain is uncertain"), (0.69, (0.6, 0.8), "No gain is predicted")],
)
def test_an_answer_that_may_not_beat_the_best_run_so_far_says_so(
    predicted: float, interval: tuple[float, float], said: str | None
) -> None:
    found = compared_with_runs(answered(predicted, interval), ROWS, study_config())
    assert found["best_run"]["run_id"] == "b"
    assert len(found["advice"]) == (said is not None)
    for line in found["advice"]:
        assert line.startswith(f"{said}: run b (")
        assert "already trained with held-out loss 0.637" in line


def test_a_final_that_is_worse_than_a_run_of_the_ladder_is_not_handed_over(tmp_path: Path) -> None:
    final = ladder_row("f", 0.701, role="final")
    document = answered(0.6, (0.5, 0.7)) | {
        "finals": {"vit": {"run_id": "f", "status": "done", "measured_loss": 0.701}},
        "advice": ["The gain is uncertain"],
    }
    document |= selected_run(document, [*ROWS, final], study_config())
    (line,) = document["advice"]
    assert line.startswith("The study hands over run b (")
    assert line.endswith("0.637: the trained answer, vit_w32d4p4, has held-out loss 0.701.")
    assert line in answer_sentence([*ROWS, final], document)
    write_results(tmp_path, [*ROWS, final])
    (tmp_path / "study.json").write_text('{"study": "x", "name": "x"}')
    (tmp_path / "answer.json").write_text(json.dumps(document))
    assert answer_directory(tmp_path).name == answer_directory(tmp_path, "vit").name == "b"
    better = ladder_row("f", 0.6, role="final")
    found = selected_run(document, [*ROWS, better], study_config())
    assert (found["selected"]["run_id"], found["advice"]) == ("f", [])
    (tmp_path / "answer.json").write_text('{"best": "vit"}')  # of an earlier version
    assert answer_directory(tmp_path).name == "f"
    assert len(read_results(tmp_path)) == 4
    assert best_run([ROWS[2]]) is None


@pytest.mark.parametrize(("study", "off"), [("cifar10", 0.04), ("imagenet64", 0.07)])
def test_accuracy_is_predicted_by_the_map_of_the_studys_own_runs(study: str, off: float) -> None:
    """Real studies: the accuracy of the trained answer, at its measured loss, from the runs of the ladder alone."""
    rows = read_results(ROOT / "docs/results" / study)
    final = next(row for row in rows if row["role"] == "final")
    ladder = [row for row in rows if row["role"] == "ladder"]
    loss = final["heldout_loss"]
    assert min(row["heldout_loss"] for row in ladder) > 1.1 * loss  # it lies beyond them
    found = predicted_accuracy(ladder, {"predicted_loss": loss, "interval": [0.9 * loss, 1.1 * loss]})
    assert found["predicted_accuracy"] == pytest.approx(final["heldout_accuracy"], abs=off)
    low, high = found["accuracy_interval"]
    assert low < found["predicted_accuracy"] < high
    assert expected_accuracy(found).startswith(", held-out accuracy about ")


def test_accuracy_is_not_predicted_from_a_few_runs() -> None:
    rows = [ladder_row(str(x), x, heldout_accuracy=1 / (1 + x**2)) for x in (2.0, 1.5, 1.2)]
    unknown = predicted_accuracy(rows, {"predicted_loss": 0.5, "interval": [0.4, 0.6]})
    assert unknown["predicted_accuracy"] is None
    assert expected_accuracy(unknown) == ""


def brief_run(config: StudyConfig, directory: Path) -> RunResult:
    model = {"name": "vit_w8d1p8", "stem_kernel": 4, "stem_stride": 4}
    run = {"model": model, "steps": 2, "batch_size": 8, "data": config.data, "threads": 1}
    return train(RunConfig.model_validate(run), directory)


def test_the_test_part_judges_what_is_handed_over_once(tmp_path: Path) -> None:
    config = study_config(data={"source": "digits", "image_size": 8, "heldout": 100})
    ended = brief_run(config, tmp_path / "run")
    selected = {"family": "vit", "heldout_accuracy": ended.heldout_accuracy}
    found = accuracy_of(tmp_path / "run", selected, config, 100)
    assert found is not None
    images = len(open_split(config.data, "test"))
    assert (found["part"], found["images"]) == ("test", images)
    right = round(found["accuracy"] * images)
    assert found["interval"] == list(wilson_interval(right, images))
    assert "which no choice has used" in accuracy_sentence({"selected": {"accuracy": found}})
    confusion = np.array(read_json(tmp_path / "run" / JUDGED)["evaluation"]["confusion"])
    assert (confusion.sum(), np.trace(confusion)) == (images, right)
    looks = attention_of(tmp_path / "run")
    assert looks is not None
    assert [len(heads) for heads in looks["pixels"]] == [1]
    (tmp_path / "run/model.safetensors").unlink()
    assert accuracy_of(tmp_path / "run", selected, config, 100) == found  # kept, not judged again
    assert attention_of(tmp_path / "run") == looks
    assert Image.open(tmp_path / "run" / ATTENTION).size[0] > 96


def test_without_a_test_part_the_held_out_images_are_said_to_have_chosen(tmp_path: Path) -> None:
    for number in range(10):
        folder = tmp_path / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(folder / f"{number}.png")
    config = study_config(data={"source": f"folder:{tmp_path / 'images'}", "image_size": 8, "heldout": 2})
    brief_run(config, tmp_path / "run")
    found = accuracy_of(tmp_path / "run", {"family": "vit", "heldout_accuracy": 81 / 263}, config, 263)
    assert found is not None
    assert found["interval"] == pytest.approx([0.2553, 0.3662], abs=5e-5)  # Newcombe, Stat. Med. 17 (1998), table I
    assert "no test part" in found["why"]
    told = accuracy_sentence({"selected": {"accuracy": found}})
    assert "Held-out accuracy 30.8" in told
    assert "have chosen the run too: the data have no test part" in told
    masked = study_config(objective={"name": "masked"})
    assert accuracy_of(tmp_path, {"family": "vit", "heldout_accuracy": None}, masked, 263) is None
