"""Which column of a table is the size, the data, the loss and the family, by its name, and what is counted as compute.

An axis is a column, or one with a factor or divided by another: `images`, `6*params`, `1e9*tokens_B`, `flops/tokens`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isoflop.errors import LawError
from isoflop.laws.columns import (
    Columns,
    TableSource,
    as_error,
    is_accuracy,
    is_missing,
    name_column,
    positive_column,
    refuse_duplicates,
    text_column,
    words_of,
)
from isoflop.laws.solve import Array

PARAMETERS = ("params", "param", "parameters", "parameter", "nparams", "model size", "n")
PER_SAMPLE = ("flops per", "flop per", "macs per", "gmacs per", "gflops per")
COMPUTE = (
    "flops", "flop", "compute", "gmacs total", "macs total", "gflops", "tflops", "pflops", "exaflops", "zettaflops",
    "petaflop", "pf days", "hours", "budget", "c",
)  # fmt: skip
TOKENS = ("tokens", "token", "ntokens", "d")
SAMPLES = ("images", "image", "samples", "examples", "imgs", "seen", "data", "dataset size")
UNIQUE = (
    "unique images", "unique tokens", "unique samples", "unique examples", "unique data", "unique d", "distinct images",
    "distinct tokens", "distinct samples", "dataset size", "data set size", "train set size", "training set size",
    "train size",
)  # fmt: skip
EPOCHS = ("epochs", "epoch")
STEPS = ("steps", "step", "iterations", "iters", "iteration", "epochs", "epoch")
LOSSES = ("loss", "nll", "cross entropy", "xent", "ce", "bpb", "bpc", "perplexity", "ppl", "l")
ERRORS = ("error", "err", "wer", "cer", "mse", "rmse", "mae", "fid")
FAMILIES = (
    "family", "experiment", "arch", "architecture", "optimizer", "method", "recipe", "variant", "dataset", "corpus",
    "source", "model", "condition", "group", "setup",
)  # fmt: skip
HELD_OUT = {"val", "valid", "validation", "eval", "heldout", "held", "dev", "test"}
NO_AXIS = {"per", "ratio", "unique", "batch", "vocab", "lr", "rate", "std", "stderr", "min", "max", "se", "seed", "id"}
UNITS = {
    "k": 1e3, "thousand": 1e3, "thousands": 1e3, "m": 1e6, "million": 1e6, "millions": 1e6, "b": 1e9, "bn": 1e9,
    "billion": 1e9, "billions": 1e9, "t": 1e12, "trillion": 1e12, "trillions": 1e12,
    "gflops": 1e9, "gmacs": 1e9, "tflops": 1e12, "pflops": 1e15, "exaflops": 1e18, "zettaflops": 1e21,
}  # fmt: skip
COMPUTE_UNITS = {"gflops", "gmacs", "tflops", "pflops", "exaflops", "zettaflops"}
DENSE = 6.0
"""Training FLOPs a parameter and token of a dense transformer (arXiv 2001.08361, section 2.1)."""


@dataclass(frozen=True)
class Axis:
    """`factor`·`column` / (`divisor`·`over`); `text` is how it is written in `--x`."""

    text: str
    column: str
    factor: float = 1.0
    over: str | None = None
    divisor: float = 1.0

    def values(self, columns: Columns, source: TableSource) -> Array:
        """The axis of every row, or LawError with the line of a cell that is no positive number."""
        top = self.factor * positive_column(columns, self.column, source, suffixes=True)
        if self.over is None:
            return top
        return top / (self.divisor * positive_column(columns, self.over, source, suffixes=True))

    def or_nan(self, columns: Columns) -> Array:
        """The axis of every row of numeric columns, NaN where a cell is missing."""
        top, under = (_numeric(columns, TableSource(""), name) for name in (self.column, self.over or self.column))
        assert top is not None
        assert under is not None
        return self.factor * top / (self.divisor * under if self.over else 1.0)

    @property
    def named(self) -> tuple[str, ...]:
        return (self.column,) if self.over is None else (self.column, self.over)


def axis(text: str, columns: Columns, source: TableSource) -> Axis:
    """The axis written as `text`: COLUMN, FACTOR*COLUMN or one of these divided by another; LawError if it is none."""
    for cut in [len(text), *(k for k, letter in enumerate(text) if letter == "/")]:
        parts = [_scaled(part, columns) for part in (text[:cut], text[cut + 1 :]) if part]
        if all(parts) and len(parts) == (1 if cut == len(text) else 2):
            (factor, column), (divisor, over) = [*(p for p in parts if p), (1.0, "")][:2]
            return Axis(text, column, factor, over or None, divisor)
    text_column(columns, text.rsplit("*", 1)[-1], source)
    raise LawError(f"`{text}` is no column of {source.name}")


def _scaled(text: str, columns: Columns) -> tuple[float, str] | None:
    if text in columns:
        return 1.0, text
    factor, star, column = text.partition("*")
    try:
        return (float(factor), column) if star and column in columns and 0 < float(factor) < np.inf else None
    except ValueError:
        return None


@dataclass(frozen=True)
class Runs:
    """The rows of a table that laws are fitted to.

    Attributes:
        source: where they are from. x: the axes. y, by: the columns of the loss and of the family.
        axes: values of each axis; for two, their product is the compute. loss: what is minimised, `unit` says of what.
        unique: different images (tokens) of each row, NaN where they never repeat; None without such a column.
        family: the group of each row. columns: all columns of the rows that are used.
        notes: what was guessed, counted and left out, a sentence each.
    """

    source: TableSource
    x: tuple[Axis, ...]
    y: str
    by: str | None
    axes: tuple[Array, ...]
    loss: Array
    unit: str
    family: list[str]
    columns: Columns
    notes: tuple[str, ...]
    unique: Array | None = None


def read_runs(
    columns: Columns,
    source: TableSource,
    x: Sequence[str] = (),
    y: str | None = None,
    by: str | None = None,
    accuracy: bool | None = None,
    unique: str | None = None,
) -> Runs:
    """The runs of a table; columns that are not given are guessed from their names, which `notes` says.

    Of two axes of which one is parameters and one tokens, the first is counted as 6 FLOPs a parameter. `by` = "none"
    puts all rows into one group, `unique` = "none" says that no image was seen twice. Rows without a value are left
    out, which `notes` says; without a value of `unique`, images never repeat.
    """
    notes: list[str] = []
    columns, melted = _chart_of_runs(columns, source)
    if len(x) > 2:
        raise LawError(f"give one column as x (a curve) or two (size and images), not {len(x)}")
    guessed = not x or y is None
    if y is None:
        y = _guess_loss(columns, source, x)
    if x and len({*x, y}) < len(x) + 1:
        raise LawError(f"a column is given twice: x {' and '.join(x)}, y {y}")
    given = tuple(axis(text, columns, source) for text in x)
    axes = given or _guess_axes({name: cells for name, cells in columns.items() if name != y}, source)
    text_column(columns, y, source)
    columns, source, left_out = _complete(columns, source, [*(name for a in axes for name in a.named), y])
    if len(given) == 2 and not guessed:
        axes = _counted(given, columns)
    if by is None and not x and guessed:
        by = melted or _guess_family(columns, source, axes, y)
    if by == "none" and by not in columns:
        by = None
    if guessed:
        told = [f"--x {_quoted(a.text)}" for a in axes] + [f"--y {_quoted(y)}"]
        told += [f"--by {_quoted(by)}"] if by else []
        notes.append(f"columns guessed by their names: {' '.join(told)}; give these options to say otherwise")
    if len(axes) == 2:
        notes += _what_is_counted(axes, columns)
    different = _different(unique, axes, columns, source, notes)
    notes += left_out
    values = tuple(a.values(columns, source) for a in axes)
    loss, unit = as_error(positive_column(columns, y, source), y, source, accuracy)
    family = name_column(columns, by, source) if by else ["all"] * loss.size
    refuse_duplicates(columns, source)
    return Runs(source, axes, y, by, values, loss, unit, family, columns, tuple(notes), different)


def _different(
    unique: str | None, axes: Sequence[Axis], columns: Columns, source: TableSource, notes: list[str]
) -> Array | None:
    """Different images of each row, by a column that is named or guessed, or by epochs; what was guessed goes to
    `notes`."""
    if unique == "none" and unique not in columns:
        return None
    if unique is not None:
        if len(axes) != 2:
            raise LawError("--unique is of tables with a size and data: give two columns as x")
        given = axis(unique, columns, source)
        for name in given.named:
            if _numeric(columns, source, name) is None:
                raise LawError(f"{source.name}: `{name}` must have positive numbers, or nothing where no data repeat")
        return given.or_nan(columns)
    if len(axes) != 2:
        return None
    data, used = axes[1], {name for a in axes for name in a.named}
    names = [c for c in columns if c not in used and _numeric(columns, source, c) is not None]
    ranked = sorted((rank, k) for k, name in enumerate(names) if (rank := _rank(name, UNIQUE)) is not None)
    epochs = [name for name in names if _rank(name, EPOCHS) is not None and len(words_of(name)) == 1]
    if ranked:
        found = _unit(names[ranked[0][1]], columns)
    elif epochs and data.over is None:
        found = Axis(f"{data.text}/{epochs[0]}", data.column, data.factor, epochs[0])
    else:
        return None
    notes.append(f"different data of a run: --unique {_quoted(found.text)}; with --unique none, nothing is seen twice")
    return found.or_nan(columns)


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[\w./:+-]+", text) else f"'{text}'"


def _complete(columns: Columns, source: TableSource, names: list[str]) -> tuple[Columns, TableSource, list[str]]:
    """The rows that have a value in each of the named columns, and a note about the others."""
    notes: list[str] = []
    count = len(columns[names[0]])
    kept = np.ones(count, dtype=bool)
    for name in dict.fromkeys(names):
        missing = np.array([is_missing(cell) for cell in columns[name]])
        lost = np.flatnonzero(missing & kept)
        if lost.size == count:
            raise LawError(f"{source.name}: `{name}` is empty in every row")
        if lost.size:
            places = [source.lines[k] if source.lines else k + 1 for k in lost[:4]]
            more = ", …" if lost.size > 4 else ""
            where = (
                f"{'line' if source.lines else 'row'}{'s' if lost.size > 1 else ''} {', '.join(map(str, places))}{more}"
            )
            notes.append(f"{lost.size} row{'s' if lost.size > 1 else ''} without `{name}` left out ({where})")
        kept &= ~missing
    if kept.all():
        return columns, source, notes
    if not kept.any():
        raise LawError(f"{source.name}: no row has {' and '.join(f'`{name}`' for name in dict.fromkeys(names))}")
    rows = np.flatnonzero(kept)
    lines = tuple(source.lines[k] for k in rows) if source.lines else ()
    return {c: [cells[k] for k in rows] for c, cells in columns.items()}, TableSource(source.name, lines), notes


def _chart_of_runs(columns: Columns, source: TableSource) -> tuple[Columns, str | None]:
    """Long columns of a chart as Weights & Biases exports it (a column `RUN - METRIC` for each run, with __MIN and
    __MAX), and the name of the new column of runs; other tables as they are."""
    runs = {c: c.rsplit(" - ", 1) for c in columns if " - " in c and not c.endswith(("__MIN", "__MAX"))}
    others = [c for c in columns if " - " not in c]
    if len(others) != 1 or not runs or len({metric for _, metric in runs.values()}) != 1:
        return columns, None
    metric = next(iter(runs.values()))[1]
    long: Columns = {others[0]: [], metric: [], "run": []}
    for column, (run, _) in runs.items():
        for step, value in zip(columns[others[0]], columns[column], strict=True):
            if not is_missing(value):
                for name, cell in ((others[0], step), (metric, value), ("run", run)):
                    long[name].append(cell)
    return (long, "run" if len(runs) > 1 else None) if long[metric] else (columns, None)


# Names to roles


def _rank(name: str, wanted: Sequence[str]) -> int | None:
    """How early in `wanted` a name stands, None if it is none of them. A single letter must be the whole name."""
    words = words_of(name)
    joined = f" {' '.join(words)} "
    for k, phrase in enumerate(wanted):
        if f" {phrase} " in joined and (len(phrase) > 1 or [w for w in words if w not in UNITS] == [phrase]):
            return k
    return None


def _numeric(columns: Columns, source: TableSource, name: str) -> Array | None:
    """A column as numbers (NaN where missing), None if it has anything else or nothing positive."""
    cells = columns[name]
    kept = [k for k, cell in enumerate(cells) if not is_missing(cell)]
    if not kept:
        return None
    try:
        values = positive_column({name: [cells[k] for k in kept]}, name, TableSource(source.name), suffixes=True)
    except LawError:
        return None
    out = np.full(len(cells), np.nan)
    out[kept] = values
    return out


def _best(columns: Columns, source: TableSource, wanted: Sequence[str], avoid: set[str] = NO_AXIS) -> str | None:
    """The numeric column whose name stands earliest in `wanted`; of equals, the one with most rows, then the first."""
    found = []
    for position, name in enumerate(columns):
        rank = _rank(name, wanted)
        if rank is None or avoid & set(words_of(name)):
            continue
        values = _numeric(columns, source, name)
        if values is not None and np.nanmax(values) > np.nanmin(values):
            active = 0 if {"active", "total", "seen"} & set(words_of(name)) else 1
            found.append((active, int(np.isnan(values).sum()), rank, position, name))
    return min(found)[-1] if found else None


def _guess_loss(columns: Columns, source: TableSource, x: Sequence[str]) -> str:
    found = []
    for position, name in enumerate(columns):
        words = set(words_of(name))
        kinds = [k for k, wanted in enumerate((LOSSES, ERRORS)) if _rank(name, wanted) is not None]
        kind = kinds[0] if kinds else 2 if is_accuracy(name) else 3 if name.lower() == "value" else None
        if kind is None or name in x or words & {"std", "stderr", "min", "max", "se", "delta", "lower", "upper"}:
            continue
        values = _numeric(columns, source, name)
        if values is not None and np.nanmax(values) > np.nanmin(values):
            split = 0 if words & HELD_OUT else 2 if words & {"train", "training"} else 1
            found.append((kind, split, position, name))
    if not found:
        raise LawError(
            f"{source.name}: no column looks like a loss, an error or an accuracy: name it with --y. "
            f"It has: {', '.join(list(columns)[:20])}"
        )
    return min(found)[-1]


def _guess_axes(columns: Columns, source: TableSource) -> tuple[Axis, ...]:
    """Size and data where two are there and vary apart, else one axis of compute, data, parameters or steps."""

    def best(wanted: Sequence[str], avoid: set[str] = NO_AXIS) -> str | None:
        return _best(columns, source, wanted, avoid)

    per, params, tokens = best(PER_SAMPLE, {"ratio"}), best(PARAMETERS), best(TOKENS)
    data = tokens or best(SAMPLES)
    compute = best(COMPUTE, NO_AXIS | {"days", "hours"})
    pairs: list[tuple[Axis, Axis]] = []
    if per and data:
        pairs.append((_unit(per, columns), _unit(data, columns)))
    elif data and (compute or params):
        d = _unit(data, columns)
        ratio = None
        if compute and params:
            n, c = _unit(params, columns), _unit(compute, columns)
            ratio = c.or_nan(columns) / (n.or_nan(columns) * d.or_nan(columns))
        if params and tokens and (ratio is None or _is_dense(ratio)):
            pairs.append((_unit(params, columns, 1.0 if params == "n" else DENSE), d))
        elif compute and np.nanmedian(_unit(compute, columns).or_nan(columns) / d.or_nan(columns)) > 1e3:
            c = _unit(compute, columns)
            over = f"{d.factor:g}*{d.column}" if d.factor != 1 else d.column
            pairs.append((Axis(f"{c.text}/{over}", c.column, c.factor, d.column, d.factor), d))
        elif compute:  # FLOPs of the model, not of the run
            pairs.append((_unit(compute, columns), d))
        elif params:
            pairs.append((_unit(params, columns), d))
    elif compute and params:
        c, n = _unit(compute, columns), _unit(params, columns, DENSE)
        pairs.append((n, Axis(f"{c.text}/{n.text}", c.column, c.factor, n.column, n.factor)))
    for pair in pairs:
        x, y = (np.log(a.or_nan(columns)) for a in pair)
        known = np.isfinite(x) & np.isfinite(y)
        x, y = x[known], y[known]
        if x.size >= 5 and np.ptp(x) > 0.1 and np.std(y - np.polyval(np.polyfit(x, y, 1), x)) > 0.15:
            return pair
    alone = best(COMPUTE) or data or params or per or best(STEPS)
    if alone is None:
        raise LawError(
            f"{source.name}: no column looks like compute, parameters, tokens, images or steps: name it with --x. "
            f"It has: {', '.join(list(columns)[:20])}"
        )
    return (Axis(alone, alone),)


def _is_dense(ratio: Array) -> bool:
    known = ratio[np.isfinite(ratio)]
    return bool(known.size and abs(np.median(known) / DENSE - 1) < 0.1 and np.ptp(np.log(known)) < 0.4)


def _unit(name: str, columns: Columns, counted: float = 1.0) -> Axis:
    """The axis of a column in single units: `tokens_B` is 1e9*tokens_B."""
    power = re.search(r"(?:1e|10\s*\^\s*\{?)\s*(\d+)", name)
    unit = 10.0 ** int(power[1]) if power else next((UNITS[w] for w in reversed(words_of(name)) if w in UNITS), 1.0)
    values = _numeric(columns, TableSource(""), name)
    if values is None or (np.nanmedian(values) >= 1e7 and not COMPUTE_UNITS & set(words_of(name))):
        unit = 1.0  # counts already, whatever the name
    factor = counted * unit
    return Axis(f"{factor:g}*{name}" if factor != 1 else name, name, factor)


def _counted(given: tuple[Axis, ...], columns: Columns) -> tuple[Axis, ...]:
    """Of parameters and tokens given by their plain names, the first as FLOPs a token."""
    first, second = given
    plain = all(a.text == a.column for a in given)
    named = _rank(first.column, PARAMETERS) is not None and _rank(second.column, TOKENS) is not None
    if plain and named and first.column != "n":  # which is FLOPs an image in isoflop's own words
        return _unit(first.column, columns, DENSE), _unit(second.column, columns)
    return given


def _what_is_counted(axes: Sequence[Axis], columns: Columns) -> list[str]:
    first, second = axes
    product = f"{first.text} × {second.text}"
    if _rank(first.column, PARAMETERS) is not None and first.over is None:
        if first.factor % DENSE == 0:
            return [
                f"compute is {product}: training FLOPs of a dense transformer, 6 a parameter and token "
                f"(--x '1*{first.column}' counts parameters × tokens)"
            ]
        return [f"compute is counted as {product}, which is not FLOPs: budgets are in this unit"]
    return []


def _guess_family(columns: Columns, source: TableSource, axes: Sequence[Axis], y: str) -> str | None:
    """The column of names that splits the rows into groups of which each could have a law; the finest of several."""
    used = {y, *(name for a in axes for name in a.named)}
    values = [a.values(columns, source) for a in axes]
    found = []
    for name, cells in columns.items():
        rank = _rank(name, FAMILIES)
        if rank is None or name in used or "" in cells or {"name", "id", "seed", "split"} & set(words_of(name)):
            continue
        distinct = list(dict.fromkeys(cells))
        if not 2 <= len(distinct) <= 30 or _numeric(columns, source, name) is not None:
            continue
        code = np.array([distinct.index(cell) for cell in cells])
        fits = [_could_have_a_law(values, code == k) for k in range(len(distinct))]
        rows = sum(int((code == k).sum()) for k, fit in enumerate(fits) if fit)
        if sum(fits) >= 2 and rows >= 0.6 * code.size:
            found.append((-sum(fits), rank, name))
    return min(found)[-1] if found else None


def _could_have_a_law(values: Sequence[Array], rows: NDArray[np.bool_]) -> bool:
    distinct = [np.unique(np.round(np.log(v[rows]), 3)).size for v in values]
    return min(distinct) >= 4 if len(values) == 1 else int(rows.sum()) >= 6 and min(distinct) >= 2
