"""`isoflop transfer` from the command line: its table, its files, and what it refuses."""

import json
from pathlib import Path

import pytest

from isoflop.cli import main
from isoflop.train import train
from tests.promises.chaos import run_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transfer")
    train(run_config(steps=20), folder / "run")
    return folder


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ISOFLOP_CACHE", str(folder / "cache"))


def isoflop(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `isoflop transfer`."""
    with pytest.raises(SystemExit) as caught:
        main(["transfer", *arguments])
    return int(caught.value.code or 0), *capsys.readouterr()


def test_a_backbone_is_judged_beside_random_weights_and_the_result_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("run", "--protocol", "ridge", "-p", "knn", "shots=5", "seeds=[0, 1]", "--beside-random")
    status, out, err = isoflop(capsys, *arguments)
    assert status == 0
    assert "95% interval" in out
    assert out.endswith("result: transfer/run/result.json\n")
    assert "4 of 4: knn, 5 shots, seed 1: accuracy" in err
    found = json.loads(Path("transfer/run/result.json").read_text())
    assert [row["protocol"] for row in found["rows"]] == ["ridge", "knn"] * 2
    assert found["rows"][2]["name"] == "vit_w12d2p8, random weights"
    assert found["config"]["shots"] == [5]
    lines = Path("transfer/run/result.md").read_text().splitlines()
    assert len(lines) == 2 + 4
    assert lines[2].startswith("| vit_w12d2p8 | digits | ridge | 5 | ")
    again = isoflop(capsys, *arguments)
    assert again == (0, out, "")  # nothing is done twice


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing",), "missing: no such file"),
        (("run", "-p", "ridgy"), 'command line: `protocols[0]` = "ridgy" must be one of'),
        (("run", "-d", "vtab:.", "-p", "head"), "protocol `head` tries a classifier on its own classes"),
        (
            ("run", "--model", "vit_b16"),
            "run contains the name of its model: --model vit_b16 is only for a file of weights",
        ),
        (("run", "-p", "ridge", "run.steps=3"), "`run` is for fine-tuning: name such a protocol, too"),
        (("run", "-p", "knn", "last_blocks=0"), "`last_blocks` is for fine-tuning: name such a protocol, too"),
        (("run", "-d", "nothing:x"), "unknown data source `nothing:x`"),
        (("run", "-d", "vtab:nowhere"), "vtab:nowhere: no such folder"),
        (("run", "-p", "finetune_vit", "run.stepz=3"), "fine-tuning: unknown key `stepz` - did you mean `steps`?"),
        (("run", "-p", "head", "-d", "digits"), "digits has 10 classes, the classifier of vit_w12d2p8 20"),
        (("timm:resnet81", "--random"), "timm has no model 'resnet81' - did you mean `timm:resnet18`?"),
    ],
)
def test_what_cannot_be_judged_is_one_line_and_status_two(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    status, out, err = isoflop(capsys, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
