"""`isoflop study`: plan, run, watch over and answer a ladder of runs."""

import shlex
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli.config import File, Overrides
from isoflop.cli.groups import argument, group
from isoflop.cli.tables import power, print_table

app = group("study", "Measure a ladder of small runs at equal compute, and train the answer.")

Place = Annotated[Path, argument("Configuration file of the study, or its folder.", "STUDY.toml|DIR")]


@app.command("plan")
def plan(file: File, overrides: Overrides = None) -> None:
    """Print the runs, FLOPs and minutes that a study would take here. Nothing is written."""
    from isoflop.config import load_study

    config = load_study(file, overrides or []).config
    import os

    from isoflop.cli.narration import TerminalNarrator
    from isoflop.study import plan_study

    TerminalNarrator().planned(plan_study(config), config.study.workers or os.cpu_count() or 1)


@app.command("run")
def run(file: File, overrides: Overrides = None) -> None:
    """Plan, train, fit, answer, train the answer, report. Run again, it goes on where it was."""
    from isoflop.config import load_study

    config = load_study(file, overrides or []).config
    from isoflop.cli.narration import TerminalNarrator
    from isoflop.study import run_study

    command = shlex.join(["isoflop", "study", "run", str(file), *(overrides or [])])
    run_study(config, TerminalNarrator(), command=command)
    print(f"\nreport: {config.directory / 'report.html'}")


@app.command("status")
def status(place: Place, overrides: Overrides = None) -> None:
    """Print how far the runs of each rung are."""
    directory = _directory(place, overrides)
    from isoflop.study import Store

    store = Store(directory)
    name = store.read("study.json")["name"]
    rows = store.rows()
    rungs: dict[tuple[float, str], Counter[str]] = {}
    for row in rows:
        rungs.setdefault((row["budget"], row["role"]), Counter())[row["status"]] += 1
    states = sorted({row["status"] for row in rows})
    print(f"{name}: {len(rows)} runs in {directory}")
    if rows:
        table = [
            (power(budget), role, *(str(counts[state]) for state in states))
            for (budget, role), counts in sorted(rungs.items())
        ]
        print_table(("budget", "role", *states), table)
    for row in rows:
        if row["error"]:
            print(f"{row['model']} at {power(row['budget'])} FLOPs, {row['status']}: {row['error']}")


@app.command("answer")
def answer(place: Place, overrides: Overrides = None) -> None:
    """Print the answer of a study, and how it came true."""
    directory = _directory(place, overrides)
    from isoflop.cli.narration import tell_answer, tell_grades, tell_transfer
    from isoflop.study import Store

    document = Store(directory).read("answer.json")
    tell_answer(document)
    tell_grades(document)
    tell_transfer(document.get("transfer", {}).get("rows", []))


def _directory(place: Path, overrides: list[str] | None) -> Path:
    if place.is_dir():
        return place
    from isoflop.config import load_study

    return load_study(place, overrides or []).config.directory


def report(
    directories: Annotated[list[Path], argument("Folder of a study; several are laid side by side.", "DIR...")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.html", help="DIR/report.html, or comparison.html, when left out."),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option("--figures", metavar="FOLDER", help="Write the figures of one study as SVG, PDF and CSV, too."),
    ] = None,
) -> None:
    """Write the report of a study again, from its results alone; of several studies, their comparison."""
    from isoflop.errors import StudyError
    from isoflop.report import StudyTables, report_figures, write_comparison, write_figures, write_report
    from isoflop.study import Store
    from isoflop.study.reconstructions import reconstruction_pictures

    stores = [Store(directory) for directory in directories]
    studies = [StudyTables(store.judged(store.rows()), store.read("answer.json")) for store in stores]
    if len(studies) > 1:
        if figures:
            raise StudyError("--figures takes one study")
        print(f"comparison: {write_comparison(studies, output or Path('comparison.html'))}")
        return
    (study,), (store,) = studies, stores
    curves = store.curves([row["run_id"] for row in study.rows if row["status"] == "done"])
    pictures = reconstruction_pictures(store, study.rows)
    page = write_report(
        list(study.rows), dict(study.answer), curves, output or store.directory / "report.html", pictures
    )
    print(f"report: {page}")
    if figures:
        written = write_figures(report_figures(list(study.rows), dict(study.answer), curves), figures)
        print(f"figures: {len(written)} files in {figures}")


def watch(
    directory: Annotated[Path, argument("Folder of a study.", "DIR")],
    port: Annotated[int, typer.Option("--port", metavar="N", help="0 takes a free one.")] = 0,
) -> None:
    """Show the report of a study that is still running, in a browser on this machine."""
    from isoflop.report.watch import watch as serve

    serve(directory, port=port)
