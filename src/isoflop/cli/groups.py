"""A group of verbs: what all of them have in common."""

from typing import Any

import typer


def group(name: str, help: str, *, completion: bool = False) -> typer.Typer:
    """A group of verbs whose bare name prints its help; `completion` adds the options that teach it to a shell."""
    app = typer.Typer(
        name=name,
        help=help,
        add_completion=completion,
        rich_markup_mode=None,  # plain help starts in half the time
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback(invoke_without_command=True, help=help)
    def alone(context: typer.Context) -> None:
        help_when_alone(context)

    return app


def help_when_alone(context: typer.Context) -> None:
    """Print the help of a group that was named without a verb."""
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit


def examples(*lines: str) -> str:
    """The end of a verb's help: command lines that a test holds to be valid."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def argument(help: str, metavar: str, **more: Any) -> Any:
    """An argument whose name in the help is that of the documentation."""
    return typer.Argument(help=help, metavar=metavar, show_default=False, **more)
