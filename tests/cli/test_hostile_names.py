"""Names of classes and files come from strangers: none reaches a terminal, a pipe, a page or a card as it is."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isoflop.cli.output import guard_streams, json_text, over_the_line, print_table
from isoflop.data import open_source
from isoflop.data.records import class_lines, read_class_lines
from isoflop.errors import DataError
from isoflop.escapes import markdown_code, markdown_text, printable
from isoflop.report.text import escape, script_json
from tests.cli.lines import isoflop

TITLE = "\x1b]0;owned\x07"
CLASSES = (f"a{TITLE}", "b\nc\r\x1b[2K", "d\u202ee\x9b31m", "<img src=x onerror=alert(1)>|`*")
RUN = """
steps = 2
batch_size = 4
[model]
name = "vit_w4d1p8"
[data]
source = {source}
heldout = 4
image_size = 32
augment = "none"
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / f"x\x1b[31m{TITLE}"
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in CLASSES:
            (folder / part / name).mkdir(parents=True)
            for k in range(5):
                pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{k}\x1b[8m\n\x9d.png")
    (folder / "train" / CLASSES[0] / f"damaged{TITLE}\n.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    return folder


def clean(*texts: str) -> bool:
    """Whether there is nothing but characters of lines."""
    return all(line.isprintable() for text in texts for line in text.split("\n"))


def test_every_verb_escapes_what_it_prints(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = isoflop(capsys, "data", "check", f"folder:{images}")
    assert clean(out, err)
    assert status == 1
    assert "\\x1b]0;owned\\x07" in out
    status, out, err = isoflop(capsys, "data", "check", f"folder:{images}", "--json")
    assert clean(out, err)
    assert list(json.loads(out)["classes"]) == sorted(CLASSES)
    Path("run.toml").write_text(RUN.format(source=json.dumps(f"folder:{images}")))
    status, out, err = isoflop(capsys, "train", "run.toml", "--output", "run")
    assert (status, clean(out, err)) == (2, True)
    assert "1 of" in err
    (images / "train" / CLASSES[0] / f"damaged{TITLE}\n.png").unlink()
    status, out, err = isoflop(capsys, "train", "run.toml", "--output", "run")
    assert (status, clean(out, err)) == (0, True)
    status, out, err = isoflop(capsys, "predict", "run", *map(str, sorted((images / "test" / CLASSES[0]).iterdir())))
    assert (status, clean(out, err)) == (0, True)
    assert all(printable(name) in out for name in CLASSES)
    lines = len(out.splitlines())
    status, out, err = isoflop(
        capsys, "predict", "run", *map(str, sorted((images / "test" / CLASSES[0]).iterdir())), "--json"
    )
    assert (status, clean(out, err)) == (0, True)
    assert lines == 1 + sum(len(image["classes"]) for image in json.loads(out)["images"])
    told = ("--protocol", "ridge", "--data", f"folder:{images}", "shots=1", "--output", "judged")
    status, out, err = isoflop(capsys, "transfer", "run", *told)
    assert (status, clean(out, err)) == (0, True)
    assert clean(Path("judged/result.md").read_text())
    status, out, err = isoflop(capsys, "export", "run", "--to", "timm", "--output", "timm")
    assert (status, clean(out, err)) == (0, True)
    card = Path("timm/README.md").read_text()
    assert clean(card)
    assert "\\x1b]0;owned" in card
    names = tuple(json.loads(Path("timm/config.json").read_text())["label_names"])
    assert names == tuple(sorted(CLASSES))  # as they are, where they are data
    for arguments in (
        ("export", f"no{TITLE}", "--to", "timm", "--output", "o"),
        ("predict", "run", f"no{TITLE}\n.png"),
    ):
        status, out, err = isoflop(capsys, *arguments)
        assert (status, clean(out, err)) == (2, True)
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize("to", ["shards", "folder"])
def test_a_class_name_that_classes_txt_cannot_hold_is_refused(
    to: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = isoflop(capsys, "data", "convert", f"folder:{images}", str(tmp_path / "out"), "--to", to)
    assert clean(out, err)
    if to == "shards":
        assert status == 2
        assert "the class `b\\nc\\r\\x1b[2K` cannot be stored in classes.txt" in err
        return
    assert status == 0
    made = open_source(f"folder:{tmp_path / 'out'}", split="test", image_size=32)
    assert made.num_classes == len(CLASSES)
    assert all(name.isprintable() for name in made.class_names)


@pytest.mark.parametrize("name", ["a\nb", "a\rb", " a", "a\t", "", "\udce9"])
def test_names_that_would_come_back_as_others_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="the class `") as refused:
        class_lines(["ok", name], "here")
    assert clean(str(refused.value))


def test_names_come_back_as_they_were() -> None:
    names = ("cat", "d\u2028og", "a\x0bb", "\x1b[31m", "x\x85y", "b c", "#")
    assert read_class_lines(class_lines(names, "here"), "here") == names
    assert read_class_lines("\ufeffcat\r\ndog\r\n\r\n", "here") == ("cat", "dog")
    with pytest.raises(DataError, match="here: line 2 has no name"):
        read_class_lines("cat\n\ndog\n", "here")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_no_sequence_but_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    guard_streams()
    print(f"\r\x1b[2K{TITLE}")
    over_the_line(f"1 of 2 {TITLE}")
    print_table((f"head{TITLE}",), [(f"\x1b[8m{TITLE}\n",)])
    shown = screen.getvalue()
    assert TITLE not in shown
    assert "\x1b[8m" not in shown
    assert shown.startswith("\\r\\x1b[2K\\x1b]0;owned\\x07\n\r\x1b[2K1 of 2 \\x1b]0;owned\\x07")


def test_json_markdown_and_pages_escape_in_their_own_way() -> None:
    name: Any = "\x1b[1m\x9b\u202e\ud800</script>|`a`*[x](y)"
    assert clean(json_text({name: 1}))
    assert json.loads(json_text({name: 1})) == {name: 1}
    assert clean(script_json(name))
    assert "<" not in script_json(name)
    assert json.loads(script_json(name)) == name
    assert clean(escape(name))
    assert "<" not in escape(name)
    assert markdown_text("|<b>[x](y)`") == r"\|\<b\>\[x\](y)\`"
    assert markdown_code("a``b|\n") == "``` a``b\\x7c\\n ```"
    assert os.linesep not in markdown_text("a\nb")


def test_a_space_between_a_number_and_its_unit_is_a_space_on_a_terminal() -> None:
    assert printable("49.7\xa0% \x1b[2J") == "49.7 % \\x1b[2J"
