"""Images from files get the classes that the model gives them when it is evaluated."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from isoflop.cli import main
from isoflop.config import RunConfig, parse
from isoflop.data import open_split
from isoflop.train import train
from isoflop.transfer import load_backbone, predict

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
        (["run", "images"], "images: no images in this folder"),
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
    if arguments[0] == "masked" and not Path("masked").exists():
        objective = {"name": "masked", "decoder_depth": 1, "decoder_width": 16, "decoder_heads": 2}
        data = {"source": f"folder:{folder / 'images'}", "heldout": 12}
        train(parse({**RUN, "steps": 2, "objective": objective, "data": data}, RunConfig), Path("masked"))
    with pytest.raises(SystemExit) as caught:
        main(["predict", *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"
