"""The verbs, and what becomes of an error: one line on stderr, exit status 2."""

import os
import sys
from typing import Annotated, NoReturn

import typer

from isoflop.cli import config, data, study, training, transfer
from isoflop.cli.fit import fit
from isoflop.cli.groups import group, help_when_alone
from isoflop.cli.inspect import inspect
from isoflop.cli.models import models
from isoflop.errors import IsoflopError

INTERRUPTED = 130  # what a shell reports for a process ended by Ctrl-C

app = group("isoflop", "Which vision backbone, how large, for how long: measured by small runs at equal compute.")
app.command("models")(models)
app.command("train")(training.train)
app.command("transfer")(transfer.transfer)
app.command("fit")(fit)
app.command("inspect")(inspect)
app.command("report")(study.report)
app.command("watch")(study.watch)
app.add_typer(study.app)
app.add_typer(data.app)
app.add_typer(config.app)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"isoflop {version('isoflop')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    help_when_alone(context)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command, by default that of the process, and exit: 0, or 2 for what the user can put right."""
    sys.exit(_run(arguments))


def _run(arguments: list[str] | None) -> int:
    try:
        status = app(args=arguments, prog_name="isoflop", standalone_mode=False)
        sys.stdout.flush()
    except IsoflopError as error:
        return _fail(str(error))
    except typer.TyperException as error:  # an unknown verb or option, a missing argument
        return _fail(" ".join(error.format_message().split()))
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except BrokenPipeError:  # the reader has seen enough; nothing may be flushed to it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if status == INTERRUPTED:
        print("interrupted - the same command goes on from here", file=sys.stderr)
    return status if isinstance(status, int) else 0


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2
