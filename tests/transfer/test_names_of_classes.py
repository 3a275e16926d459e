"""A classifier meets other data: classes are matched by their names, or refused, never by number alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from isoflop.config import RunConfig, TransferConfig
from isoflop.errors import DataError
from isoflop.train import train
from isoflop.transfer import open_backbone, transfer
from isoflop.transfer.backbones import _label_names

COLOURS = {"ant": "red", "bee": "lime", "cat": "blue"}


def coloured(root: Path, names: dict[str, str], images: int = 6) -> str:
    """A folder per name, of plain pictures in the colour of its animal, for training and test."""
    for part in ("train", "test"):
        for folder, animal in names.items():
            (root / part / folder).mkdir(parents=True, exist_ok=True)
            for k in range(images):
                Image.new("RGB", (8, 8 + k), COLOURS[animal]).save(root / part / folder / f"{animal}{k}.png")
    return f"folder:{root}"


def config(source: str, **changes: Any) -> RunConfig:
    values = {
        "steps": 30,
        "batch_size": 8,
        "device": "cpu",
        "model": {"name": "nfnet_w8d1"},
        "data": {"source": source, "image_size": 16, "heldout": 3},
        "optim": {"learning_rate": 0.02},
    }
    return RunConfig.model_validate(values | changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three animals by their colour."""
    place = tmp_path_factory.mktemp("animals")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISOFLOP_CACHE", str(place / "cache"))
        train(config(coloured(place / "data", {name: name for name in COLOURS})), place / "run")
    return place / "run"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))


def judged(run: Path, source: str) -> float:
    values = TransferConfig.model_validate({"dataset": source, "protocols": ["head"]})
    return float(transfer(open_backbone(run), values)[0]["accuracy_mean"])


def table(folder: Path, names: list[str]) -> str:
    """The same pictures as a table that has only these classes."""
    rows = [f"test/{n}/{n}{k}.png,{n},{part}" for n in names for k in range(6) for part in ("train", "test")]
    (folder / "table.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    return f"table:{folder / 'table.csv'}"


def test_a_classifier_is_judged_by_the_names_of_its_classes(run: Path) -> None:
    data = run.parent / "data"
    whole = judged(run, f"folder:{data}")
    assert whole > 0.9
    assert judged(run, table(data, ["bee", "cat"])) == pytest.approx(whole, abs=0.11)  # no `ant`, the first of all
    with pytest.raises(DataError, match=r"class `dog` is not among the 3 classes of the classifier"):
        judged(run, coloured(run.parent / "others", {"bee": "bee", "dog": "cat", "ant": "ant"}))


def test_a_run_goes_on_with_a_classifier_of_the_same_classes_alone(run: Path, tmp_path: Path) -> None:
    other = coloured(tmp_path / "data", {"ant": "ant", "bee": "bee", "dog": "cat"})
    same = {"start": {"weights": str(run), "head": "keep"}}
    for weights in (run, run / "model.safetensors"):
        changes = {"start": {"weights": str(weights), "head": "keep"}}
        with pytest.raises(DataError, match=r"`start.weights` = .*: learnt other classes \(cat\) than .* \(dog\)"):
            train(config(other, **changes), tmp_path / "run")
    assert train(config(f"folder:{run.parent / 'data'}", steps=1, **same), tmp_path / "same").state == "done"


def test_a_teacher_whose_weights_are_named_apart_has_the_same_classes_too(run: Path, tmp_path: Path) -> None:
    other = coloured(tmp_path / "data", {"ant": "ant", "bee": "bee", "dog": "cat"})
    weights = str(run / "model.safetensors")
    objective = {"name": "distilled", "teacher": "nfnet_w8d1", "teacher_weights": weights, "through": "logits"}
    with pytest.raises(DataError, match=r"`objective.teacher` = nfnet_w8d1: learnt other classes \(cat\)"):
        train(config(other, objective=objective), tmp_path / "run")


def test_an_order_that_differs_is_called_that(run: Path, tmp_path: Path) -> None:
    facts = json.loads((run / "data.json").read_text())
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("model.safetensors", "config.json", "identity.json"):
        (copy / name).write_bytes((run / name).read_bytes())
    (copy / "data.json").write_text(json.dumps(facts | {"class_names": ["cat", "bee", "ant"]}))
    with pytest.raises(DataError, match="learnt the same classes in another order"):
        train(config(facts["uri"], start={"weights": str(copy), "head": "keep"}), tmp_path / "run")
    assert judged(copy, facts["uri"]) < 0.6  # the names that it says count: red is not `cat`


def test_hugging_faces_own_placeholders_are_no_names() -> None:
    assert _label_names({"id2label": {"0": "ant", "1": "bee"}}, 2) == ["ant", "bee"]
    for listed in ({"0": "LABEL_0", "1": "LABEL_1"}, {"0": "ant"}, {"0": "ant", "1": 7}, None, []):
        assert _label_names({"id2label": listed}, 2) == []
