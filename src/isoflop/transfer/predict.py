"""A trained classifier as it is: predictions for images, and evaluation on labelled images."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from isoflop.config import RunConfig, stored_run
from isoflop.config.load import nearest_path
from isoflop.data import Source
from isoflop.data.decode import DamagedImage
from isoflop.data.inspection import guess_uri
from isoflop.data.opening import DENSE, STORED, open_records, open_source, open_to_judge, parse_uri
from isoflop.data.records import (
    Damage,
    Encoded,
    Labels,
    Part,
    are_numbers,
    read_image_file,
    read_surely,
    renumbered,
    why,
)
from isoflop.data.sources.folder import images_below
from isoflop.data.transforms import evaluation_view
from isoflop.errors import CheckpointError, DataError, DataNotice, ModelError
from isoflop.escapes import printable
from isoflop.models.saved import Moments
from isoflop.runs.files import read_json
from isoflop.train.device import choose_device, normalize, to_device
from isoflop.train.identity import DataFacts, read_facts
from isoflop.transfer.backbones import Pretrained, open_backbone
from isoflop.transfer.metrics import (
    LEVEL,
    ClassScore,
    accuracy_interval,
    class_scores,
    is_right,
    summary,
    wilson_interval,
)

BATCH = 64
_WITHOUT_CLASSIFIER = {
    "masked": "by masking",
    "lejepa": "by comparing views",
    "detect": "to detect",
    "segment": "to segment",
}


class Classifier:
    """A checkpoint as it classifies: the network on its device, its classes, and the pixels that it sees.

    Attributes:
        class_names: those of the logits, or () where nobody knows names.
        mean, std: per channel, of pixels in 0 … 1, as in training.
        sigmoid: whether each class has a probability of its own.
        config, trained_on: of the run that trained it, where one did, and what it knows of its images.
    """

    def __init__(self, pretrained: Pretrained, name: str | None = None, moments: Moments | None = None) -> None:
        """`name` is what to call it in messages; `moments` are for weights that do not know those of their images.

        Raises CheckpointError for weights without a classifier, and where nobody knows the moments; ModelError for a
        network whose images are no squares.
        """
        self.name, self.sigmoid = name or pretrained.name, pretrained.sigmoid
        self.config: RunConfig | None = None
        self.trained_on: DataFacts | None = None
        moments = pretrained.moments or moments
        if pretrained.run is not None:
            self.config = stored_run(read_json(pretrained.run / "config.json"))
            if how := _WITHOUT_CLASSIFIER.get(self.config.objective.name):
                raise CheckpointError(
                    f"{self.name} was trained {how}, it has no classifier: fine-tune it first ([start])"
                )
            if (facts := read_facts(pretrained.run)) is not None:
                self.trained_on, moments = facts, (facts.mean, facts.std)
        if "classifier" in pretrained.origin:
            raise CheckpointError(f"{self.name} has no classifier, only features: fine-tune it first ([start])")
        if moments is None:
            raise CheckpointError(f"{self.name} does not contain the mean and deviation of its images")
        height, width = pretrained.model.image_size
        if height != width:
            raise ModelError(f"{self.name} takes images of {height}×{width} pixels; only squares are cut out of files")
        self.mean, self.std = moments
        self.class_names = pretrained.class_names
        self._interpolation = pretrained.interpolation
        self._device = choose_device("auto")
        self._model = to_device(pretrained.model, self._device).eval()
        self.num_classes, self.channels, self.image_size = self._model.num_classes, self._model.in_channels, height

    def view(self, encoded: bytes) -> Tensor:
        """The pixels of an encoded picture that it sees, uint8 (c, s, s): those of evaluation. Raises DamagedImage."""
        if self.channels not in (1, 3):
            raise DataError(f"pictures have 1 or 3 channels, and {self.name} was trained on {self.channels}")
        return evaluation_view(encoded, self.image_size, self.channels, self._interpolation)

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """float32 (n, classes), on the CPU, of views (n, c, s, s). CheckpointError where they are not finite."""
        found: Tensor = self._model(normalize(pixels, self, self._device)).float().cpu()
        if not bool(found.isfinite().all()):
            raise CheckpointError(f"{self.name}: its logits are not finite numbers, so it cannot classify")
        return found

    def probabilities(self, logits: Tensor) -> Tensor:
        """Those of the classes."""
        return logits.sigmoid() if self.sigmoid else logits.softmax(dim=1)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each image in nats, as in training without smoothing: float32 (n,).

        With a softmax and several right classes, the negative logarithm of the probability of any of them.
        """
        if self.sigmoid:
            targets = labels if labels.ndim == 2 else F.one_hot(labels, logits.shape[1])
            return F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none").sum(dim=1)
        if labels.ndim == 1:
            return F.cross_entropy(logits, labels, reduction="none")
        return logits.logsumexp(dim=1) - torch.where(labels > 0, logits, -torch.inf).logsumexp(dim=1)

    def name_of(self, index: int) -> str:
        """Of a class: its name, or its number where nobody knows names."""
        return self.class_names[index] if index < len(self.class_names) else str(index)


# Images as a classifier sees them.


class _Views(Protocol):
    """Images by number."""

    def name(self, index: int) -> str:
        """What to call an image in a message."""

    def pixels(self, index: int) -> Tensor:
        """uint8 (c, s, s). Raises DamagedImage."""


@dataclass(frozen=True)
class _StoredViews:
    records: Encoded
    classifier: Classifier

    def name(self, index: int) -> str:
        return self.records.name(index)

    def pixels(self, index: int) -> Tensor:
        return self.classifier.view(read_surely(self.records, index))


@dataclass(frozen=True)
class _SourceViews:
    """Of images that are not stored as files: generated ones, or a mixture."""

    source: Source

    def name(self, index: int) -> str:
        return f"{self.source.uri} image {index}"

    def pixels(self, index: int) -> Tensor:
        return self.source.read(np.asarray([index]))[0][0]


@dataclass(frozen=True)
class _Files:
    """Image files; one that cannot be read is damaged."""

    paths: Sequence[Path]

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def read(self, index: int) -> bytes:
        try:
            return read_image_file(self.paths[index])
        except OSError as error:
            raise DamagedImage(why(error)) from error


def _scored(
    classifier: Classifier, views: _Views, indices: NDArray[np.int64], damaged: list[Damage]
) -> Iterator[tuple[list[int], Tensor]]:
    """The numbers of some sound images and their logits, batch by batch; the damaged ones are added to `damaged`."""
    for start in range(0, len(indices), BATCH):
        sound: list[int] = []
        pixels: list[Tensor] = []
        for index in map(int, indices[start : start + BATCH]):
            try:
                pixels.append(views.pixels(index))
                sound.append(index)
            except DamagedImage as error:
                damaged.append(Damage(index, views.name(index), str(error)))
        if sound:
            yield sound, classifier.logits(torch.stack(pixels))


# `isoflop predict`


@dataclass(frozen=True)
class Guess:
    """A class and its probability. `name` is its number where nobody knows names."""

    index: int
    name: str
    probability: float


def predict(
    checkpoint: str,
    images: Sequence[Path | str],
    *,
    top: int = 5,
    model: str | None = None,
    damaged: list[Damage] | None = None,
) -> Iterator[tuple[str, list[Guess]]]:
    """The name of each image with its `top` classes, likeliest first.

    The model sees the pixels that it is evaluated on: `Classifier.view`.

    Args:
        checkpoint: what `open_backbone` takes, with a trained classifier.
        images: files; folders, with the images in their subfolders; or stored data (`parquet:PATH`).
        model: the preset whose weights a `.safetensors` file holds.
        damaged: takes the images that cannot be read or decoded, which are left out. Without it the first such image is
            a DataError.

    Raises CheckpointError for weights without a classifier, or that do not say how their images are normalised;
    DataError for a file that is not there and a folder without images, before anything is predicted.
    """
    classifier = Classifier(open_backbone(checkpoint, model=model), checkpoint)
    for encoded, count in _opened(images):
        found: list[Damage] = []
        for sound, logits in _scored(classifier, _StoredViews(encoded, classifier), np.arange(count), found):
            if found and damaged is None:
                break
            for index, row in zip(sound, classifier.probabilities(logits).numpy(), strict=True):
                best = np.argsort(-row, kind="stable")[:top]
                yield encoded.name(index), [Guess(int(k), classifier.name_of(k), float(row[k])) for k in best]
        if found and damaged is None:
            raise DataError(found[0].line)
        if damaged is not None:
            damaged += found


def _opened(images: Sequence[Path | str]) -> list[tuple[Encoded, int]]:
    """The encoded images, with their number: one part for all files, one for each data set."""
    files: list[Path] = []
    stored: list[tuple[Encoded, int]] = []
    for image in images:
        path = Path(image)
        kind, colon, rest = str(image).partition(":")
        if not str(image):
            raise DataError("the name of an image is empty")
        if not path.exists() and colon and kind == "folder":
            path = Path(rest).expanduser()
        elif not path.exists() and colon and kind in STORED:
            records = open_records(str(image), "train")
            stored.append((records, len(records)))
            continue
        if path.is_dir():
            inside = images_below(path)
            if not inside:
                raise DataError(f"{path}: no images in this folder")
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise DataError(f"{path}: no such file{nearest_path(path)}")
    return [(_Files(files), len(files)), *stored] if files else stored


# `isoflop evaluate`


MISTAKES = 12  # pictures of them
CONFUSIONS = 20  # listed


@dataclass(frozen=True)
class Judged:
    """One image: its class (several are joined by `|`), the likeliest class with its probability, and the loss."""

    file: str
    label: str
    predicted: str
    probability: float
    right: bool
    loss: float


@dataclass(frozen=True)
class Evaluation:
    """A classifier judged on labelled images.

    Attributes:
        checkpoint, data, part: the classifier, the images, and which of these.
        interval: of the accuracy, Wilson's, at `level`.
        loss: the mean in nats, without label smoothing.
        calibration_error, top5: None where they say nothing (several classes an image; at most five classes).
        classes: one score for each class of the classifier, in its order; [] where only "a right class first" counts.
        confusion: images of the class of a row that were taken for the class of a column; None where images have
            several classes, and beyond 100 classes.
        each: the images in their order, without the damaged ones.
        confusions: the most frequent ones: a class, what its images were taken for, and how many were.
        mistakes: the places in `each` of the wrong answers with the highest loss, and `pictures`, what the model saw
            of them, uint8 (h, w, 3).
    """

    checkpoint: str
    data: str
    part: str
    images: int
    right: int
    accuracy: float
    interval: tuple[float, float]
    level: float
    loss: float
    top5: float | None
    calibration_error: float | None
    classes: list[ClassScore]
    confusion: list[list[int]] | None
    confusions: list[tuple[str, str, int]]
    each: list[Judged] = field(repr=False)
    mistakes: list[int] = field(repr=False)
    pictures: list[NDArray[np.uint8]] = field(repr=False)
    damaged: list[Damage] = field(repr=False)

    def document(self) -> dict[str, Any]:
        """As JSON: all but the single images and the pictures."""
        own = ("each", "mistakes", "pictures", "damaged", "classes")
        return {
            **{name: value for name, value in vars(self).items() if name not in own},
            "classes": [vars(score) for score in self.classes],
            "mistakes": [vars(self.each[k]) for k in self.mistakes],
            "damaged": [{"file": d.name, "reason": d.reason} for d in self.damaged],
        }


def evaluate(
    checkpoint: str, data: str, *, part: Part | None = None, model: str | None = None, mistakes: int = MISTAKES
) -> Evaluation:
    """How well the classifier of `checkpoint` does on labelled images.

    Classes are matched by name where both have names. Damaged images are left out.

    Args:
        checkpoint: what `open_backbone` takes, with a trained classifier.
        data: a path, or a source as in `data.source`.
        part: of the data; by default the test part. Without one, what the run held out if it was trained on these
            images; else all.
        model: the preset whose weights a `.safetensors` file holds.
        mistakes: the most pictures of wrong answers to keep.

    Raises CheckpointError for weights without a classifier; DataError for images without labels, of a class that the
    classifier does not know, or of which none can be read.
    """
    classifier = Classifier(open_backbone(checkpoint, model=model), str(checkpoint))
    views, numbers, labels, logits, damaged, what = _answers(classifier, guess_uri(data), part)
    losses = classifier.losses(logits, labels).double()
    probabilities, guesses = classifier.probabilities(logits), logits.argmax(dim=1)
    several = labels.ndim == 2
    right = ((logits > 0) == (labels > 0)).all(dim=1) if several and classifier.sigmoid else is_right(logits, labels)
    found = summary(logits, labels, calibrated=not (several or classifier.sigmoid))
    each = [
        Judged(
            views.name(number),
            "|".join(
                classifier.name_of(k) for k in np.atleast_1d(np.flatnonzero(label) if several else label).tolist()
            ),
            classifier.name_of(guess),
            float(probabilities[row, guess]),
            bool(right[row]),
            float(losses[row]),
        )
        for row, (number, label, guess) in enumerate(zip(numbers, labels.numpy(), guesses.tolist(), strict=True))
    ]
    wrong = Counter((judged.label, judged.predicted) for judged in each if not judged.right)
    worst = [int(k) for k in np.argsort(-losses.numpy(), kind="stable") if not right[k]][:mistakes]
    told = labels if not several else (labels > 0) if classifier.sigmoid else None
    chosen = guesses if not several else logits > 0
    total = int(right.sum())
    return Evaluation(
        checkpoint=str(checkpoint),
        data=data,
        part=what,
        images=len(each),
        right=total,
        accuracy=total / len(each),
        interval=wilson_interval(total, len(each)),
        level=LEVEL,
        loss=float(losses.mean()),
        top5=None if several else found["top5"],
        calibration_error=found["calibration_error"],
        classes=[]
        if told is None
        else class_scores(told, chosen, tuple(map(classifier.name_of, range(logits.shape[1])))),
        confusion=found["confusion"],
        confusions=[(*pair, count) for pair, count in wrong.most_common(CONFUSIONS)],
        each=each,
        mistakes=worst,
        pictures=[_picture(views.pixels(numbers[k])) for k in worst],
        damaged=damaged,
    )


class _Answers(NamedTuple):
    """What a classifier says of labelled images: their numbers, labels and logits, without the damaged ones."""

    views: _Views
    numbers: list[int]
    labels: Tensor
    logits: Tensor
    damaged: list[Damage]
    part: str


def _answers(classifier: Classifier, uri: str, part: Part | None) -> _Answers:
    views, indices, labels, what = _labelled(classifier, uri, part)
    numbers: list[int] = []
    logits: list[Tensor] = []
    damaged: list[Damage] = []
    for sound, found in _scored(classifier, views, indices, damaged):
        numbers += sound
        logits.append(found)
    if not numbers:
        others = f" (and {len(damaged) - 1:,} others cannot be read either)" if len(damaged) > 1 else ""
        raise DataError(f"{damaged[0].line}{others}")
    labels = labels[torch.from_numpy(np.searchsorted(indices, numbers))]
    return _Answers(views, numbers, labels, torch.cat(logits), damaged, what)


def _picture(pixels: Tensor) -> NDArray[np.uint8]:
    """A view (c, h, w) as people see it, (h, w, 3)."""
    shown: NDArray[np.uint8] = pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    return shown


def _labelled(classifier: Classifier, uri: str, part: Part | None) -> tuple[_Views, NDArray[np.int64], Tensor, str]:
    """Labelled images as the classifier sees them, the ascending numbers of those to take, their labels numbered as its
    classes are, and which part they are."""
    kind = parse_uri(uri)[0]
    views: _Views
    if kind in DENSE:
        raise DataError(f"{uri}: objects or maps of classes; a classifier is evaluated on images with a class each")
    if kind in STORED:
        facts, config = classifier.trained_on, classifier.config
        own_data = (config.data, facts.fingerprint, facts.images) if config and facts else None
        records, indices, what = open_to_judge(uri, part, own_data)
        views, own, names = _StoredViews(records, classifier), records.labels[indices], records.class_names
    else:
        source, what = _source(classifier, uri, part)
        indices, views = np.arange(len(source), dtype=np.int64), _SourceViews(source)
        found = source.labels().numpy()
        own, names = found if found.ndim == 1 else found.astype(np.uint8), source.class_names
    if not len(names) or (own.ndim == 1 and bool((own < 0).any())):
        raise DataError(f"{uri}: its images have no labels, and an evaluation needs them")
    if own.ndim == 2 and (empty := int((~own.any(axis=1)).sum())) and not classifier.sigmoid:
        raise DataError(f"{uri}: {empty:,} images have no class, and {classifier.name} always names one")
    labels = torch.from_numpy(np.ascontiguousarray(_as_learnt(own, names, classifier, uri)))
    missing = np.setdiff1d(np.arange(classifier.num_classes), labels.numpy())
    if labels.ndim == 1 and len(missing):
        warnings.warn(
            f"{uri}: no image of {len(missing)} of the {classifier.num_classes} classes, "
            f"`{printable(classifier.name_of(int(missing[0])))}` among them: the accuracy is that on the others",
            DataNotice,
            stacklevel=1,
        )
    return views, indices, labels, what


def _source(classifier: Classifier, uri: str, part: Part | None) -> tuple[Source, str]:
    """Images that are not stored as files."""
    how: dict[str, Any] = {
        "image_size": classifier.image_size,
        "heldout": 0,
        "channels": classifier.channels if classifier.channels in (1, 3) else None,
    }
    own = classifier.config.data if classifier.config else None
    if own is not None and own.source == uri:
        how["seed"] = own.seed  # which chooses the fractals
    try:
        source, what = open_source(uri, split=part or "test", **how), f"the {part or 'test'} part"
    except DataError as error:
        if part or not error.missing_part:
            raise
        if own is not None and own.source == uri:
            how["heldout"] = own.heldout
            source, what = open_source(uri, split="heldout", **how), "the held-out part"
        else:
            source, what = open_source(uri, split="train", **how), "all images"
    if source.channels != classifier.channels:
        raise DataError(
            f"{uri}: its images have {source.channels} channels, {classifier.name} was trained on {classifier.channels}"
        )
    return source, what


def _as_learnt(labels: Labels, own: tuple[str, ...], classifier: Classifier, where: str) -> Labels:
    """`labels` of the classes `own`, numbered as the classifier numbers its classes: by name where both have names, so
    that the data may have fewer, or another order.

    Raises DataError for a class that it does not know, and without names for another number of classes.
    """
    learnt = classifier.class_names
    if learnt and not are_numbers(learnt) and not are_numbers(own):
        return renumbered(labels, own, learnt, where, f"of the classifier of {classifier.name}")
    count = classifier.num_classes
    fewer = are_numbers(own) and are_numbers(learnt) and len(own) < count and labels.ndim == 1
    if len(own) != count and not fewer:
        raise DataError(f"{where} has {len(own)} classes, the classifier of {classifier.name} {count}")
    if are_numbers(own) != are_numbers(learnt):
        warnings.warn(
            f"{where}: classes are matched by their numbers, because "
            f"{'the data have' if are_numbers(own) else 'the weights have'} no names of classes",
            DataNotice,
            stacklevel=1,
        )
    return labels


def own_head(pretrained: Pretrained, dataset: str, name: str | None = None) -> dict[str, Any]:
    """The row of the backbone's own classifier on the test part of `dataset`; any of several right classes counts.

    Raises DataError for a class that the classifier does not know, and without names for another number of them.
    """
    moments: Moments | None = None
    if not (pretrained.moments or pretrained.run):
        source = open_source(dataset, split="test", image_size=pretrained.model.image_size[0], heldout=0)
        moments = source.mean, source.std
    classifier = Classifier(pretrained, moments=moments)
    _, numbers, labels, scores, _, _ = _answers(classifier, dataset, "test")
    right = is_right(scores, labels).numpy()
    found = summary(scores, labels, calibrated=True)
    return {
        "name": name or pretrained.name,
        "protocol": "head",
        "dataset": dataset,
        "shots": 0,
        "accuracy_mean": found.pop("top1"),
        "accuracy_std": None,
        "interval": list(accuracy_interval(right[None])),
        "level": LEVEL,
        "seeds": 1,
        "test_images": len(numbers),
        **found,
    }
