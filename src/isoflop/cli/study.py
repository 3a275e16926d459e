"""`isoflop study`: plan, run, status and answer of a study."""

import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli.config import File, Overrides
from isoflop.cli.output import (
    Json,
    argument,
    aside,
    examples,
    existing,
    group,
    is_quiet,
    power,
    print_json,
    print_table,
)
from isoflop.errors import ConfigError, Preempted, StudyError

app = group("study", "Measure small runs at equal compute, and train the answer.")

Scale = Annotated[
    float,
    typer.Option("--scale", metavar="FACTOR", help="Multiply the FLOPs; the name gets -xFACTOR."),
]
Place = Annotated[Path, argument("Configuration file of the study, or its folder.", "STUDY.toml|DIR")]


@app.command(
    "plan",
    epilog=examples("isoflop study plan examples/demo.toml", "isoflop study plan examples/demo.toml study.workers=8"),
)
def plan(file: File, overrides: Overrides = None, scale: Scale = 1.0, as_json: Json = False) -> None:
    """Predict the runs, FLOPs and minutes of a study on this machine. Writes nothing."""
    from isoflop.config import load_study

    config = load_study(file, overrides or [], scale).config
    from isoflop.cli.narration import TerminalNarrator
    from isoflop.study import plan_study
    from isoflop.study.executors.slurm import JOBS
    from isoflop.train.device import usable_cores

    workers = config.study.workers or (JOBS if config.study.executor == "slurm" else usable_cores())
    planned = plan_study(config)
    if as_json:
        print_json({"workers": workers, **planned.to_dict()})
        return
    TerminalNarrator().planned(planned, workers)


@app.command(
    "run",
    epilog=examples(
        "isoflop study run examples/demo.toml",
        "isoflop study run examples/cifar10.toml data.source=folder:my_images",
        "isoflop study run examples/cifar10.toml --executor ray --address head:6379",
    ),
)
def run(
    file: File,
    overrides: Overrides = None,
    executor: Annotated[
        str | None,
        typer.Option("--executor", metavar="local|ray|slurm", help="Where runs are trained: `study.executor`."),
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", metavar="HOST:PORT", help="Address of the Ray cluster: `study.address`.")
    ] = None,
    scale: Scale = 1.0,
    predict: Annotated[
        bool, typer.Option("--predict", help="End with what is predicted; without it, the study goes on.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a study: plan, train, fit, answer, train the answer, report. Run it again to resume.

    On SIGTERM and SIGUSR1 its runs save a checkpoint, and it exits with 75.
    """
    from isoflop.runs.times import Times

    times = Times()  # first: the imports that follow take seconds, too
    from isoflop.config import load_study

    overrides = list(overrides or [])
    overrides += [f"study.executor={executor}"] if executor else []
    overrides += [f'study.address="{address}"'] if address else []
    config = load_study(file, overrides, scale).config
    if address and config.study.executor != "ray":
        raise ConfigError(f"--address applies only to Ray, not to executor {config.study.executor}: add --executor ray")
    from isoflop.cli.narration import ResultNarrator, TerminalNarrator
    from isoflop.study import open_study, run_study

    command = shlex.join(["isoflop", "study", "run", str(file), *overrides])
    command += f" --scale {scale:g}" if scale != 1 else ""
    with _resumable(as_json) as stop:
        narrator = ResultNarrator() if is_quiet() else TerminalNarrator()
        document = run_study(config, narrator, command=command, stop=stop, times=times, predict=predict)
    page = config.directory / "report.html"
    if predict and not as_json:
        print(f"\npredictions: {page}\nanswers: {command}")
        return
    weights = None if predict else open_study(config.directory).run_directory()
    if as_json:
        print_json({"directory": config.directory, "report": page, "weights": weights, "answer": document})
        return
    print(f"\nweights: {weights}\nreport: {page}")


@contextmanager
def _resumable(as_json: bool) -> Iterator[Callable[[], bool]]:
    """A context for a study: whether it is asked to stop; where it was, it exits with 75."""
    from isoflop.train.guards import PREEMPTED, asked_to_stop

    with aside(as_json), asked_to_stop() as stop:
        try:
            yield stop
        except Preempted as error:
            print(f"{error} - run the same command to resume", file=sys.stderr)
            raise typer.Exit(PREEMPTED) from None


AUTO_EXAMPLES = examples(
    "isoflop auto my_images --hours 0.5", "isoflop auto my_images --start=timm:resnet18.a1_in1k --to onnx"
)


def auto(
    data: Annotated[
        str, argument("A folder with a folder of images for each class, or a URI as in data.source.", "FOLDER")
    ],
    overrides: Overrides = None,
    hours: Annotated[float, typer.Option("--hours", metavar="HOURS", help="Time of this machine for all of it.")] = 0.5,
    start: Annotated[
        list[str] | None,
        typer.Option("--start", metavar="WEIGHTS", help="Add a contender from weights: timm:NAME, file or folder."),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="FORMAT", help="Export to timm, hf, onnx or safetensors; default: what has the model."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Default: studies/NAME of the folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """From images to a trained, judged and exported classifier: check, compare, train, evaluate, report.

    Run it again to resume. On SIGTERM and SIGUSR1 its runs save a checkpoint, and it exits with 75.
    """
    from isoflop.runs.times import Times

    times = Times()  # first: the imports that follow take seconds, too
    from isoflop.cli.narration import BarNarrator
    from isoflop.study.auto import auto as study_of
    from isoflop.study.auto import summary

    given = [f"--hours={hours:g}", *(f"--start={weights}" for weights in start or ())]
    given += [f"--output={output}"] if output else []
    command = shlex.join(["isoflop", "auto", data, *(overrides or ()), *given])
    with _resumable(as_json) as stop:
        found = study_of(
            data,
            hours,
            output=output,
            starts=start or (),
            to=to,
            overrides=overrides or (),
            narrator=BarNarrator(times),
            command=command,
            stop=stop,
            times=times,
        )
    lines = summary(found, to)
    if as_json:
        print_json(
            {"directory": found.directory, "weights": found.run_directory(), "summary": lines, "answer": found.answer}
        )
        return
    print("\n".join(["", *lines]))


@app.command(
    "status", epilog=examples("isoflop study status examples/demo.toml", "isoflop study status studies/demo --json")
)
def status(place: Place, overrides: Overrides = None, as_json: Json = False) -> None:
    """Print the progress of the runs of each rung."""
    directory = _directory(place, overrides)
    from isoflop.runs.results import read_document, read_results

    name = read_document(directory, "study.json")["name"]
    rows = read_results(directory)
    if as_json:
        print_json({"name": name, "directory": directory, "runs": rows})
        return
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


@app.command(
    "answer", epilog=examples("isoflop study answer examples/demo.toml", "isoflop study answer studies/demo --json")
)
def answer(place: Place, overrides: Overrides = None, as_json: Json = False) -> None:
    """Print the answer of a study, predicted and measured."""
    directory = _directory(place, overrides)
    from isoflop.cli.answer import tell_answer, tell_grades, tell_hours, tell_transfer
    from isoflop.runs.results import read_document

    document = read_document(directory, "answer.json")
    if as_json:
        print_json(document)
        return
    try:
        tell_answer(document)
        tell_grades(document)
        tell_transfer(document.get("transfer", {}).get("rows", []))
        tell_hours(document)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        damaged = f"{directory / 'answer.json'}: damaged; `isoflop study run` writes it again from the runs"
        raise StudyError(damaged) from error


def _directory(place: Path, overrides: list[str] | None) -> Path:
    if existing(place).is_dir():
        return place
    from isoflop.config import load_study

    return load_study(place, overrides or []).config.directory
