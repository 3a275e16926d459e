"""`isoflop inspect` from the command line: whose models it opens, and what it refuses."""

import json
from pathlib import Path

import pytest

from isoflop.cli import main


def isoflop(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `isoflop inspect`."""
    with pytest.raises(SystemExit) as caught:
        main(["inspect", *arguments])
    return int(caught.value.code or 0), *capsys.readouterr()


def test_a_vit_of_timm_is_opened_by_its_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    monkeypatch.chdir(tmp_path)
    status, out, _ = isoflop(capsys, "timm:test_vit", "--data", "digits", "--images", "2", "--random")
    assert (status, out.splitlines()[-1]) == (
        0,
        "timm:test_vit on 2 images: pictures and inspect.json in inspect-random/timm-test_vit",
    )
    found = json.loads((tmp_path / "inspect-random" / "timm-test_vit" / "inspect.json").read_text())
    assert not {"position_similarity", "attention_distance", "attention_rollout"} & set(found["skipped"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("timm:test_vit",), "timm:test_vit: not a finished run; name images with --data"),
        ((".",), ".: not a finished run; name images with --data"),
        (("absent", "--data", "digits"), "absent: no such file"),
        (("timm:tset_vit", "--data", "digits"), "timm has no model 'tset_vit' - did you mean `timm:test_vit`?"),
    ],
)
def test_what_cannot_be_looked_into_is_one_line(
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = isoflop(capsys, *arguments)
    assert (status, err) == (2, f"error: {message}\n")
