"""Images from files get the classes that the model gives them when it is evaluated."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from isoflop.cli import main
from isoflop.config import RunConfig, parse
from isoflop.data import open_source, open_split
from isoflop.errors import DataError
from isoflop.train import train
from isoflop.transfer import load_backbone, predict
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
        assert guesses[0].name == path.parent.name  # dark and bright are easily told apart
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
    assert [path.name for path in told][-2:] == ["exact.png", "turned.jpg"]
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
    assert caught.value.code == 1
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert len(told["images"]) == 58
    assert {Path(each["file"]).name: each["reason"] for each in told["damaged"]} == {
        "05.png": "not an image in any known format",
        "07.png": "damaged image: image file is truncated",
        "pipe.png": "not a regular file",
    }
    assert err.splitlines()[-1] == "warning: 3 of 61 images are damaged and were skipped"
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
    monkeypatch.chdir(folder)
    Path("damaged.png").write_bytes(b"no picture")
    Path("empty").mkdir(exist_ok=True)
    if arguments[0] == "masked" and not Path("masked").exists():
        objective = {"name": "masked", "decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2}
        data = {"source": f"folder:{folder / 'images'}", "heldout": 12}
        train(parse({**RUN, "steps": 2, "objective": objective, "data": data}, RunConfig), Path("masked"))
    with pytest.raises(SystemExit) as caught:
        main(["predict", *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"
