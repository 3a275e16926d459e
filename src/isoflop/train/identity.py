"""The identity of a run, from its configuration and its data; and its environment."""

from __future__ import annotations

import glob
import os
import platform
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from isoflop.config import ObjectiveConfig, RunConfig, UnlabelledConfig, config_hash, stored_run
from isoflop.config.identity import code_digest
from isoflop.data import Source, open_split
from isoflop.data.order import ALGORITHM
from isoflop.data.records import are_numbers, is_fingerprint_of
from isoflop.errors import CheckpointError, DataError, IsoflopError
from isoflop.escapes import printable
from isoflop.models.saved import Interpolation, read_description
from isoflop.models.user_code import check_unchanged
from isoflop.runs.directory import RunIdentity, claim, read_identity
from isoflop.runs.files import read_json
from isoflop.runs.journal import read_attempts

# What a run knows of its data: `data.json`, so that its weights can be used where the data are not.


FILE = "data.json"


class Shape(Protocol):
    """What of the data decides a backbone's shape."""

    @property
    def num_classes(self) -> int:
        """0 where the images are unlabelled."""

    @property
    def channels(self) -> int:
        """Of the images."""


@dataclass(frozen=True)
class DataFacts:
    """Of the training images: their classes, and mean and deviation of pixels in 0 … 1, by which they were normalised.

    `images` is their number, or None where they never repeat. `interpolation` is how evaluation resizes them. What
    older versions did not write is as they had it.
    """

    uri: str
    num_classes: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    images: int | None
    fingerprint: str
    interpolation: Interpolation = "bilinear"
    has_several_labels: bool = False

    def has_sigmoid(self, objective: ObjectiveConfig) -> bool:
        """Whether `objective` gives each class a probability of its own on these images."""
        loss = getattr(objective, "loss", None)
        return loss == "sigmoid" or (loss is None and self.has_several_labels)


def facts_of(source: Source) -> DataFacts:
    """What there is to know of `source`."""
    return DataFacts(
        uri=source.uri,
        num_classes=source.num_classes,
        channels=source.channels,
        mean=tuple(map(float, source.mean)),
        std=tuple(map(float, source.std)),
        class_names=tuple(source.class_names),
        images=source.unique_images,
        fingerprint=source.fingerprint,
        interpolation="bicubic" if source.interpolation == "bicubic" else "bilinear",
        has_several_labels=source.has_several_labels,
    )


def read_facts(directory: Path) -> DataFacts | None:
    """What `data.json` says; None where there is none, CheckpointError where it is damaged."""
    path = directory / FILE
    if not path.is_file():
        return None
    kinds: dict[str, Any] = {"uri": str, "num_classes": int, "channels": int, "fingerprint": str, "images": int | None}
    kinds |= dict.fromkeys(("mean", "std", "class_names"), list)
    found = read_json(path, kinds)
    values: dict[str, Any] = {name: tuple(found[name]) if kind is list else found[name] for name, kind in kinds.items()}
    if (interpolation := found.get("interpolation", "bilinear")) not in ("bilinear", "bicubic"):
        raise CheckpointError(f"{path}: not readable: `interpolation` is {interpolation!r}")
    several = found.get("has_several_labels", False) is True
    return DataFacts(**values, interpolation=interpolation, has_several_labels=several)


def learnt_classes(weights: str) -> tuple[str, ...]:
    """The classes that trained weights tell apart, in the order of their logits, as the folder that holds them says;
    () where it does not."""
    path = Path(weights).expanduser()
    folder = path if path.is_dir() else path.parent
    if not path.is_dir() and path.name != "model.safetensors":
        return ()
    if (folder / FILE).is_file() and (folder / "identity.json").is_file():
        facts = read_facts(folder)
        return facts.class_names if facts else ()
    try:
        described = read_description(read_json(folder / "config.json"), folder)
    except CheckpointError:
        return ()
    return described.class_names if described else ()


def has_classifier(weights: str) -> bool:
    """Whether the classifier of trained weights has learnt anything, as far as the folder of a run tells."""
    path = Path(weights).expanduser()
    folder = path if path.is_dir() else path.parent
    if not (folder / "identity.json").is_file() or not (path.is_dir() or path.name == "model.safetensors"):
        return True
    return not isinstance(stored_run(read_json(folder / "config.json")).objective, UnlabelledConfig)


def check_classes(what: str, learnt: tuple[str, ...], source: Source) -> None:
    """Raises DataError where `what` learnt other classes than `source` has, or the same in another order.

    Classes that have numbers for names agree by their number.
    """
    ours = tuple(source.class_names)
    if not learnt or not ours or learnt == ours or are_numbers(learnt) or are_numbers(ours):
        return
    theirs, own = next((p for p in zip(learnt, ours, strict=False) if p[0] != p[1]), (len(learnt), len(ours)))
    order = "the same classes in another order" if set(learnt) == set(ours) else "other classes"
    raise DataError(f"{what}: learnt {order} ({printable(str(theirs))}) than {source.uri} has ({printable(str(own))})")


def identity_of(config: RunConfig, source: Source) -> RunIdentity:
    """What must not change between the attempts at a run: configuration, number of samples, content and order."""
    without_places = config_hash(config, places=False)
    return RunIdentity(config_hash(config), len(source), source.fingerprint, ALGORITHM, without_places)


def claim_run(config: RunConfig, directory: Path, source: Source) -> RunIdentity:
    """Makes `directory` that of `config` on `source`; CheckpointError when it is another's already.

    A changed dataset would give the same positions other samples; one that has only been moved is the same.
    """
    check_unchanged(config.model.code, directory)
    code = {spec: code_digest(spec) for spec in config.model.code}
    files = {
        "config.json": config.model_dump(mode="json"),
        "env.json": environment() | ({"code": code} if code else {}),
        FILE: asdict(facts_of(source)),
    }
    return claim(directory, identity_of(config, source), files, _hash_of, is_fingerprint_of)


def _hash_of(config: dict[str, Any]) -> str:
    try:
        return config_hash(stored_run(config), places=False)
    except IsoflopError:  # of another version
        return ""


def run_directory(parent: Path, name: str, config: RunConfig) -> Path:
    """The folder in `parent` for the run of `config`: `NAME-HASH`, or that of the same run which was begun when its
    data lay elsewhere, or in the precision that `auto` stands for."""
    own = parent / f"{name}-{config_hash(config)}"
    runs = _with_precision(config)
    for path in (own, *(parent / f"{name}-{config_hash(run)}" for run in runs)):
        if path.exists():
            return path
    wanted = {config_hash(run, places=False) for run in runs}
    same = []
    for path in sorted(parent.glob(f"{glob.escape(name)}-*/identity.json")):
        with suppress(CheckpointError):  # damaged, or of something else
            found = read_identity(path.parent)
            without_places = found and (found.config or _hash_of(read_json(path.parent / "config.json")))
            if without_places in wanted:
                same.append((path.parent, found))
    if not same:
        return own
    fingerprint = open_split(config.data, "train").fingerprint
    return next((path for path, found in same if found and is_fingerprint_of(found.data, fingerprint)), own)


def begun_precision(config: RunConfig, directory: Path) -> str | None:
    """The precision of the run in `directory`, where it is the run of `config` in any precision that "auto" may be."""
    try:
        found = read_identity(directory)
    except CheckpointError:  # damaged: whether it can be put right is for `claim_run` to say
        found = None
    for run in _with_precision(config):
        if found and (found.run == config_hash(run) or found.config == config_hash(run, places=False)):
            return run.precision
    if not (directory / "config.json").is_file():
        return None
    stored = read_json(directory / "config.json").get("precision", "float32")  # of an earlier version, or of another
    return stored if stored in ("float32", "bfloat16") else None


def _with_precision(config: RunConfig) -> list[RunConfig]:
    """`config` in every precision that it may mean."""
    names = ("float32", "bfloat16") if config.precision == "auto" else (config.precision,)
    return [config.model_copy(update={"precision": name}) for name in names]


def environment() -> dict[str, Any]:
    """The machine and versions that this process runs on: what bit-identity depends on beside the configuration."""
    import isoflop

    return {
        "isoflop": isoflop.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def warn_of_other_versions(directory: Path, now: Mapping[str, Any]) -> None:
    """Warns where the attempt before was under another version of isoflop or torch: the bits may differ from here."""
    before: Any = None
    for rows in read_attempts(directory, lambda file, line: None):
        before = next(rows, {}).get("environment", before)
    try:
        before = before or read_json(directory / "env.json")
    except CheckpointError:
        return
    if not isinstance(before, dict):
        return
    names = [name for name in ("isoflop", "torch") if before.get(name, now[name]) != now[name]]
    if changed := [f"{name} {now[name]} (before: {before[name]})" for name in names]:
        warnings.warn(
            f"{directory}: resumed under {' and '.join(changed)}: its numbers may differ from here on", stacklevel=2
        )
