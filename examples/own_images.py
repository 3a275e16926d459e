"""Your own images, on one machine: which backbone, and then the backbone itself, trained and judged.

    python examples/own_images.py my_images --hours 0.5

my_images has a folder for each class; or train/ and test/ that do. Looks at the data, spends the hours on a study (half
of them are for training its answer), and, where there are images to test on, says what the features of the answer are
worth beside those of random weights. Run again, it goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isoflop.config import StudyConfig, TransferConfig, parse
from isoflop.data import check
from isoflop.data.records import TEST_NAMES
from isoflop.errors import IsoflopError
from isoflop.study import Narrator, open_study, run_study
from isoflop.transfer import open_backbone, transfer

SGD = {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4}
FAMILIES = {
    "resnet": {"sizes": 2, "recipe": "medium", "optim": SGD},
    "resnet_strong": {"ladder": "resnet", "sizes": 2, "recipe": "strong", "optim": SGD},  # for few images, seen often
    "vit": {"sizes": 2, "recipe": "medium"},
}


def study(source: str, hours: float, folder: Path, changes: dict[str, Any]) -> StudyConfig:
    """The study of `hours` on the images of `source`; `changes` replace tables of it."""
    tables: dict[str, Any] = {
        "tensorboard": False,
        "study": {"name": folder.name, "output": str(folder), "hours": hours},
        "data": {"source": source, "image_size": 32, "heldout": 1000, "augment": "crop_flip"},
        "schedule": {"name": "constant", "warmup": 20, "cooldown": 0.2},
        "families": FAMILIES,
    }
    return parse(tables | changes, StudyConfig)


class Talk(Narrator):
    """Tells the little that one wants to know meanwhile."""

    def progress(self, done_seconds: float, total_seconds: float, finished: int, total: int) -> None:
        share = done_seconds / total_seconds if total_seconds else 0
        print(f"\r{share:4.0%}, {finished} of {total} runs", end="", flush=True)

    def line(self, text: str) -> None:
        print(f"\n{text}")


def main(arguments: Sequence[str] | None = None, changes: dict[str, Any] | None = None) -> None:
    """Does all of it; `changes` make it small."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="a folder with a folder for each class")
    parser.add_argument("--hours", type=float, default=0.5, help="of this machine, for the study")
    parser.add_argument("--output", type=Path, default=Path("studies/own_images"))
    given = parser.parse_args(arguments)

    report = check(str(given.images))
    print("\n".join(report.lines()))
    if not report.is_usable:
        raise SystemExit(1)
    source = report.uri

    config = study(source, given.hours, given.output, changes or {})
    run_study(config, Talk())
    found = open_study(given.output)
    print(f"\n{found}")
    print(f"weights: {found.run_directory() / 'model.safetensors'}")
    if any((given.images / name).is_dir() for name in TEST_NAMES):
        judge(given.output, source)


def judge(folder: Path, source: str) -> None:
    """Prints what the features are worth with two images a class, on the test part, beside those of random weights."""
    config = parse({"dataset": source, "protocols": ["ridge"], "shots": 2, "seeds": [0, 1, 2]}, TransferConfig)
    for name, random_weights in (("the winner", False), ("random weights", True)):
        backbone = open_backbone(folder, random_weights=random_weights)
        (row,) = transfer(backbone, config, name, folder=folder / "transfer" / name.replace(" ", "-"))
        low, high = row["interval"]
        print(f"{name}: accuracy {row['accuracy_mean']:.3f} ({low:.3f}–{high:.3f}) with two images a class")


if __name__ == "__main__":
    try:
        main()
    except IsoflopError as error:
        raise SystemExit(f"error: {error}") from None
