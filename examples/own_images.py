"""Your own images, on one machine: which backbone, and then the backbone itself, fine-tuned and judged.

    python examples/own_images.py my_images --hours 0.5

my_images has a folder for each class; or train/ and test/ that do. Looks at the data, spends the hours on a study (what
training its answer takes is set aside), goes on with the winner at a tenth of its rate, and, where there are images to
test on, says what it is worth beside random weights. Run again, it goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isoflop.config import RunConfig, StudyConfig, TransferConfig, parse
from isoflop.data import check
from isoflop.data.records import TEST_NAMES
from isoflop.errors import IsoflopError
from isoflop.study import Narrator, open_study, run_study
from isoflop.train import train
from isoflop.transfer import open_backbone, transfer

FAMILIES = {
    "vit": {"sizes": 3, "learning_rates": [5e-3, 1e-2, 2e-2]},
    "poolformer": {"sizes": 3, "learning_rates": [1e-2, 2e-2, 4e-2]},
    "nfnet": {
        "sizes": 3,
        "learning_rates": [0.5, 1.0, 2.0],
        "optim": {"name": "sgd", "momentum": 0.9, "agc": 0.01, "weight_decay": 2e-5},
    },
}


def study(source: str, hours: float, target: float, folder: Path, changes: dict[str, Any]) -> StudyConfig:
    """The study of `hours` on the images of `source` about `target` FLOPs; `changes` replace tables of it."""
    tables: dict[str, Any] = {
        "batch_size": 64,
        "tensorboard": False,
        "study": {
            "name": folder.name,
            "output": str(folder),
            "device_hours": hours,
            "target_budget": target,
        },
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


def main(arguments: Sequence[str] | None = None, changes: dict[str, Any] | None = None, steps: int = 500) -> None:
    """Does all of it; `changes` and `steps` make it small."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="a folder with a folder for each class")
    parser.add_argument("--hours", type=float, default=0.5, help="of one device, for the study")
    parser.add_argument("--target", type=float, default=1e11, help="training FLOPs that the answer is for")
    parser.add_argument("--output", type=Path, default=Path("studies/own_images"))
    given = parser.parse_args(arguments)

    report = check(str(given.images))
    print("\n".join(report.lines()))
    if not report.is_usable:
        raise SystemExit(1)
    source = report.uri

    config = study(source, given.hours, given.target, given.output, changes or {})
    run_study(config, Talk())
    found = open_study(given.output)
    print(f"\n{found}")
    winner = found.run_directory()

    best = found.answer["best"]
    answer, optim = found.answer["families"][best], config.families[best].optim.model_dump(mode="json")
    tuning = {
        "model": {"name": answer["model"]},
        "steps": steps,
        "batch_size": config.batch_size,
        "data": config.data.model_dump(mode="json"),
        "optim": optim | {"learning_rate": 0.1 * answer["learning_rate"]},
        "schedule": {"name": "cosine", "warmup": steps // 20},
        "start": {"weights": str(winner), "head": "keep"},
        "tensorboard": False,
    }
    tuned = train(parse(tuning, RunConfig), given.output / "tuned")
    print(f"fine-tuned: held-out loss {tuned.heldout_loss:.3f}, accuracy {tuned.heldout_accuracy:.3f}")
    print(f"weights: {given.output / 'tuned' / 'model.safetensors'}")
    if any((given.images / name).is_dir() for name in TEST_NAMES):
        judge(given.output, source)


def judge(folder: Path, source: str) -> None:
    """Prints what the features are worth with two images a class, on the test part, beside those of random weights."""
    config = parse({"dataset": source, "protocols": ["ridge"], "shots": 2, "seeds": [0, 1, 2]}, TransferConfig)
    for name, random_weights in (("the winner", False), ("random weights", True)):
        backbone = open_backbone(folder / "tuned", random_weights=random_weights)
        (row,) = transfer(backbone, config, name, folder=folder / "transfer" / name.replace(" ", "-"))
        low, high = row["interval"]
        print(f"{name}: accuracy {row['accuracy_mean']:.3f} ({low:.3f}–{high:.3f}) with two images a class")


if __name__ == "__main__":
    try:
        main()
    except IsoflopError as error:
        raise SystemExit(f"error: {error}") from None
