"""`isoflop auto`: from a folder of images to a classifier that is trained, judged and exported, within given hours."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from isoflop.config import StudyConfig, dotted, flatten, literal
from isoflop.config.load import load
from isoflop.data import CheckReport, check, open_split
from isoflop.data.inspection import guess_uri
from isoflop.data.opening import open_records, parse_uri
from isoflop.data.records import ALLOWED_SHARE, TEST_NAMES
from isoflop.errors import ConfigError, DataError, ModelError, StudyError
from isoflop.escapes import printable
from isoflop.laws.columns import tells_nothing
from isoflop.models import cost
from isoflop.models.saved import architecture_of
from isoflop.report.evaluation import write_evaluation
from isoflop.report.law import FamilyLaw, accuracy_sentence
from isoflop.report.result import StudyResult, open_study
from isoflop.report.text import between, number, quantity
from isoflop.runs.results import read_whole
from isoflop.runs.times import Times
from isoflop.share import FORMATS, export
from isoflop.share.export import PACKAGES, READERS, find_format
from isoflop.study.executors import Executor
from isoflop.study.plan import USUAL_UTILISATION
from isoflop.study.planned import ANSWER_SHARE, FEWEST_OF_A_CLASS
from isoflop.study.run import Narrator, run_study
from isoflop.study.starts import cached_weights
from isoflop.study.store import Store
from isoflop.train.device import choose_device, peak_of, usable_cores
from isoflop.transfer import Evaluation, evaluate, open_backbone

HOURS = 0.5
SGD = {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "clip": None}  # as scripts of ResNets train
FAMILIES: dict[str, dict[str, Any]] = {
    "resnet9": {"sizes": 2, "recipe": "search", "optim": SGD},
    "vit": {"sizes": 2, "recipe": "search"},
}
"""The contenders, beside those that start from weights."""

# What is chosen for the images: a size, and how many are held out.


SIDES = (32, 64, 96, 128, 160, 192, 224)
EPOCHS = 10
"""The answer for CIFAR-10 in a quarter of an hour saw its images 12 times (docs/results/cifar10.md)."""
FEWEST_SEEN = 100_000
FLOPS_PER_PIXEL = 16_000
"""Of training on an image: 19,000 of that answer, `resnet_w16d8p2` at 32 px; 15,000 of `resnet_w24d8p4` at 64 px."""


def image_size(side: int, images: int, flops: float) -> int:
    """The largest of `SIDES` at which `flops` of training let a usual model see enough images, and no larger than the
    images are: `side` is their median shorter side.

    Enough is each of the `images` `EPOCHS` times, and `FEWEST_SEEN` in all: a model that learns from nothing needs so
    many to learn more than colours, and then details pay more than epochs. Training costs `FLOPS_PER_PIXEL`:

        side² ≤ flops / (FLOPS_PER_PIXEL · max(EPOCHS · images, FEWEST_SEEN))
    """
    affordable = math.sqrt(flops / (FLOPS_PER_PIXEL * max(EPOCHS * images, FEWEST_SEEN)))
    return max((size for size in SIDES if size <= min(side, affordable)), default=SIDES[0])


HELDOUT_SHARE, TEST_SHARE = 0.1, 0.15
MOST_HELDOUT, MOST_TEST = 1000, 2000


def held_out(images: int, classes: int, *, has_test: bool) -> tuple[int, int]:
    """How many of the images are held out to choose runs by, and how many are kept for the test.

    10 % to choose by, for images that nothing trains on cost accuracy: a ResNet-9 with 980 images of CIFAR-10 was 2.6
    points better than with 800. 15 % to test: an accuracy on 150 images is known to ±8 points at worst. No more than
    1,000 to choose by, for every run is evaluated on them, and 2,000 to test (±2 points). Classes keep the images that
    a study asks for, or there is no test part: with few images an answer matters more than its judgement.
    """
    heldout = max(1, min(int(HELDOUT_SHARE * images), MOST_HELDOUT))
    test = min(int(TEST_SHARE * images), MOST_TEST, images - FEWEST_OF_A_CLASS * classes)
    return heldout, 0 if has_test else max(test, 0)


class Choice(NamedTuple):
    """What the configuration of the study depends on: the data with their test part, the size, the images held out."""

    source: str
    image_size: int
    heldout: int
    start_sizes: Mapping[str, int] = {}
    """of the images of families that start from weights"""


def _choose(report: CheckReport, has_test: bool, study: StudyConfig) -> Choice:
    heldout, test = held_out(report.images, len(report.classes), has_test=has_test)
    side, images = min(report.widths[1], report.heights[1]), report.images - heldout - test
    flops = _answer_flops(study)
    starts = {
        name: start_size(family.start.weights, images, flops) for name, family in study.families.items() if family.start
    }
    return Choice(_with_test(report.uri, test), image_size(side, images, flops), heldout, starts)


TUNING_EPOCHS, FEWEST_TUNED, MOST_TUNED = 4, 8_000, 20_000
"""Of fine-tuning, and images that it sees: the fewest leave a ladder of three rungs, the lowest of 30 steps, its share;
beyond the most and beyond those epochs, larger images pay more than further ones. An EfficientNet-Lite0 with frozen
features is right about 61, 68, 72 % of CIFAR-10 at 64, 96, 160 px (1,000 labels); four epochs at 96 px bring it to 76,
twelve to 77."""


def start_size(weights: str, images: int, flops: float) -> int:
    """The largest image size, up to that of the weights, at which `flops` fine-tune them `TUNING_EPOCHS` on `images`,
    `FEWEST_TUNED` to `MOST_TUNED` images; the smallest that the model takes, where none is so small.

    Larger than the images themselves it may be: weights know objects of the size that they were trained on.
    """
    found = open_backbone(weights)
    own: int = found.model.image_size[0]
    options = architecture_of(found.options)
    affordable = flops / min(max(TUNING_EPOCHS * images, FEWEST_TUNED), MOST_TUNED)
    taken = own
    for size in [own, *(size for size in reversed(SIDES) if START_SIDE <= size < own)]:
        try:
            counted = cost(found.preset, image_size=size, in_channels=found.model.in_channels, **options)
        except ModelError:
            continue
        taken = size
        if counted.train_flops_per_image <= affordable:
            break
    return taken


START_SIDE = 64  # px: smaller ones tell weights of photographs little


def _with_test(uri: str, test: int | None) -> str:
    return f"{uri}{'&' if '?' in uri else '?'}test={test}" if test else uri


def _answer_flops(config: StudyConfig) -> float:
    """Training FLOPs of the answer, about, before any model was timed."""
    study = config.study
    if study.hours is None:
        return study.target_budget or math.inf
    device = choose_device(config.device)
    workers = (study.workers or usable_cores()) if device.type == "cpu" else 1
    rate = workers * USUAL_UTILISATION * peak_of(device, threads=1).fastest
    return ANSWER_SHARE * study.hours * 3600 * rate


def _refuse(report: CheckReport) -> None:
    """Raises DataError for data that no study can use."""
    if not report.is_usable:
        first = report.broken[0].line
        raise DataError(
            f"{printable(report.uri)}: {len(report.broken):,} of {report.images:,} images are broken, more than "
            f"{ALLOWED_SHARE:.1%}; the first: {first}. Take them away: `isoflop data check` lists them"
        )
    if len(report.classes) < 2:
        found = f"one class, `{printable(next(iter(report.classes)))}`" if report.classes else "no classes"
        raise DataError(
            f"{printable(report.uri)}: {found}: there is nothing to tell apart; expected a folder with a subfolder of "
            f"images for each of two or more classes, or train and {TEST_NAMES[0]} that have these"
        )


# The study: its configuration, whether it has begun, and whether it has ended.


def _config(name: str, hours: float, choice: Choice, starts: Sequence[str], overrides: Sequence[str]) -> StudyConfig:
    tables: dict[str, Any] = {
        "tensorboard": False,
        "study": {"name": name, "hours": hours},
        "data": {"image_size": choice.image_size, "heldout": choice.heldout, "augment": "crop_flip"},
        "schedule": {"name": "constant", "warmup": 20, "cooldown": 0.2},
        "evaluation": {"calibrate": True},
        "families": FAMILIES | {_family(start): _started(start, choice) for start in starts},
    }
    tables["data"]["source"] = choice.source
    given = [f"{dotted(path)}={literal(value)}" for path, value in flatten(tables)]
    return load(None, [*given, *overrides], StudyConfig).config


def _family(start: str) -> str:
    """The name of the family that starts from these weights: `resnet18` of `timm:resnet18.a1_in1k`."""
    name = start.partition(":")[2] if ":" in start else Path(start).stem
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "started"
    return f"{name}-started" if name in FAMILIES else name


def _started(start: str, choice: Choice) -> dict[str, Any]:
    """The table of a family that starts from these weights."""
    size = choice.start_sizes.get(_family(start))
    return {"recipe": "search", "start": {"weights": start}} | ({"image_size": size} if size else {})


def study_name(uri: str) -> str:
    """The name of the study of these data: that of their folder or file."""
    parts = [part for part in Path(parse_uri(uri)[1]).parts if not re.search(r"[*{]", part)]
    name = Path(parts[-1]).stem if parts and parts[-1] != ".." else Path.cwd().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("._-") or "images"


def _begun(config: StudyConfig, uri: str) -> Choice | None:
    """What the study in the folder of `config` was begun with; None where none was. StudyError where it has other
    hours."""
    directory = config.directory
    if not (directory / "study.json").exists():
        return None
    found = read_whole(directory, "study.json")["config"]
    hours = found["study"].get("hours")
    if hours != config.study.hours:
        raise StudyError(
            f"{directory}: is a study of {hours or 'no'} hours, not of {config.study.hours or 'no'}; give --hours "
            f"{hours} to go on with it, or another folder as --output"
        )
    test = parse_uri(found["data"]["source"])[2].get("test")
    sizes = {
        name: family["image_size"] for name, family in found["families"].items() if family.get("image_size") is not None
    }
    return Choice(_with_test(uri, test), found["data"]["image_size"], found["data"]["heldout"], sizes)


def _ended(config: StudyConfig) -> dict[str, Any] | None:
    """The answer of the study of `config` on its data if it is complete; StudyError if its folder is another's."""
    store = Store(config.directory, config.target.protocol(config.transfer))
    if not (config.directory / "answer.json").exists():
        return None
    document = store.read("answer.json")
    if "hours" not in document or not document.get("selected"):
        return None
    store.claim(store.as_begun(config), open_split(config.data, "train").fingerprint)
    return document


def auto(
    data: Path | str,
    hours: float = HOURS,
    *,
    output: Path | str | None = None,
    starts: Sequence[str] = (),
    to: str | None = None,
    overrides: Sequence[str] = (),
    narrator: Narrator | None = None,
    command: str = "",
    executor: Executor | None = None,
    stop: Callable[[], bool] = lambda: False,
    times: Times | None = None,
) -> StudyResult:
    """Checks the images of `data`, spends `hours` of this machine on a study of them, judges and exports its answer.

    Data without a test part get one (`held_out`); the size of the images is chosen (`image_size`). Called again, it
    goes on where it was stopped. The folder of the study holds report.html, evaluation.html (classes, confusion, worst
    mistakes) and the export.

    Args:
        data: a folder with a folder for each class, or with `train` and `test` that have these; or what `data.source`
            takes.
        output: the folder of the study; default `studies/NAME`.
        starts: weights from which further contenders start: `timm:NAME`, or a file. Those of timm that are in the cache
            of the hub are contenders by themselves (`cached_weights`).
        to: the format of the export, one of `FORMATS` or `hf`; by default, and where the winner does not exist in it,
            the first of these that has it.
        overrides: of the study's configuration, as `isoflop study run` takes them.
        narrator, command, executor, stop, times: as `run_study` takes them.

    Raises DataError for images that cannot be studied, ConfigError for a format whose package is missing, and what
    `run_study` raises.
    """
    narrator, times = narrator or Narrator(), times or Times()
    formats = _formats(to)
    uri = guess_uri(str(data))
    starts = tuple(dict.fromkeys([*starts, *cached_weights()]))
    name = study_name(uri) if output is None else study_name(f"folder:{output}")
    given = [f"study.output={literal(str(output))}"] if output is not None else []

    def configured(choice: Choice) -> StudyConfig:
        return _config(name, hours, choice, starts, [*given, *overrides])

    first = configured(Choice(uri, SIDES[0], 1))  # what is wrong with it is said before images are read
    choice = _begun(first, uri)
    if choice is None:
        report = check(uri, progress=narrator.checking)
        narrator.checked(report)
        _refuse(report)
        choice = _choose(report, _has_test(uri), first)
    config = configured(choice)
    directory = config.directory
    found: list[Evaluation] = []

    def evaluated(one: Evaluation) -> None:
        found.append(replace(one, checkpoint=str(directory)))  # which hands it over
        write_evaluation(found[-1].document(), found[-1].pictures, directory / EVALUATION)

    if _ended(config) is None:
        run_study(config, narrator, command=command, executor=executor, stop=stop, times=times, evaluated=evaluated)
    if not (directory / EVALUATION).exists():
        evaluated(evaluate(str(directory), config.data.source))
    for one in found:
        narrator.evaluated(one)
    _export(directory, formats, to, narrator)
    return open_study(directory)


def _has_test(uri: str) -> bool:
    try:
        return bool(len(open_records(uri, "test")))
    except DataError as error:
        if error.missing_part:
            return False
        raise


# What is there at the end: a page of the evaluation, an export, and what to know in five lines.


EVALUATION = "evaluation.html"


def _formats(to: str | None) -> list[str]:
    """The formats to export to, in the order in which they are tried; ConfigError where `to` cannot be written here."""
    wanted = [find_format(to)] if to else []
    for package in PACKAGES[wanted[0]] if wanted else ():
        if find_spec(package) is None:
            raise ConfigError(f"export to {to} needs {package}: pip install 'isoflop[export]'")
    return [*wanted, *(name for name in FORMATS if name not in wanted)]


def _export(directory: Path, formats: Sequence[str], to: str | None, narrator: Narrator) -> None:
    """Exports the winner to the first of `formats` that it exists in, unless that was done."""
    done = [name for name in formats if (directory / f"export-{name}").is_dir()]
    if done and (not to or done[0] == formats[0]):
        return
    for name in formats:
        folder = directory / f"export-{name}"
        if name in done:
            return
        try:
            export(str(directory), name, folder)
        except (ModelError, ConfigError) as error:
            if to and name == formats[0]:
                narrator.line(f"warning: {error}")
        else:
            return


def summary(study: StudyResult, to: str | None = None) -> list[str]:
    """What to know of a study that has ended, in five lines: what to use, how good it is, what it cost, what more hours
    or images would bring, and the next command. Only what was measured or fitted is said."""
    answer, directory = study.answer, study.directory
    selected = answer["selected"]
    row = next(row for row in study.rows if row["run_id"] == selected["run_id"])
    epochs = f"{quantity(row['images'] / row['unique_images'])} epochs" if row["unique_images"] else "training"
    config = answer["study"]["config"]
    side = config["families"].get(row["family"], {}).get("image_size") or config["data"]["image_size"]
    folders = [(name, directory / f"export-{name}") for name in _formats(to)]
    for_others = next((f", for {READERS[name]}: {path}" for name, path in folders if path.is_dir()), "")
    good = accuracy_sentence(answer) or f"Held-out loss {number(selected['loss'])}."
    return [
        f"Use: {row['model']} ({quantity(row['parameters'], 3)} parameters, {side} px), {epochs} at learning rate "
        f"{quantity(row['learning_rate'])}; weights: {study.run_directory()}{for_others}",
        f"Good: {good}",
        f"Cost: {_cost(study)}",
        f"More: {_more(answer['families'].get(selected['family']) or {})}",
        f"Next: isoflop predict {shlex.quote(str(directory))} photo.jpg; look at {directory / 'report.html'} and "
        f"{directory / EVALUATION}",
    ]


def _cost(study: StudyResult) -> str:
    planner, done = study.answer["planner"], sum(row["status"] == "done" for row in study.rows)
    runs = f"{done} runs" + (f", {len(study.rows) - done} more without a result" if len(study.rows) > done else "")
    if planner.get("unit") != "hours":
        hours = sum(spent["spent"] for spent in study.answer["hours"].values())
        return f"{hours:.2g} hours, {runs}."
    return f"{planner['spent']:.2g} of {planner['limit']:.2g} hours, {runs}."


def _more(entry: Mapping[str, Any]) -> str:
    """What the law of a family expects of twice the compute, and of twice the images where images repeat."""
    law = FamilyLaw.from_entry(entry).size_data
    if law is None:
        return "what more hours or images would bring is not known: no law could be fitted to so few runs."
    compute, level = entry["flops_per_image"] * entry["images"], entry["level"]
    loss, bounds = law.optimal(2 * compute)[2], law.optimal_interval(2 * compute, level)["loss"]
    expected = entry["predicted_loss"]
    hours = "what twice the hours would bring is not determined by these runs"
    if not tells_nothing(*bounds):
        hours = f"twice the hours would bring a loss of {quantity(loss)} ({level:.0%} interval {between(bounds)})"
    images = ""
    if twice := entry.get("twice_the_images"):
        low, high = (f"{100 * (ratio - 1):+.0f}".replace("-", "−") for ratio in twice["interval"])
        images = f"; twice the images {quantity(twice['loss_ratio'] * expected)} ({low} to {high} %)"
    return f"{hours}{images}, where the law expects {quantity(expected)} now."
