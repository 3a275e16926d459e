"""Configurations are read with every problem told at once, and every value knows where it came from."""

import json
import os
from pathlib import Path

import pytest

from isoflop.config import (
    OptimConfig,
    RunConfig,
    ScheduleConfig,
    StudyConfig,
    config_hash,
    load,
    load_any,
    load_run,
    load_study,
    parse,
)
from isoflop.config.run import SharedConfig
from isoflop.errors import ConfigError

RUN = """\
# a run
steps = 1000
[model]
name = "vit_w16p8"
depth = 3
[optim]
betas = [0.9,
  0.95]
"""

STUDY = """\
batch_size = 32
[study]
name = "s"
budgets = [1e9, 3e9, 1e10]
target_budget = 1e11
[optim]
weight_decay = 0.5
[families.vit]
learning_rates = [1e-3, 1e-2]
[families.nfnet]
sizes = ["nfnet_w8", "nfnet_w12"]
optim = { name = "sgd", agc = 0.01 }
"""


@pytest.fixture
def run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text(RUN)
    Path("study.toml").write_text(STUDY)
    return Path("run.toml")


def told(text: str, *overrides: str, kind: type[RunConfig] | type[StudyConfig] = RunConfig) -> list[str]:
    """The lines of the error that `text` in a file called x.toml gives."""
    Path("x.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load("x.toml", overrides, kind)
    return str(caught.value).split("\n  ")


def test_values_come_from_the_command_line_then_the_file_then_the_default(run_file: Path) -> None:
    loaded = load(run_file, ["optim.learning_rate=3e-3", "steps=500"], RunConfig)
    assert loaded.config == RunConfig.model_validate(
        {
            "steps": 500,
            "model": {"name": "vit_w16p8", "depth": 3},
            "optim": OptimConfig(betas=(0.9, 0.95), learning_rate=3e-3),
        }
    )
    assert loaded.config.model.overrides == {"depth": 3}
    origins = loaded.origins
    assert origins["steps"] == origins["optim.learning_rate"] == "command line"
    assert origins["model.name"] == "run.toml:4"
    assert origins["model.depth"] == "run.toml:5"
    assert origins["optim.betas"] == "run.toml:7"
    assert origins["optim.momentum"] == origins["batch_size"] == "default"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.source=parquet:/some where/x", "parquet:/some where/x"),
        ("data.source=fractals?classes=10&zipf=1.5", "fractals?classes=10&zipf=1.5"),
        ('data.source="quoted"', "quoted"),
        ("data.source=true\nsteps = 3", "true\nsteps = 3"),
        ("data.source=", ""),
    ],
)
def test_text_on_the_command_line_needs_no_quotes(run_file: Path, override: str, value: str) -> None:
    if not value:
        with pytest.raises(ConfigError, match="must be some text, not empty"):
            load(run_file, [override], RunConfig)
        return
    assert load(run_file, [override], RunConfig).config.data.source == value


def test_a_table_on_the_command_line_replaces_the_whole_table(run_file: Path) -> None:
    loaded = load(run_file, ['optim={name = "sgd", momentum = 0.8}'], RunConfig)
    assert loaded.config.optim == OptimConfig(name="sgd", momentum=0.8)
    assert loaded.origins["optim.momentum"] == "command line"
    assert loaded.origins["optim.betas"] == "default"


def test_a_whole_number_may_be_written_with_an_exponent(run_file: Path) -> None:
    assert load(run_file, ["steps=1e5"], RunConfig).config.steps == 100_000


def test_none_takes_a_default_away(run_file: Path) -> None:
    assert load(run_file, [], RunConfig).config.optim.clip == 1.0
    assert load(run_file, ["optim.clip=none"], RunConfig).config.optim.clip is None


def test_all_problems_are_told_at_once_with_their_places(run_file: Path) -> None:
    text = 'step = 3\n[model]\nname = 7\n[schedule]\nname = "cosin"\n[optim]\nweight_decay = -1\nclip = "no"\n'
    assert told(text, "optim.wieght_decay=0.1", "threads=true", "steps") == [
        "9 problems in the configuration",
        "command line: `steps` is not of the form key=value",
        "command line: unknown key `optim.wieght_decay` - did you mean `optim.weight_decay`?",
        "command line: `threads` = true must be a whole number",
        "x.toml: `steps` is missing (Optimizer steps; the run sees steps × batch_size images) - is it `step`?",
        "x.toml:1: unknown key `step` - did you mean `steps`?",
        "x.toml:3: `model.name` = 7 must be text",
        'x.toml:5: `schedule.name` = "cosin" must be one of "constant", "cosine", "rsqrt", "steps", "poly"'
        " - did you mean `cosine`?",
        "x.toml:7: `optim.weight_decay` = -1 must be at least 0",
        'x.toml:8: `optim.clip` = "no" must be a number',
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=0", "`steps` = 0 must be greater than 0"),
        ("steps=1.5", "`steps` = 1.5 must be a whole number"),
        ("steps=ten", '`steps` = "ten" must be a whole number'),
        ("seed=-1", "`seed` = -1 must be at least 0"),
        ("optim=3", "`optim` = 3 must be a table"),
        ("optim.betas=0.9", "`optim.betas` = 0.9 must be a list"),
        ("optim.betas=[0.9, 1.0]", "`optim.betas[1]` = 1.0 must be less than 1"),
        ("optim.betas=[0.9]", "`optim.betas` = [0.9] must be a list of 2"),
        ("optim.betas=[0.9, 0.9, 0.9]", "`optim.betas` = [0.9, 0.9, 0.9] must be a list of 2"),
        ("optim.learning_rate=nan", "`optim.learning_rate` = nan must be a finite number"),
        ("optim.learning_rate=0", "`optim.learning_rate` = 0 must be greater than 0"),
        ("tensorboard=1", "`tensorboard` = 1 must be true or false"),
        (
            "model.depth={a = 1}",
            "`model.depth` = {a = 1} must be true or false, a whole number, a number, text or a list",
        ),
        ("weight_decay=1", "unknown key `weight_decay` - did you mean `optim.weight_decay`?"),
        (
            "schedule.hue=1",
            "unknown key `schedule.hue`; "
            "known here: name, warmup, warmup_from, floor, hold, cooldown, drops, timescale",
        ),
        ("schedule.warmup=900", "`schedule.warmup` = 900 does not fit: `steps` = 1000 leave 800 before the cooldown"),
        ("steps.x=1", "`steps.x` cannot be set: `steps` is not a table"),
        ("=1", "`=1` is not of the form key=value"),
        ("a b=1", "`a b=1` is not of the form key=value"),
    ],
)
def test_a_value_that_cannot_be_is_told_with_what_it_must_be(run_file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(run_file, [override], RunConfig)
    assert str(caught.value) == f"command line: {message}"


def test_what_is_missing_is_told_with_what_it_means(run_file: Path) -> None:
    assert told("") == [
        "2 problems in the configuration",
        "x.toml (empty): `model` is missing (The backbone)",
        "x.toml (empty): `steps` is missing (Optimizer steps; the run sees steps × batch_size images)",
    ]
    assert told("steps = 1\n\n[model]\nnmae = 'vit'") == [
        "x.toml:3: `model.name` is missing (A preset, see `isoflop models`) - is it `model.nmae`?"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = 1\n[model]\nname = vit\n", "x.toml:3: not valid TOML: invalid value - text needs quotes"),
        ("steps: 1\n", "x.toml:1: not valid TOML: expected '=' after a key in a key/value pair"),
        ("steps = 1\nsteps = 2\n", "x.toml:2: not valid TOML: cannot overwrite a value"),
        ("steps = [1,\n2", "x.toml:2: not valid TOML: unclosed array"),
    ],
)
def test_what_is_not_toml_is_told_with_its_line(run_file: Path, text: str, message: str) -> None:
    assert told(text) == [message]


def test_a_file_that_cannot_be_read_is_told_in_one_line(run_file: Path) -> None:
    Path("binary.toml").write_bytes(b"a = '\xff'")
    for name, message in {
        "rum.toml": "rum.toml: no such file - did you mean `run.toml`?",
        "no/where.toml": "no/where.toml: no such file",
        ".": ".: cannot be read: is a directory",
        "binary.toml": "binary.toml: not UTF-8 text (byte 5), so not TOML",
    }.items():
        with pytest.raises(ConfigError) as caught:
            load(name, [], RunConfig)
        assert str(caught.value) == message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_told_in_one_line(run_file: Path) -> None:
    run_file.chmod(0)
    with pytest.raises(ConfigError, match=r"run\.toml: cannot be read: permission denied"):
        load(run_file, [], RunConfig)


def test_a_byte_order_mark_and_crlf_do_no_harm(run_file: Path) -> None:
    run_file.write_bytes(b"\xef\xbb\xbf" + RUN.replace("\n", "\r\n").encode())
    assert load(run_file, [], RunConfig).origins["model.depth"] == "run.toml:5"


def test_a_family_takes_the_shared_optimizer_and_replaces_only_what_it_sets(run_file: Path) -> None:
    loaded = load("study.toml", ["schedule.warmup=7"], StudyConfig)
    vit, nfnet = loaded.config.families["vit"], loaded.config.families["nfnet"]
    assert (vit.optim.name, vit.optim.weight_decay, vit.optim.agc) == ("adamw", 0.5, None)
    assert (nfnet.optim.name, nfnet.optim.weight_decay, nfnet.optim.agc) == ("sgd", 0.5, 0.01)
    assert vit.schedule.warmup == nfnet.schedule.warmup == 7
    origins = loaded.origins
    assert origins["families.nfnet.optim.weight_decay"] == "study.toml:7"
    assert origins["families.nfnet.optim.name"] == "study.toml:12"
    assert origins["families.nfnet.schedule.warmup"] == "command line"
    assert origins["families.vit.optim.name"] == "default"


def test_a_run_of_a_study_has_everything_that_the_study_says(run_file: Path) -> None:
    more = [
        "guards.skip_nonfinite=3",
        "parallel.recompute=1",
        "evaluation.every=9",
        "checkpoint.keep=5",
        "precision=bfloat16",
    ]
    study = load("study.toml", ["schedule.warmup=7", "families.nfnet.model.depth=2", *more], StudyConfig).config
    run = study.run_config("nfnet", model="nfnet_w8", steps=100, learning_rate=0.3)
    assert run.model.name == "nfnet_w8"
    assert run.model.overrides == {"depth": 2}
    assert run.optim == OptimConfig(name="sgd", agc=0.01, weight_decay=0.5, learning_rate=0.3)
    assert run.schedule == ScheduleConfig(warmup=7)
    assert (run.batch_size, run.steps, run.images) == (32, 100, 3200)
    assert all(getattr(run, name) == getattr(study, name) for name in SharedConfig.model_fields if name != "schedule")
    assert run.guards.skip_nonfinite == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["families.vit.model.num_classes=3"],
            "`families.vit.model.num_classes` cannot be set: it comes from the data",
        ),
        (["families.vit.model.name=vit_b16"], "`families.vit.model.name` cannot be set: it is one of `sizes`"),
        (["study.seed=1e30"], "`study.seed` = 1e+30 must be less than"),
        (["families.vit.learning_rates=[-1]"], "`families.vit.learning_rates[0]` = -1 must be greater than 0"),
    ],
)
def test_what_no_run_of_a_study_could_be_is_one_line(run_file: Path, overrides: list[str], message: str) -> None:
    (line,) = told(STUDY, *overrides, kind=StudyConfig)
    assert message in line


def test_a_run_that_the_study_s_tables_leave_no_room_for_is_told(run_file: Path) -> None:
    study = load("study.toml", ["schedule.cooldown=1.0", "schedule.warmup=7"], StudyConfig).config
    with pytest.raises(
        ConfigError, match=r"`families.nfnet`: a run of nfnet_w8 is not possible: `schedule.warmup` = 7 does not"
    ):
        study.run_config("nfnet", model="nfnet_w8", steps=100, learning_rate=0.3)


def test_a_problem_in_a_shared_table_is_told_once(run_file: Path) -> None:
    assert told(STUDY, "optim.nmae=sgd", kind=StudyConfig) == [
        "command line: unknown key `optim.nmae` - did you mean `optim.name`?"
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("study.budgets=[1e10, 1e9, 1e8]", "`study.budgets` must ascend"),
        ("study.budgets=[1e10]", "`study.budgets` = [10000000000.0] must be a list of at least 3"),
        ("study.target_budget=1e8", "`study.target_budget` = 1e+08 is below the last rung, 1e+10"),
        (
            "study.budget=1e11",
            "`study.budget` = 1e+11 FLOPs leaves nothing to measure: "
            "training the answer alone takes 1e+11 (finals × target_budget)",
        ),
        (
            "study.budgets=none",
            "`study.budgets` is missing: give the rungs, or what the study may cost as `budget` (FLOPs), "
            "`hours`, `device_hours` or `money`",
        ),
        ("study.finals=9", "`study.finals` = 9, but there are 2 families to answer: each has one answer"),
        ("study.money=50", "`study.money` has no effect without `price_per_hour`: give both"),
        ("families.vit.learning_rates=[-1]", "`families.vit.learning_rates[0]` = -1 must be greater than 0"),
        ("families.vit.learning_rates=[0.1, 0.1]", "`families.vit.learning_rates` must ascend"),
        ('families.vit.sizes=["a", "a"]', "`families.vit.sizes` names a preset twice"),
        ("families.vit.sizes=x", '`families.vit.sizes` = "x" must be a list or a whole number'),
        ("families.vit.size=3", "unknown key `families.vit.size` - did you mean `families.vit.sizes`?"),
        ("optim.learning_rate=0.1", "unknown key `optim.learning_rate` - did you mean `families.NAME.learning_rates`?"),
    ],
)
def test_a_study_that_cannot_be_is_told_with_the_reason(run_file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("study.toml", [override], StudyConfig)
    assert str(caught.value) == f"command line: {message}"


def test_two_limits_of_a_study_contradict_each_other(run_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"`study.device_hours` and `budget` both limit the study: keep one of them"):
        load("study.toml", ["study.budget=1e13", "study.device_hours=3"], StudyConfig)


def test_a_study_s_name_cannot_lead_out_of_its_folder(run_file: Path) -> None:
    for name in ("../x", "a/b", "", ".hidden", "a b"):
        with pytest.raises(ConfigError, match=r"study\.name"):
            load("study.toml", [f'study.name="{name}"'], StudyConfig)
    assert load("study.toml", [], StudyConfig).config.directory == Path("studies/s")
    assert load("study.toml", ["study.output=/x/y"], StudyConfig).config.directory == Path("/x/y")


def test_a_study_and_a_run_are_told_apart(run_file: Path) -> None:
    assert isinstance(load_any("study.toml").config, StudyConfig)
    assert isinstance(load_any("run.toml").config, RunConfig)
    with pytest.raises(ConfigError, match=r"study\.toml is a study, not a run: `isoflop study run study\.toml`"):
        load_run("study.toml")
    with pytest.raises(ConfigError, match=r"run\.toml is a run, not a study: `isoflop train run\.toml`"):
        load_study("run.toml")


@pytest.mark.parametrize(("name", "kind"), [("run.toml", RunConfig), ("study.toml", StudyConfig)])
def test_a_configuration_survives_being_stored(run_file: Path, name: str, kind: type[RunConfig]) -> None:
    config = load(name, [], kind).config
    stored = json.loads(json.dumps(config.model_dump(mode="json")))
    assert parse(stored, kind) == config
    assert config_hash(parse(stored, kind)) == config_hash(config)


def test_a_stored_configuration_that_was_altered_is_refused_with_every_problem(run_file: Path) -> None:
    stored = load(run_file, [], RunConfig).config.model_dump(mode="json") | {"steps": "many", "colour": 1}
    with pytest.raises(ConfigError) as caught:
        parse(stored, RunConfig, "runs/1/config.json")
    assert str(caught.value).split("\n  ")[1:] == [
        "runs/1/config.json: unknown key `colour`; known here: " + ", ".join(RunConfig.model_fields),
        'runs/1/config.json: `steps` = "many" must be a whole number',
    ]


@pytest.mark.parametrize("name", ["demo", "cifar10", "contenders", "cluster", "imagenet64"])
def test_the_examples_are_valid(name: str) -> None:
    load_study(Path(__file__).parents[2] / "examples" / f"{name}.toml")
