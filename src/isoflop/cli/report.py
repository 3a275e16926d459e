"""`isoflop report`, `isoflop watch` and `isoflop fit`."""

from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli.output import Json, argument, examples, existing, print_json

REPORT_EXAMPLES = examples(
    "isoflop report studies/demo --figures figures",
    "isoflop report studies/demo studies/cifar10 --output both.html",
    "isoflop report theirs.csv --x core_hours --y loss --by model",
)


def report(
    places: Annotated[
        list[Path],
        argument("Folder of a study, several to lay side by side, or a table of results.", "DIR...|TABLE.csv"),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.html",
            help="Default: DIR/report.html, comparison.html or TABLE.html.",
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option("--figures", metavar="FOLDER", help="Also write the figures as SVG, PDF and CSV."),
    ] = None,
    x: Annotated[
        list[str] | None,
        typer.Option("--x", metavar="COLUMN", help="Table: compute or images; twice: FLOPs per image, then images."),
    ] = None,
    y: Annotated[str | None, typer.Option("--y", metavar="COLUMN", help="Table: loss, error or accuracy.")] = None,
    by: Annotated[str | None, typer.Option("--by", metavar="COLUMN", help="Table: the column of the family.")] = None,
    budget: Annotated[
        float | None, typer.Option("--budget", metavar="X", help="Table: the value to predict at.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the report of a study from its results, the comparison of several, or the laws of a table."""
    from isoflop.errors import ConfigError

    is_table = [place.suffix.lower() in (".csv", ".tsv") and not place.is_dir() for place in places]
    if any(is_table) and len(places) > 1:
        raise ConfigError("a report takes one table, or folders of studies, not both")
    if not is_table[0] and (x or y or by or budget is not None):
        raise ConfigError("--x, --y, --by and --budget name columns of a table and do not apply to a study")
    if is_table[0]:
        said = _table(existing(places[0]), output, figures, tuple(x or ()), y, by, budget)
    elif len(places) > 1:
        if figures:
            raise ConfigError("--figures takes one study")
        said = {"comparison": _comparison(places, output)}
    else:
        said = _study(existing(places[0]), output, figures)
    if as_json:
        print_json(said)
        return
    for name, value in said.items():
        if not isinstance(value, list):
            print(f"{name}: {value}")
        elif figures:
            print(f"{name}: {len(value)} files in {figures}")


def _study(directory: Path, output: Path | None, figures: Path | None) -> dict[str, Path | list[Path]]:
    from isoflop.report import write_figures
    from isoflop.report.result import StudyResult, write_study_report
    from isoflop.runs.results import read_document

    read_document(directory, "answer.json")  # says what to run first
    study = StudyResult(directory)
    page = write_study_report(directory, study.rows, study.answer, output)
    written = write_figures(list(study.figures.values()), figures) if figures else []
    return {"report": page, "figures": written}


def _comparison(directories: list[Path], output: Path | None) -> Path:
    from isoflop.report import StudyTables, write_comparison
    from isoflop.runs.results import judged, read_document, read_results

    folders = [existing(directory) for directory in directories]
    studies = [StudyTables(judged(read_results(folder)), read_document(folder, "answer.json")) for folder in folders]
    return write_comparison(studies, output or Path("comparison.html"))


def _table(
    path: Path,
    output: Path | None,
    figures: Path | None,
    x: tuple[str, ...],
    y: str | None,
    by: str | None,
    budget: float | None,
) -> dict[str, Path | list[Path]]:
    from isoflop.report import tabled_report, write_figures

    made = tabled_report(path, x=x, y=y, by=by, budget=budget)
    page = made.write(output or Path(f"{path.stem}.html"))
    return {"report": page, "figures": write_figures(made.figures, figures) if figures else []}


WATCH_EXAMPLES = examples(
    "isoflop watch studies/demo", "isoflop watch runs/vit", "isoflop watch studies/demo --port 8080"
)


def watch(
    directory: Annotated[Path, argument("Folder of a study or of a run.", "DIR")],
    port: Annotated[int, typer.Option("--port", metavar="N", help="Port; 0 for any free port.")] = 0,
    as_json: Json = False,
) -> None:
    """Show a study or a run in progress, in a browser on this machine."""
    from isoflop.report.watch import watch as serve

    def say(text: str) -> None:
        if not as_json:
            print(text, flush=True)

    def opened(url: str) -> None:
        if as_json:
            print_json({"directory": directory, "url": url})

    serve(existing(directory), port=port, say=say, opened=opened)


# `isoflop fit`; does not import torch


FIT_EXAMPLES = examples(
    "isoflop fit results.csv",
    "isoflop fit results.csv --x compute --y loss --budget 1e20",
    "isoflop fit results.csv --x flops_per_image --x images --y loss --by family --budget 1e20 --picture laws.svg",
    "isoflop fit results.csv --x '6*params' --x tokens --y val_loss --at 7e9 2e12",
    "isoflop fit results.csv --by optimizer --speedup muon adamw",
)


def fit(
    table: Annotated[Path, argument("Table with a header.", "TABLE.csv")],
    x: Annotated[
        list[str] | None,
        typer.Option(
            "--x",
            metavar="COLUMN",
            help="Compute or images; twice: FLOPs per image, then images. Also 6*COLUMN or COLUMN/COLUMN. "
            "Guessed by name when left out.",
        ),
    ] = None,
    y: Annotated[
        str | None, typer.Option("--y", metavar="COLUMN", help="Loss, error or accuracy; guessed when left out.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            metavar="COLUMN",
            help="One law for each value of this column; guessed without --x and --y, none for none.",
        ),
    ] = None,
    budget: Annotated[float | None, typer.Option("--budget", metavar="X", help="The value to predict at.")] = None,
    at: Annotated[
        tuple[float, float] | None,
        typer.Option("--at", metavar="SIZE DATA", help="Predict this size and data, in the units of their columns."),
    ] = None,
    speedup: Annotated[
        tuple[str, str] | None,
        typer.Option("--speedup", metavar="A B", help="How many times less compute A needs than B for equal loss."),
    ] = None,
    accuracy: Annotated[
        bool | None, typer.Option("--accuracy/--no-accuracy", help="Whether y is an accuracy; default by its name.")
    ] = None,
    unique: Annotated[
        str | None,
        typer.Option(
            "--unique", metavar="COLUMN", help="Different images behind those seen; guessed by name, none for none."
        ),
    ] = None,
    level: Annotated[float, typer.Option("--level", metavar="P", help="Probability of the intervals.")] = 0.9,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the bootstrap.")] = 0,
    picture: Annotated[Path | None, typer.Option("--picture", metavar="FILE.svg", help="Also draw the laws.")] = None,
    as_json: Json = False,
) -> None:
    """Fit scaling laws to a table of results and predict."""
    from isoflop import laws
    from isoflop.errors import LawError

    if not 0 < level < 1:
        raise LawError(f"--level must be between 0 and 1, not {level:g}")
    if picture and picture.suffix.lower() != ".svg":
        raise LawError(f"{picture}: the name of the picture must end in .svg")
    fitted = laws.fit_table(
        existing(table),
        x=x or (),
        y=y,
        by=by,
        budget=budget,
        at=at,
        faster=speedup,
        accuracy=accuracy,
        unique=unique,
        level=level,
        seed=seed,
    )
    if picture:
        try:
            picture.write_text(laws.svg(laws.picture(fitted)), encoding="utf-8")
        except OSError as error:
            raise LawError(f"{picture}: cannot be written: {(error.strerror or str(error)).lower()}") from error
    if as_json:
        print_json(fitted.to_dict())
        return
    print(laws.markdown(fitted))
