"""Images from files get the classes that the model gives them when it is evaluated, and an evaluation counts them."""

import csv
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from isoflop.cli import main
from isoflop.config import RunConfig, parse
from isoflop.data import open_source, open_split
from isoflop.errors import DataError, DataNotice
from isoflop.report.evaluation import write_evaluation
from isoflop.runs.results import COLUMNS, write_results
from isoflop.share.export import export
from isoflop.train import train
from isoflop.transfer import evaluate, load_backbone, predict
from isoflop.transfer.metrics import wilson_interval
from tests.data.pictures import picture

RUN = {
    "model": {"name": "vit_w4d1p8"},
    "steps": 30,
    "batch_size": 16,
    "optim": {"learning_rate": 2e-2},
    "threads": 1,
    "tensorboard": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes, dark and bright, and a run that was trained on them."""
    folder = tmp_path_factory.mktemp("predict")
    generator = np.random.default_rng(0)
    for label, name in enumerate(("dark", "bright")):
        (folder / "images" / name).mkdir(parents=True)
        for k in range(30):
            pixels = generator.integers(0, 120, (40, 48, 3)) + 100 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / name / f"{k:02d}.png")
    config = parse({**RUN, "data": {"source": f"folder:{folder / 'images'}", "heldout": 12}}, RunConfig)
    assert train(config, folder / "run").state == "done"
    return folder


def test_files_get_the_probabilities_that_the_loaded_model_gives_the_same_images(folder: Path) -> None:
    model, config = load_backbone(folder / "run")
    heldout = open_split(config.data, "heldout")
    pixels, _ = heldout.read(np.arange(len(heldout), dtype=np.int64))
    mean, std = (torch.tensor(value).view(1, -1, 1, 1) for value in (heldout.mean, heldout.std))
    with torch.no_grad():
        expected = model.eval()((torch.as_tensor(pixels).float() / 255 - mean) / std).softmax(dim=1)
    told = dict(predict(str(folder / "run"), [folder / "images" / "dark", folder / "images" / "bright"]))
    assert len(told) == 60
    for path, guesses in told.items():
        assert sum(guess.probability for guess in guesses) == pytest.approx(1, abs=1e-5)
        assert guesses[0].name == Path(path).parent.name  # dark and bright are easily told apart
    likeliest = sorted(round(guesses[0].probability, 4) for guesses in told.values())
    assert all(np.isclose(likeliest, value, atol=2e-4).any() for value in expected.max(dim=1).values.tolist())


@pytest.fixture(scope="module")
def at_160_px(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of many sizes, one of them turned, and a run at 160 px, where evaluation shows 7/8 of a side."""
    folder = tmp_path_factory.mktemp("at_160_px")
    for label in ("a", "b"):
        (folder / "images" / label / "more").mkdir(parents=True)
        for k in range(6):
            image = picture(k, 150 + 13 * k, 290 - 20 * k)
            image.save(folder / "images" / label / f"{k}.png")
    noted = Image.Exif()
    noted[0x0112] = 6
    picture(7, 170, 200).save(folder / "images" / "b" / "more" / "turned.jpg", exif=noted)
    picture(8, 160, 160).save(folder / "images" / "b" / "more" / "exact.png")
    data = {"source": f"folder:{folder / 'images'}", "image_size": 160, "heldout": 2}
    config = parse({**RUN, "steps": 2, "batch_size": 4, "data": data}, RunConfig)
    assert train(config, folder / "run").state == "done"
    return folder


def test_predictions_see_the_pixels_of_evaluation_at_160_px(at_160_px: Path) -> None:
    model, config = load_backbone(at_160_px / "run")
    told = dict(predict(str(at_160_px / "run"), [at_160_px / "images"], top=2))
    sources = [
        open_source(f"{config.data.source}{how}", split="train", image_size=160, heldout=0)
        for how in ("", "?decode=each", "?decode=once")
    ]
    pixels, each, once = (source.read(np.arange(14, dtype=np.int64))[0] for source in sources)
    assert torch.equal(pixels, each)
    assert torch.equal(pixels, once)
    assert sources[0].fingerprint == sources[1].fingerprint != sources[2].fingerprint
    mean, std = (torch.tensor(value).view(1, -1, 1, 1) for value in (sources[0].mean, sources[0].std))
    with torch.no_grad():
        expected = model.eval()((pixels.float() / 255 - mean) / std).softmax(dim=1)
    assert [Path(path).name for path in told][-2:] == ["exact.png", "turned.jpg"]
    for guesses, row in zip(told.values(), expected.tolist(), strict=True):
        assert {guess.index: guess.probability for guess in guesses} == pytest.approx(dict(enumerate(row)), abs=1e-6)


def test_a_damaged_file_is_left_out_and_counted(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(folder / "images", tmp_path / "images")
    (tmp_path / "images" / "dark" / "05.png").write_bytes(b"no picture")
    whole = (tmp_path / "images" / "bright" / "00.png").read_bytes()
    (tmp_path / "images" / "bright" / "07.png").write_bytes(whole[: len(whole) // 2])
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(SystemExit) as caught:
        main(["predict", str(folder / "run"), str(tmp_path / "images"), str(tmp_path / "pipe.png"), "--json"])
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert len(told["images"]) == 58
    assert {Path(each["file"]).name: each["reason"] for each in told["damaged"]} == {
        "05.png": "not an image in any known format",
        "07.png": "damaged image: image file is truncated",
        "pipe.png": "not a regular file",
    }
    (line,) = err.splitlines()
    assert line.startswith("warning: 3 of 61 images are damaged and were skipped: ")
    assert "05.png: not an image in any known format; " in line
    with pytest.raises(DataError, match=r"07\.png: damaged image"):
        list(predict(str(folder / "run"), [tmp_path / "images"]))


def test_the_verb_prints_a_table_and_an_object(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(folder / "images" / "bright" / "00.png")
    with pytest.raises(SystemExit):
        main(["predict", str(folder / "run"), image, "--top", "1", "--json"])
    (told,) = json.loads(capsys.readouterr().out)["images"]
    assert told["file"] == image
    assert [guess["name"] for guess in told["classes"]] == ["bright"]
    with pytest.raises(SystemExit):
        main(["predict", str(folder / "run"), image])
    assert "bright" in capsys.readouterr().out
    for output in (folder / "guesses.csv", folder / "guesses.json"):
        with pytest.raises(SystemExit):
            main(["predict", str(folder / "run"), f"folder:{folder / 'images'}", "--output", str(output)])
        assert capsys.readouterr().out == f"60 images: {output}\n"
    with (folder / "guesses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert next((row["file"], row["class"]) for row in rows if row["rank"] == "1") == (image, "bright")
    assert [row["file"] for row in json.loads((folder / "guesses.json").read_text())] == [row["file"] for row in rows]


def test_the_answer_of_a_study_and_a_file_of_weights_are_the_run(folder: Path, tmp_path: Path) -> None:
    image = folder / "images" / "bright" / "00.png"
    expected = list(predict(str(folder / "run"), [image]))
    assert list(predict(str(folder / "run" / "model.safetensors"), [image])) == expected
    (tmp_path / "study.json").write_text('{"study": "s", "name": "s"}')
    (tmp_path / "answer.json").write_text('{"best": "vit"}')
    text = {"run_id": "run", "family": "vit", "model": "m", "status": "done", "role": "final", "error": ""}
    write_results(tmp_path, [dict.fromkeys(COLUMNS, 1) | text])
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "run").symlink_to(folder / "run")
    assert list(predict(str(tmp_path), [image])) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "imagse"], "imagse: no such file - did you mean `images`?"),
        (["run", "empty"], "empty: no images in this folder"),
        (["run", "damaged.png"], "damaged.png: not an image in any known format"),
        (["rnu", "images"], "rnu: no such file - did you mean `run`?"),
        (
            ["masked", "images/dark"],
            "masked was trained by masking, it has no classifier: fine-tune it first ([start])",
        ),
    ],
)
def test_what_cannot_be_predicted_is_one_line(
    folder: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one_line(folder, ["predict", *arguments], message, capsys, monkeypatch)


def one_line(
    folder: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Asserts that a verb says `message` and exits with 2."""
    monkeypatch.chdir(folder)
    Path("damaged.png").write_bytes(b"no picture")
    Path("empty").mkdir(exist_ok=True)
    if arguments[1] == "masked" and not Path("masked").exists():
        objective = {"name": "masked", "decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2}
        data = {"source": f"folder:{folder / 'images'}", "heldout": 12}
        train(parse({**RUN, "steps": 2, "objective": objective, "data": data}, RunConfig), Path("masked"))
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {message}"


# Evaluation


def test_an_evaluation_is_that_of_the_run_and_counts_as_scikit_learn_does(folder: Path) -> None:
    from scipy.stats import binomtest
    from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support

    found = evaluate(str(folder / "run"), str(folder / "images"))
    status = json.loads((folder / "run" / "status.json").read_text())
    assert (found.part, found.images) == ("the held-out part", 12)
    assert found.accuracy == status["heldout_accuracy"]
    assert found.loss == pytest.approx(status["heldout_loss"], rel=1e-5)
    with pytest.warns(DataNotice, match="the run was trained on these images"):
        found = evaluate(str(folder / "run"), f"folder:{folder / 'images'}", part="train")
    assert (found.part, found.images) == ("the train part", 60)
    names = ["bright", "dark"]
    true, told = ([getattr(judged, name) for judged in found.each] for name in ("label", "predicted"))
    precision, recall, f1, support = precision_recall_fscore_support(true, told, labels=names)
    for k, score in enumerate(found.classes):
        assert score.name == names[k]
        assert [score.precision, score.accuracy, score.f1] == pytest.approx([precision[k], recall[k], f1[k]])
        assert score.images == support[k]
    assert found.confusion == confusion_matrix(true, told, labels=names).tolist()
    bright = [j.probability if j.predicted == "bright" else 1 - j.probability for j in found.each]
    assert found.loss == pytest.approx(log_loss(true, [[p, 1 - p] for p in bright], labels=names), rel=1e-4)
    for right, images in ((0, 7), (3, 7), (7, 7), (912, 1000)):
        theirs = binomtest(right, images).proportion_ci(0.95, "wilson")
        assert wilson_interval(right, images) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_classes_are_matched_by_name_and_damaged_images_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "images" / "dark", tmp_path / "images" / "test" / "dark")
    (tmp_path / "images" / "test" / "dark" / "00.png").write_bytes(b"no picture")
    files = {"output": str(tmp_path / "each.csv"), "report": str(tmp_path / "page.html")}
    more = [word for name, path in files.items() for word in (f"--{name}", path)]
    told = "no image of 1 of the 2 classes, `bright` among them"
    with pytest.warns(DataNotice, match=told), pytest.raises(SystemExit) as caught:
        main(["evaluate", str(folder / "run"), str(tmp_path / "images"), *more, "--json"])
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert (caught.value.code, found["images"], found["part"]) == (0, 29, "the test part")
    assert [score["images"] for score in found["classes"]] == [0, 29]  # `dark` is the second class of the run
    assert found["accuracy"] > 0.8
    assert found["damaged"] == [
        {"file": str(tmp_path / "images/test/dark/00.png"), "reason": "not an image in any known format"}
    ]
    assert err.splitlines()[-1].startswith("warning: 1 of 30 images are damaged and were skipped: ")
    with open(files["output"], newline="") as file:
        rows = list(csv.DictReader(file))
    assert (len(rows), {row["label"] for row in rows}) == (29, {"dark"})
    assert sum(row["right"] == "True" for row in rows) == found["right"]
    assert "Right on" in Path(files["report"]).read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "imagse"], "imagse: no such file or folder - did you mean `images`?"),
        (["run", "images/dark"], "folder:images/dark: its images have no labels, and an evaluation needs them"),
        (
            ["run", "empty"],
            "folder:empty: no images; expected one subfolder per class with image files inside",
        ),
        (
            ["run", "others"],
            "folder:others: class `darc` is not among the 2 classes of the classifier of run - did you mean `dark`?",
        ),
        (["run", "digits"], "digits has 10 classes, the classifier of run 2"),
        (
            ["run", "scenes"],
            "scenes: objects or maps of classes; a classifier is evaluated on images with a class each",
        ),
        (
            ["run", "images", "--part", "test"],
            "folder:images: no test part; expected subfolders train and test, val, validation",
        ),
        (["run", "images", "-o", "x.txt"], "x.txt: the name of this file ends with .csv or .json"),
        (["run", "images", "--report", "there/x.html"], "there: no such file - did you mean `others`?"),
        (["run", "broken"], "broken/dark/0.png: not an image in any known format (and 1 others cannot be read either)"),
        (
            ["masked", "images"],
            "masked was trained by masking, it has no classifier: fine-tune it first ([start])",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    folder: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("others/darc", "others/bright"):
        if not (folder / name).exists():
            shutil.copytree(folder / "images" / "dark", folder / name)
    (folder / "broken" / "dark").mkdir(parents=True, exist_ok=True)
    for k in range(2):
        (folder / "broken" / "dark" / f"{k}.png").write_bytes(b"no picture")
    one_line(folder, ["evaluate", *arguments], message, capsys, monkeypatch)


@pytest.mark.parametrize("classes", [2, 60])
def test_the_page_escapes_names_and_needs_no_script_of_others(classes: int, folder: Path, tmp_path: Path) -> None:
    names = [f"<script>alert({k})</script>\x1b" for k in range(classes)]
    score: dict[str, Any] = {"images": 1, "predicted": 1, "accuracy": 0.0, "interval": (0.0, 0.8), "precision": 0.0}
    mistake = {"file": "a/<b>'\".png", "label": names[0], "predicted": names[1], "probability": 0.9, "loss": 2.5}
    document = {
        "checkpoint": "<i>run",
        "data": "folder:<u>",
        "part": "the test part",
        "images": 2,
        "right": 0,
        "accuracy": 0.0,
        "interval": (0.0, 0.66),
        "level": 0.95,
        "loss": 2.0,
        "top5": None,
        "calibration_error": 0.5,
        "classes": [{**score, "f1": 0.0, "name": name} for name in names],
        "confusion": (1 - np.eye(classes, dtype=int)).tolist(),
        "confusions": [(names[0], names[1], 1)],
        "mistakes": [mistake],
        "damaged": [{"file": "<s>", "reason": "<s>"}],
    }
    page = write_evaluation(document, [np.zeros((8, 8, 3), np.uint8)], tmp_path / "page.html").read_text()
    assert not re.findall(r"<script>alert|<i>|<u>|<b>'|<s>|\x1b", page)
    assert ("<td class=hit" in page or "<td style" in page) == (classes == 2)
    assert len(page) < 60_000  # without plotly.js


def test_pixels_of_prediction_evaluation_and_export_are_the_same(at_160_px: Path, tmp_path: Path) -> None:
    import timm
    from timm.data import create_transform, resolve_data_config

    data = {"source": f"folder:{at_160_px / 'images'}", "image_size": 160, "heldout": 2, "interpolation": "bicubic"}
    config = parse({**RUN, "steps": 2, "batch_size": 4, "data": data}, RunConfig)
    assert train(config, tmp_path / "run").state == "done"
    found = evaluate(str(tmp_path / "run"), str(at_160_px / "images"))
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert found.loss == pytest.approx(status["heldout_loss"], rel=1e-6)
    export(str(tmp_path / "run"), "timm", tmp_path / "timm")
    export(str(tmp_path / "run"), "safetensors", tmp_path / "ours")
    files = [at_160_px / "images" / "a" / f"{k}.png" for k in (0, 5)]  # of 150 × 290 and 215 × 190 pixels
    told, exported, ours = (list(predict(str(tmp_path / name), files, top=2)) for name in ("run", "timm", "ours"))
    assert [guesses for _, guesses in told] == [guesses for _, guesses in ours]
    peer = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=peer))
    assert "interpolation=bicubic" in str(transform)
    for (path, guesses), (_, again) in zip(told, exported, strict=True):
        pixels = transform(Image.open(path).convert("RGB"))
        with torch.no_grad():
            theirs = peer(pixels[None]).softmax(dim=1)[0]
        assert {g.index: g.probability for g in guesses} == pytest.approx(dict(enumerate(theirs.tolist())), abs=2e-3)
        assert [g.probability for g in again] == pytest.approx([g.probability for g in guesses], abs=1e-6)
