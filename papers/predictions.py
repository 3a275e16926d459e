"""What studies predicted, beside what their answers measured.

    python papers/predictions.py studies/vit --out vit-predicted.csv     # after `isoflop study run --predict`
    python papers/predictions.py studies/vit --judge vit-predicted.csv   # after `isoflop study run`
    python papers/predictions.py studies/vit --best                      # the best run of each family and budget

The first writes a row for each family of each study. The second takes predictions from such files, never from the
studies, and measured losses from the studies, and prints a table: predicted, measured, inside the interval or not, and
how often the order of two families of a study was right where the study was at least 80 % sure of the first.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

COLUMNS = ("study", "family", "model", "budget", "images", "learning_rate", "predicted", "low", "high", "p_best")
SURE = 0.8


def predicted(folder: Path) -> list[dict[str, Any]]:
    """A row for each family of the study in `folder`."""
    answer = json.loads((folder / "answer.json").read_text())
    rows = [
        (answer["study"]["name"], family, entry["model"], answer["target_flops"], entry["images"],
         entry["learning_rate"], entry["predicted_loss"], *entry["interval"], entry["p_best"])
        for family, entry in answer["families"].items()
    ]  # fmt: skip
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def judged(folders: Sequence[Path], rows: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """The rows of the predictions whose answers are trained, with `measured` and `inside`."""
    finals = {}
    for folder in folders:
        answer = json.loads((folder / "answer.json").read_text())
        finals |= {(answer["study"]["name"], family): final for family, final in answer.get("finals", {}).items()}
    found = []
    for row in rows:
        final = finals.get((row["study"], row["family"]))
        if final and final["measured_loss"] is not None:
            loss = final["measured_loss"]
            found.append({**row, "measured": loss, "inside": float(row["low"]) <= loss <= float(row["high"]),
                          "accuracy": final["measured_accuracy"]})  # fmt: skip
    return found


def orders(rows: Sequence[dict[str, Any]]) -> list[bool]:
    """Of each two families of a study that it tells apart with `SURE`: whether they ended in that order.

    That the first is better has the probability of its share of the two P(best), where the leader is one of them.
    """
    found = []
    for study in dict.fromkeys(row["study"] for row in rows):
        own = sorted((row for row in rows if row["study"] == study), key=lambda row: -float(row["p_best"]))
        for first, second in combinations(own, 2):
            if first is own[0] and float(first["p_best"]) >= SURE * (float(first["p_best"]) + float(second["p_best"])):
                found.append(first["measured"] < second["measured"])
    return found


def best_runs(folder: Path) -> list[dict[str, Any]]:
    """Of each family, budget and number of different images the run with the lowest held-out loss."""
    runs: dict[tuple[str, int, float], dict[str, str]] = {}
    for row in csv.DictReader((folder / "results.csv").read_text().splitlines()):
        if row["status"] == "done" and row["heldout_loss"]:
            key = row["family"], int(row["unique_images"]), float(f"{float(row['budget']):.3g}")
            if key not in runs or float(row["heldout_loss"]) < float(runs[key]["heldout_loss"]):
                runs[key] = row
    return [{**runs[key], "budget": key[2]} for key in sorted(runs)]


def print_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"| {' | '.join(names)} |\n{len(names) * '|---'}|")
    for cells in rows:
        print(f"| {' | '.join(cells)} |")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="write the predictions there")
    parser.add_argument("--judge", nargs="+", type=Path, help="files with predictions that were written before")
    parser.add_argument("--best", action="store_true", help="print the best run of each family and budget")
    args = parser.parse_args(arguments)
    if args.best:
        best = [row for folder in args.studies for row in best_runs(folder)]
        print_table(
            ("family", "images", "FLOPs", "model", "epochs", "learning rate", "loss", "accuracy"),
            [(row["family"], f"{int(row['unique_images']):,}", f"{row['budget']:.3g}", row["model"],
              f"{int(row['images']) / int(row['unique_images']):.2g}", f"{float(row['learning_rate']):.2g}",
              f"{float(row['heldout_loss']):.3f}", f"{100 * float(row['heldout_accuracy']):.1f} %") for row in best],
        )  # fmt: skip
        return
    if args.judge:
        written = [row for path in args.judge for row in csv.DictReader(path.read_text().splitlines())]
        rows = judged(args.studies, written)
        print_table(
            ("study", "family", "model", "predicted (90 %)", "P(best)", "measured", "inside", "accuracy"),
            [(row["study"], row["family"], row["model"],
              f"{float(row['predicted']):.3f} ({float(row['low']):.3f}–{float(row['high']):.3f})",
              f"{float(row['p_best']):.2f}", f"{row['measured']:.3f}", "yes" if row["inside"] else "**no**",
              f"{100 * row['accuracy']:.1f} %") for row in rows],
        )  # fmt: skip
        inside, order = [row["inside"] for row in rows], orders(rows)
        print(f"\nInside: {sum(inside)} of {len(inside)}. Order right: {sum(order)} of {len(order)}.")
        return
    rows = [row for folder in args.studies for row in predicted(folder)]
    if args.out:
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    print(f"{len(rows)} predictions")


if __name__ == "__main__":
    main()
