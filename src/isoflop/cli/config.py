"""`isoflop config`: show a configuration and its keys."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from isoflop.cli.output import Json, argument, examples, group, print_json, print_table

app = group("config", "Look at configurations.")

File = Annotated[Path, argument("Configuration file.", "FILE.toml")]
Overrides = Annotated[
    list[str] | None, argument("Override or add a value of the file, such as optim.name=sgd.", "KEY=VALUE")
]


@app.command(
    "show",
    short_help="Print every value of a configuration, and its origin.",
    epilog=examples(
        "isoflop config show examples/demo.toml",
        "isoflop config show examples/demo.toml optim.weight_decay=0.01",
        "isoflop config show examples/demo.toml --json",
    ),
)
def show(file: File, overrides: Overrides = None, as_json: Json = False) -> None:
    """Print every value of a run's or study's configuration and where it comes from."""
    from isoflop.config import config_hash, dotted, flatten, literal, load_any

    loaded = load_any(file, overrides or [])
    origins = loaded.origins
    if as_json:
        plain = dict(flatten(loaded.config.model_dump(mode="json")))
        values = {dotted(key): {"value": value, "origin": origins[dotted(key)]} for key, value in plain.items()}
        print_json({"hash": config_hash(loaded.config), "values": values})
        return
    rows = [(dotted(key), literal(value), origins[dotted(key)]) for key, value in flatten(loaded.config)]
    rows.sort(key=lambda row: "." in row[0])  # plain keys first, as in a TOML file
    print_table(("key", "value", "origin"), rows)


class Kind(StrEnum):
    """The kind of configuration."""

    run = "run"
    study = "study"


@app.command(
    "keys",
    short_help="Print every key: allowed values, default, meaning.",
    epilog=examples("isoflop config keys run", "isoflop config keys study --json"),
)
def keys(kind: Annotated[Kind, argument("Whose keys.", "run|study")], as_json: Json = False) -> None:
    """Print every key of a run or a study: allowed values, default, meaning."""
    from isoflop.config import RunConfig, StudyConfig, reference

    known = list(reference(RunConfig if kind is Kind.run else StudyConfig))
    known.sort(key=lambda key: "." in key.name)  # plain keys first, as in a TOML file
    if as_json:
        print_json({"keys": known})
        return
    rows = [(key.name, key.allowed, key.default, key.meaning) for key in known]
    print_table(("key", "allowed", "default", "meaning"), rows)
