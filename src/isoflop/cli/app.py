"""The command `isoflop` and its verbs. An error is one line on stderr and exit status 2."""

import os
import pwd
import re
import sys
import tempfile
import warnings
from typing import Annotated, NoReturn

import typer

from isoflop.cli import config, data, doctor, models, predict, report, study, training, transfer
from isoflop.cli.output import be_quiet, group, guard_streams, help_when_alone, lost_output, print_json
from isoflop.errors import IsoflopError
from isoflop.escapes import printable

INTERRUPTED = 130  # what a shell reports for a process ended by Ctrl-C

app = group(
    "isoflop",
    "Find the best vision backbone, size and length of training, by small runs at equal compute.",
    completion=True,
)
app.command("auto", short_help="Train the best classifier for a folder of images.", epilog=study.AUTO_EXAMPLES)(
    study.auto
)
app.command("models", short_help="List the models; count FLOPs and memory of one.", epilog=models.EXAMPLES)(
    models.models
)
app.command("train", short_help="Train one run, or resume it.", epilog=training.EXAMPLES)(training.train)
app.command(
    "transfer", short_help="Evaluate a backbone by few-shot, linear probe or fine-tuning.", epilog=transfer.EXAMPLES
)(transfer.transfer)
app.command("predict", epilog=predict.EXAMPLES)(predict.predict)
app.command("evaluate", short_help="Evaluate a classifier on labelled images.", epilog=predict.EVALUATE_EXAMPLES)(
    predict.evaluate
)
app.command("fit", epilog=report.FIT_EXAMPLES)(report.fit)
app.command(
    "inspect",
    short_help="Show attention, positions, filters and features of a backbone.",
    epilog=models.INSPECT_EXAMPLES,
)(models.inspect)
app.command(
    "report", short_help="Write the report of a study, a comparison, or a table.", epilog=report.REPORT_EXAMPLES
)(report.report)
app.command("watch", short_help="Show a study or a run in progress, in a browser.", epilog=report.WATCH_EXAMPLES)(
    report.watch
)
app.command("export", short_help="Export trained weights to another library.", epilog=models.EXPORT_EXAMPLES)(
    models.export
)
app.command("import", short_help="Import public weights.", epilog=models.IMPORT_EXAMPLES)(models.import_)
app.command("doctor", short_help="Show what this machine supports and what is missing.", epilog=doctor.EXAMPLES)(
    doctor.doctor
)
app.add_typer(study.app)
app.add_typer(data.app)
app.add_typer(config.app)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"isoflop {version('isoflop')}")
        raise typer.Exit


@app.callback(
    invoke_without_command=True,
    epilog="""\b
Examples:
  isoflop doctor
  isoflop study run examples/demo.toml
  isoflop study answer studies/demo --json

\b
Exit status: 0 success; 1 completed with a negative result (a run diverged,
data that a run would refuse); 2 a usage error; 75 stopped after saving, run
the same command to resume; 130 interrupted by Ctrl-C.
""",
)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Of every verb: print results, warnings and errors, no progress.")
    ] = False,
) -> None:
    help_when_alone(context)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command, by default that of the process, and exit: 0, or 2 for an error that the user can fix."""
    sys.exit(_run(arguments))


def _run(arguments: list[str] | None) -> int:
    guard_streams()
    _name_the_user()
    warnings.formatwarning = lambda message, *_, **__: (
        f"warning: {_one_line(message)}\n"
    )  # without the line of our source
    arguments = [_at_home(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    as_json = "--json" in arguments
    be_quiet("--quiet" in arguments)
    arguments = [argument for argument in arguments if argument != "--quiet"]  # of every verb, wherever it stands
    try:
        status = app(args=arguments, prog_name="isoflop", standalone_mode=False)
        sys.stdout.flush()
    except IsoflopError as error:
        return _fail(type(error).__name__, str(error), as_json)
    except typer.TyperException as error:  # an unknown verb or option, a missing argument
        return _fail("UsageError", _usage(" ".join(error.format_message().split())), as_json)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except OSError as error:
        if error is not lost_output():
            return _fail("OSError", f"{error.filename or 'this machine'}: {error.strerror or error}", as_json)
        if isinstance(error, BrokenPipeError):  # the reader has seen enough
            return 1
        return _fail("OutputError", f"stdout cannot be written: {error.strerror or error}", as_json=False)
    if status == INTERRUPTED:
        print("interrupted - run the same command to resume", file=sys.stderr)
    return status if isinstance(status, int) else 0


def _name_the_user() -> None:
    """Set USER and HOME if they are missing, as in containers: PyTorch and `~` need them."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("USER", f"uid-{os.getuid()}")
        os.environ.setdefault("HOME", tempfile.gettempdir())


def _at_home(argument: str) -> str:
    """`--output=~/x` as the shell would have given `--output ~/x`."""
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return f"{option}{equals}{os.path.expanduser(value)}" if value.startswith("~") else argument


def _fail(kind: str, message: str, as_json: bool) -> int:
    """Print one line on stderr, and with `--json` one object on stdout."""
    if as_json:
        print_json({"error": message, "kind": kind})
    # A configuration's problems have a line each, indented; any other line break is out of somebody's file.
    lines = re.sub(r"\n(?!  )", r"\\n", message) if kind == "ConfigError" else printable(message)
    print(f"error: {lines}", file=sys.stderr)
    return 2


def _one_line(message: object) -> str:
    return printable(" ".join(str(message).split()))


def _usage(message: str) -> str:
    """Typer's message, with its suggestion in the same words as ours."""
    message = message.replace(": Value error, ", ": ")
    before, bracket, options = message.partition(" (Possible options: ")
    if not bracket:
        return message
    quoted = " or ".join(f"'{option}'" for option in options.removesuffix(")").split(", "))
    return f"{before}. Did you mean {quoted}?"
