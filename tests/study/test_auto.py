"""`isoflop auto`: from images to a judged and exported classifier; stopped, it goes on; told again at once."""

import itertools
import json
import random
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

import isoflop
from isoflop.cli import main, narration
from isoflop.config.problems import literal
from isoflop.errors import ConfigError
from isoflop.models import cost
from isoflop.runs.times import Times
from isoflop.study.auto import (
    EVALUATION,
    SIDES,
    Choice,
    _config,
    auto,
    held_out,
    image_size,
    start_size,
    study_name,
    summary,
)
from isoflop.study.starts import cached_weights
from tests.processes import SERVER
from tests.promises.chaos import Blow, auto_in, join, without_figures
from tests.study.here import Here

TINY: dict[str, Any] = {  # in place of hours: a ladder of FLOPs, the same wherever it is trained
    "study.hours": None,
    "study.budgets": [4e7, 8e7, 1.6e8],
    "study.target_budget": 3.2e8,
    "study.workers": 1,
    "batch_size": 8,
    "precision": "float32",
    "families": {"vit": {"sizes": ["vit_w4d1p8", "vit_w8d1p8"], "learning_rates": [1e-2]}},
    "laws.bootstrap": 20,
}
OVERRIDES = [f"{key}={literal(value)}" for key, value in TINY.items()]
VIT = f"families={literal(TINY['families'])}"


def picture(folder: Path, name: str, level: int, side: int = 32) -> None:
    """A noisy image whose brightness is that of its class."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(list(folder.iterdir())) + 1000 * level).integers(0, 100, (side, side, 3))
    Image.fromarray((noise + level).astype(np.uint8)).save(folder / name)


def pictures(root: Path, counts: dict[str, int], side: int = 32) -> Path:
    for label, (name, count) in enumerate(counts.items()):
        for number in range(count):
            picture(root / name, f"{number}.png", 100 * label, side)
    return root


@pytest.fixture(scope="module")
def day_and_night(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "My images", {"night": 40, "day": 40})


@pytest.fixture(scope="module", autouse=True)
def no_figures() -> Iterator[None]:
    """The figures of a report take most of the time of a tiny study; tests/report has them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isoflop.report.result.write_study_report", without_figures)
        yield


@pytest.fixture(scope="module")
def done(day_and_night: Path, tmp_path_factory: pytest.TempPathFactory) -> isoflop.study.StudyResult:
    """The study of the images, not interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isoflop.study.auto.evaluate", lambda *_: pytest.fail("the test part was judged again"))
        return auto(day_and_night, output=folder, overrides=OVERRIDES, executor=Here())


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["auto", *arguments])
    return int(caught.value.code or 0), *capsys.readouterr()


def test_images_become_a_judged_and_exported_classifier(done: isoflop.study.StudyResult, day_and_night: Path) -> None:
    config = done.answer["study"]["config"]
    assert config["data"]["source"] == f"folder:{day_and_night}?test=12"
    assert (config["data"]["image_size"], config["data"]["heldout"]) == (32, 8)
    accuracy = done.answer["selected"]["accuracy"]
    assert (accuracy["part"], accuracy["images"], accuracy["accuracy"]) == ("test", 12, 1.0)  # easily told apart
    assert (done.directory / "report.html").exists()
    page = (done.directory / EVALUATION).read_text(encoding="utf-8")
    assert "Right on 12 of 12 images" in page
    assert f"isoflop evaluate {done.directory}" in page
    assert "Confusion matrix" in page
    import timm

    exported = timm.create_model(f"local-dir:{done.directory / 'export-timm'}", pretrained=True)
    assert exported.num_classes == 2
    use, good, cost, more, following = summary(done)
    assert re.fullmatch(
        r"Use: vit_w\d+d\dp8 \([\d,]+ parameters, 32 px\), \d+ epochs at learning rate 0[.\d]+; weights: .*", use
    )
    assert str(done.directory / "export-timm") in use
    assert "Test accuracy 100.0\u00a0% (95\u00a0% interval 75.8–100.0\u00a0%) on 12 images" in good
    assert re.fullmatch(r"Cost: .* hours, \d+ runs\.", cost)
    assert more.startswith("More: ")
    assert following.startswith("Next: isoflop predict ")


def test_the_folder_alone_is_judged_on_the_same_test_part(
    done: isoflop.study.StudyResult, day_and_night: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = isoflop.transfer.evaluate(str(done.directory), str(day_and_night))
    again = isoflop.transfer.evaluate(str(done.directory), f"folder:{day_and_night}?test=12")
    assert (found.part, found.images) == (again.part, again.images) == ("the test part", 12)
    assert [one.file for one in found.each] == [one.file for one in again.each]


def test_a_finished_study_is_told_again_and_not_run(
    done: isoflop.study.StudyResult,
    day_and_night: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("isoflop.study.auto.run_study", lambda *_, **__: pytest.fail("it was run again"))
    monkeypatch.setattr("isoflop.study.auto.check", lambda *_, **__: pytest.fail("it was checked again"))
    status, out, err = told(capsys, str(day_and_night), *OVERRIDES, "--output", str(done.directory))
    assert (status, out.split("\n"), err) == (0, ["", *(line.replace("\u00a0", " ") for line in summary(done)), ""], "")
    # another study in its place is refused, as are other images
    status, _, err = told(capsys, str(day_and_night), "--output", str(done.directory), "--hours", "3")
    assert (status, err.count("\n")) == (2, 1)
    assert "is a study of no hours, not of 3.0; give --hours" in err
    picture(day_and_night / "day", "new.png", 7)
    try:
        status, _, err = told(capsys, str(day_and_night), *OVERRIDES, "--output", str(done.directory))
    finally:
        (day_and_night / "day" / "new.png").unlink()
    assert (status, err.count("\n")) == (2, 1)
    assert "the data have changed since the study started" in err


@pytest.mark.parametrize(("seed", "kills"), [(0, 2), *(pytest.param(k, 5, marks=pytest.mark.long) for k in range(5))])
def test_killed_at_random_it_goes_on_to_the_same_answer(
    seed: int, kills: int, done: isoflop.study.StudyResult, day_and_night: Path, tmp_path: Path
) -> None:
    """At random changes to files: of the check, the plan, runs, the answer, the evaluation, the export."""
    chance, hits = random.Random(seed), 0
    for _ in range(kills):
        blow = Blow(steps=0, files=chance.randrange(1, 180))
        process = SERVER.Process(target=auto_in, args=(day_and_night, tmp_path / "study", OVERRIDES, blow))
        process.start()
        [status] = join([process])
        assert status in (0, -signal.SIGKILL)
        hits += status != 0
    assert hits >= kills - 1  # undisturbed it makes about 500 changes
    again = auto(day_and_night, output=tmp_path / "study", overrides=OVERRIDES, executor=Here())
    for key in ("best", "selected", "final"):
        ours, theirs = (_without_clocks(study.answer[key]) for study in (again, done))
        assert ours == theirs
    assert [row["heldout_loss"] for row in again.rows] == [row["heldout_loss"] for row in done.rows]
    assert (again.directory / EVALUATION).exists()
    assert (again.directory / "export-timm").is_dir()


def _without_clocks(value: Any) -> Any:
    """What does not depend on the clock."""
    clocks = ("seconds", "images_per_second")
    return {key: item for key, item in value.items() if key not in clocks} if isinstance(value, dict) else value


def test_a_format_that_the_winner_lacks_is_replaced_by_one_that_it_has(
    done: isoflop.study.StudyResult,
    day_and_night: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from isoflop.errors import ModelError
    from isoflop.share import export

    def picky(checkpoint: str, format: str, output: Path) -> Any:
        if format != "safetensors":
            raise ModelError(f"{format} has nothing like it")
        return export(checkpoint, format, output)

    monkeypatch.setattr("isoflop.study.auto.export", picky)
    (done.directory / "export-timm").rename(done.directory / "aside")
    try:
        status, out, _ = told(capsys, str(day_and_night), *OVERRIDES, "--output", str(done.directory), "--to", "hf")
    finally:
        (done.directory / "aside").rename(done.directory / "export-timm")
    assert status == 0
    assert "warning: huggingface has nothing like it" in out
    assert f", for isoflop: {done.directory / 'export-safetensors'}\n" in out
    with pytest.raises(ConfigError, match="one of timm, huggingface, onnx, safetensors, not 'keras'"):
        auto(day_and_night, to="keras")
    monkeypatch.setattr("isoflop.study.auto.find_spec", lambda package: None)
    with pytest.raises(ConfigError, match="export to onnx needs onnx: pip install"):
        auto(day_and_night, to="onnx")


def test_weights_to_start_from_are_contenders(done: isoflop.study.StudyResult) -> None:
    weights = ["timm:resnet18.a1_in1k", str(done.directory)]
    config = _config("mine", 1.0, Choice("folder:images", 32, 10), weights, [])
    assert list(config.families) == ["resnet9", "vit", "resnet18-a1_in1k", "study"]
    run = config.run_config("study", model="vit_w8d1p8", steps=100, learning_rate=1e-3)
    assert run.start is not None
    assert run.start.weights == str(done.directory)
    assert config.families["resnet18-a1_in1k"].start is not None
    assert config.families["resnet18-a1_in1k"].start.head == "probe"


def test_images_of_trained_weights_are_as_large_as_fine_tuning_can_pay_for(tmp_path: Path) -> None:
    model = timm.create_model("test_efficientnet")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    known = {"architecture": "test_efficientnet", "pretrained_cfg": {"input_size": [3, 160, 160]}}
    (tmp_path / "config.json").write_text(json.dumps({**known, "num_classes": 1000}))
    flops = cost("timm:test_efficientnet", image_size=96).train_flops_per_image
    assert start_size(str(tmp_path), 100, 1.01 * 8000 * flops) == 96
    assert start_size(str(tmp_path), 4000, 1.01 * 16000 * flops) == 96
    assert start_size(str(tmp_path), 10**6, 1.01 * 20000 * flops) == 96
    assert start_size(str(tmp_path), 100, 1e18) == 160  # no larger than the weights are used to
    assert start_size(str(tmp_path), 100, 1.0) == 64


def test_weights_in_the_cache_of_the_hub_are_contenders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    assert cached_weights() == ()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("timm--resnet18.a1_in1k", "timm--no_model_of_timm", "somebody--resnet18.a1_in1k"):
        (tmp_path / f"models--{name}" / "snapshots" / "0").mkdir(parents=True)
        (tmp_path / f"models--{name}" / "snapshots" / "0" / "model.safetensors").write_bytes(b"")
    assert cached_weights() == ("timm:resnet18.a1_in1k",)


@pytest.mark.parametrize("pace", [0.8, 1.0, 1.25])
def test_the_time_left_falls_with_the_clock(
    pace: float, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narration, "duration", lambda seconds: f"{seconds:.1f} s")
    monkeypatch.setattr(narration, "SECONDS_BETWEEN_LINES", -1.0)
    clock = [0.0]
    bar = narration.BarNarrator(Times(lambda: clock[0]))
    bar.planned_seconds = 1000.0
    for second in range(0, 301, 10):
        clock[0] = second
        bar.progress(2.0 * second, 1000.0, 1, 9)
    bar.rung(2, 2, [])
    ends = 300 + round(700 / pace)  # of the answer, which takes longer or shorter than the clock has left for it
    for second in range(300, ends + 1, 10):
        clock[0] = second
        bar.progress(600 + 400 * (second - 300) / (ends - 300), 1000.0, 9, 10)
    left = [float(found) for found in re.findall(r"([\d.]+) s left", capsys.readouterr().out)]
    assert (left[0], left[30], left[31]) == (1000.0, 700.0, 700.0)
    assert left[-1] < 11
    assert all(-25 < after - before < 0.1 for before, after in itertools.pairwise(left))


def nothing(_: Path) -> None:
    """Leaves the folder empty."""


@pytest.mark.parametrize(
    ("make", "arguments", "said"),
    [
        (lambda root: root.rmdir(), [], "no such file or folder"),
        (nothing, [], "no images; expected one subfolder per class"),
        (lambda root: pictures(root, {"only": 30}), [], "one class, `only`: there is nothing to tell apart"),
        (lambda root: pictures(root, {"a": 1}), [], "one class, `a`"),
        (lambda root: picture(root, "loose.png", 0), [], "no classes: there is nothing to tell apart"),
        (lambda root: pictures(root, {"a": 12, "b": 9}), [], "21 images of 2 classes, 10 a class, are too few"),
        (lambda root: pictures(root, {"a": 60, "b": 2}), [], "are of class `a`"),
        (lambda root: pictures(root, {"a": 30, "b": 30}), ["--hours", "1e-6", "precision=float32", VIT], "raise it to"),
        (lambda root: pictures(root, {"a": 30, "b": 30}), ["--hours", "-1"], "`study.hours` = -1"),
        (lambda root: pictures(root, {"a": 30, "b": 30}), ["optim.wieght_decay=1"], "did you mean"),
        (lambda root: pictures(root, {"a": 30, "b": 30}), ["--to", "keras"], "`--to` is one of"),
        (lambda root: pictures(root, {"a": 30, "b": 30}), ["--start", "nowhere"], "nowhere: "),
        (lambda root: (root / "a").mkdir() or (root / "a" / "b.png").write_bytes(b"no image"), [], "broken"),
    ],
)  # fmt: skip
def test_images_that_cannot_be_studied_are_one_line(
    make: Callable[[Path], Any],
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "mine").mkdir()
    make(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    status, _, err = told(capsys, "mine", *arguments)
    errors = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert status == 2
    assert len(errors) == 1
    assert said in errors[0]
    assert not Path("studies/mine/study.json").exists()


@pytest.mark.parametrize(
    ("side", "images", "flops", "size"),
    [
        (28, 60_000, 1e18, 32),  # never below the smallest
        (32, 50_000, 1e13, 32),
        (288, 1_000, 1e13, 64),  # a quarter of an hour on two cores: 100,000 images at 79 px
        (288, 1_000, 2e13, 96),  # half an hour
        (288, 20_000, 2e13, 64),  # each 10 times: 79 px
        (100, 1_000, 1e18, 96),  # nothing is enlarged
        (4000, 1_000_000, 1e20, 224),
        (288, 1_000, 1e9, 32),
    ],
)
def test_the_image_size_grows_with_the_hours_and_falls_with_the_images(
    side: int, images: int, flops: float, size: int
) -> None:
    assert image_size(side, images, flops) == size
    assert size in SIDES


def test_few_images_are_for_training_first() -> None:
    assert held_out(60_000, 10, has_test=False) == (1000, 2000)
    assert held_out(60_000, 10, has_test=True) == (1000, 0)
    assert held_out(1000, 10, has_test=False) == (100, 150)
    assert held_out(210, 10, has_test=False) == (21, 10)  # a study asks for 20 a class
    assert held_out(150, 10, has_test=False) == (15, 0)


def test_a_study_is_called_like_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert study_name("folder:/data/My images") == "My-images"
    assert study_name("parquet:sets/cifar10.parquet") == "cifar10"
    assert study_name("shards:sets/birds/*.tar") == "birds"
    monkeypatch.chdir(tmp_path)
    assert study_name("folder:.") == re.sub(r"[^A-Za-z0-9._-]+", "-", tmp_path.name).strip("._-")
    assert study_name("folder:..") != ""
