"""`isoflop fit`: laws from any table of results. Needs no torch."""

from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli.groups import argument, examples
from isoflop.cli.output import Json, print_json
from isoflop.cli.paths import existing

EXAMPLES = examples(
    "isoflop fit results.csv --x compute --y loss --budget 1e20",
    "isoflop fit results.csv --x flops_per_image --x images --y loss --by family --budget 1e20 --picture laws.svg",
)


def fit(
    table: Annotated[Path, argument("Table with a head line.", "TABLE.csv")],
    x: Annotated[
        list[str], typer.Option("--x", metavar="COLUMN", help="Compute or images; twice: FLOPs an image, then images.")
    ],
    y: Annotated[str, typer.Option("--y", metavar="COLUMN", help="Loss, error or accuracy.")],
    by: Annotated[str | None, typer.Option("--by", metavar="COLUMN", help="A law for each value of it.")] = None,
    budget: Annotated[float | None, typer.Option("--budget", metavar="X", help="Where to predict.")] = None,
    accuracy: Annotated[
        bool | None, typer.Option("--accuracy/--no-accuracy", help="Whether y is one; guessed from its name.")
    ] = None,
    level: Annotated[float, typer.Option("--level", metavar="P", help="Probability of the intervals.")] = 0.9,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the bootstrap.")] = 0,
    picture: Annotated[Path | None, typer.Option("--picture", metavar="FILE.svg", help="Draw the laws, too.")] = None,
    as_json: Json = False,
) -> None:
    """Fit laws to a table of results, ours or anybody's, and predict."""
    from isoflop import laws
    from isoflop.errors import LawError

    if not 0 < level < 1:
        raise LawError(f"--level must lie between 0 and 1, not {level:g}")
    if picture and picture.suffix.lower() != ".svg":
        raise LawError(f"{picture}: the picture is an SVG, its name must end in .svg")
    fitted = laws.fit_table(existing(table), x=x, y=y, by=by, budget=budget, accuracy=accuracy, level=level, seed=seed)
    if picture:
        try:
            picture.write_text(laws.svg(laws.picture(fitted)), encoding="utf-8")
        except OSError as error:
            raise LawError(f"{picture}: cannot be written: {(error.strerror or str(error)).lower()}") from error
    if as_json:
        print_json(fitted.to_dict())
        return
    print(laws.markdown(fitted))
