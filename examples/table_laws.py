"""Laws on someone else's table: a CSV of results, no training, no PyTorch.

    python examples/table_laws.py results.csv --x images --y error --by model
    python examples/table_laws.py                     # without a table: published learning curves of ImageNet

The last third of every curve is held back, predicted from the rest, and compared: a law that cannot predict what is
known already should not be asked about what is not. Then the law of all points is drawn and asked about four times the
range.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from isoflop import laws
from isoflop.errors import LawError
from isoflop.laws.columns import Columns, read_columns

# arXiv 2209.06640: 10-shot errors on ImageNet against images seen in pretraining; every eighth point is plenty
PUBLISHED, TASK, MODELS, EVERY = "learning_curves_vision", "inet_10", ("ViT/B/16", "MiX/B/16", "BiT/50/1"), 8


def published() -> Columns:
    """Three curves of a bundled table."""
    table = laws.load_table(PUBLISHED)
    rows = sorted(
        (k for k in range(len(table["task"])) if table["task"][k] == TASK and table["model"][k] in MODELS),
        key=lambda k: (table["model"][k], float(table["seen_examples"][k])),
    )
    return {column: [values[k] for k in rows[::EVERY]] for column, values in table.items()}


def backtest(table: Columns, x: str, y: str, by: str | None, level: float) -> list[tuple[str, float, float, bool]]:
    """Of each group: the mean error of the held-back points in per cent, and whether 90 % intervals held the last."""
    groups = table[by] if by else ["all"] * len(table[y])
    found = []
    for name in dict.fromkeys(groups):
        here = [k for k, group in enumerate(groups) if group == name]
        here.sort(key=lambda k: float(table[x][k]))
        known, asked = here[: -(len(here) // 3)], here[-(len(here) // 3) :]
        at, seen = (np.array([float(table[column][k]) for k in asked]) for column in (x, y))
        law = laws.fit_curve(*(np.array([float(table[column][k]) for k in known]) for column in (x, y)))
        off = 100 * np.abs(law.predict(at) / seen - 1)
        low, high = law.interval(float(at[-1]), level)
        found.append(
            (name, float(off.mean()), float(at[-1] / float(table[x][known[-1]])), bool(low <= seen[-1] <= high))
        )
    return found


def main(arguments: Sequence[str] | None = None) -> laws.TableFit:
    """Prints the backtest and the laws, writes the picture, returns the fit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, nargs="?", help="a CSV with a head line")
    parser.add_argument("--x", default="seen_examples", help="compute or images")
    parser.add_argument("--y", default="error", help="a loss or an error")
    parser.add_argument("--by", default=None, help="a law for each value of this column")
    parser.add_argument("--picture", type=Path, default=Path("laws.svg"))
    given = parser.parse_args(arguments)
    table = read_columns(given.table)[0] if given.table else published()
    by = given.by or (None if given.table else "model")

    print("The last third, predicted from what came before:")
    for name, off, ahead, held in backtest(table, given.x, given.y, by, 0.9):
        print(f"  {name}: {off:.1f} % off on average, up to {ahead:.0f} times ahead; "
              f"the last point lies {'inside' if held else 'outside'} its 90 % interval")  # fmt: skip

    budget = 4 * max(float(value) for value in table[given.x])
    fitted = laws.fit_table(table, x=[given.x], y=given.y, by=by, budget=budget)
    for group in fitted.groups:
        if group.prediction:
            low, high = group.prediction.interval
            print(f"{group.name} at {budget:.3g}: {group.prediction.value:.4f} ({low:.4f}–{high:.4f})")
        else:
            print(f"{group.name}: {group.refusal}")
    given.picture.write_text(laws.svg(laws.picture(fitted)), encoding="utf-8")
    print(f"picture: {given.picture}")
    return fitted


if __name__ == "__main__":
    try:
        main()
    except LawError as error:
        raise SystemExit(f"error: {error}") from None
