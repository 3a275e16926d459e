"""Several processes that are killed, stopped and asked to stop: the run goes on, on as many as there are."""

import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from isoflop.config import RunConfig
from isoflop.runs.directory import read_status
from isoflop.train import read_journal
from isoflop.train.checkpoints import saved_steps
from isoflop.train.guards import PREEMPTED
from tests.promises.chaos import (
    EVERY_STEP,
    Blow,
    finished,
    join,
    kill,
    kill_after,
    run_config,
    start_ranks,
    train_whole,
)
from tests.promises.same import check_close, check_same


def config_of(steps: int, sharding: str = "full") -> RunConfig:
    return run_config(
        steps=steps,
        optim={"learning_rate": 0.002},  # small, for what rounding does to the weights not to grow
        parallel={"sharding": sharding},
        evaluation={"every": 25},
        checkpoint=EVERY_STEP,
        log_every=3,
    )


def preempt(config: RunConfig, directory: Path, world: int, steps: int, number: signal.Signals) -> None:
    """Asks one of the ranks to stop after so many steps of its own; all of them must."""
    ranks = start_ranks(config, directory, world, Blow(steps, number=number, rank=world - 1))
    assert set(join(ranks)) == {PREEMPTED}
    status = read_status(directory)
    assert status.state == "preempted"
    assert saved_steps(directory / "checkpoints")[0] == status.step  # to the step, not to the last regular save


@pytest.mark.long
def test_a_preempted_run_goes_on_with_any_number_of_ranks(tmp_path: Path) -> None:
    config = config_of(60)
    train_whole(config, tmp_path / "calm")
    elastic = tmp_path / "elastic"
    preempt(config, elastic, 2, 10, signal.SIGTERM)
    preempt(config, elastic, 1, 20, signal.SIGUSR1)
    preempt(config, elastic, 4, 15, signal.SIGTERM)
    train_whole(config, elastic, world=2)
    check_close(config, tmp_path / "calm", elastic)


@pytest.mark.long
def test_killed_ranks_change_nothing_at_the_same_layout(tmp_path: Path) -> None:
    config = config_of(40)
    train_whole(config, tmp_path / "calm", world=2)
    fire = tmp_path / "fire"
    kill_after(config, fire, 2, Blow(20, files=4, rank=0))  # amid a save; `make test-long` kills sixty times
    train_whole(config, fire, world=2)
    check_same(config, tmp_path / "calm", fire)


def test_a_damaged_shard_is_passed_over_by_all_ranks(tmp_path: Path) -> None:
    config = config_of(8)
    train_whole(config, tmp_path / "calm", world=2)
    hurt = tmp_path / "hurt"
    shutil.copytree(tmp_path / "calm", hurt)
    (hurt / "status.json").unlink()
    shards = sorted(hurt.glob(f"checkpoints/step-{8:012d}/shard-00002-*"))
    content = bytearray(shards[0].read_bytes())
    content[len(content) // 2] ^= 4
    shards[0].write_bytes(content)
    train_whole(config, hurt, world=2)
    starts = [row for row in _all_rows(hurt) if row["kind"] == "start"]
    assert 0 < starts[-1]["step"] < 8
    check_same(config, tmp_path / "calm", hurt)


def _all_rows(directory: Path) -> list[dict[str, object]]:
    from isoflop.runs.journal import attempts

    return [row for rows in attempts(directory) for row in rows]


def test_a_stopped_rank_is_reported_with_its_stack(tmp_path: Path) -> None:
    config = config_of(400)
    config = config.model_copy(update={"guards": config.guards.model_copy(update={"stuck_seconds": 8.0})})
    ranks = start_ranks(config, tmp_path / "run", 2, Blow(5, number=signal.SIGSTOP, rank=1))
    try:
        assert join(ranks[:1]) == [1]
        report = (tmp_path / "run/stuck/rank-0.txt").read_text()
        assert "rank 0" in report
        assert "attempt.py" in report  # where it stood
    finally:
        kill(ranks)


@pytest.mark.long  # for the sake of five imports of PyTorch
def test_torchrun_starts_again_after_a_rank_was_killed(tmp_path: Path) -> None:
    config = config_of(40)
    train_whole(config, tmp_path / "calm", world=2)
    run = tmp_path / "run"
    script = tmp_path / "entry.py"
    script.write_text(
        f"import json, os, sys\nsys.path.insert(0, {str(Path.cwd())!r})\n"
        "from pathlib import Path\nfrom isoflop.config import RunConfig, parse\n"
        "from isoflop.train import train\nfrom tests.promises.chaos import Blow\nimport torch\n"
        "torch.set_num_threads(1)\nstop = bool\n"
        "if os.environ['RANK'] == '1' and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "    stop = Blow(10).awaited(bool)\n"
        f"config = parse(json.loads({config.model_dump_json()!r}), RunConfig)\n"
        f"train(config, Path({str(run)!r}), stop=stop)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    with (tmp_path / "said").open("wb") as said:
        done = subprocess.run([*command, str(script)], stdout=said, stderr=said, check=False)
    assert done.returncode == 0, (tmp_path / "said").read_text()[-2000:]
    assert len([row for row in _all_rows(run) if row["kind"] == "start"]) == 2
    check_same(config, tmp_path / "calm", run)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_sixty_kills_of_ranks_that_come_and_go_miss_no_sample(tmp_path: Path) -> None:
    chance = random.Random(6)
    hits, trial = {1: 0, 2: 0, 4: 0}, 0
    calm = tmp_path / "calm"
    train_whole(config_of(120), calm)
    while sum(hits.values()) < 60:
        fire, attempts = tmp_path / f"fire-{trial}", 0
        sharding = chance.choice(["none", "full", "hybrid"])
        config = config_of(120, sharding)
        while not finished(fire) and attempts < 10:
            world = chance.choice([1, 2, 2, 4])
            blow = Blow(chance.randint(0, 50), files=chance.randint(0, 20), rank=chance.randrange(world))
            ranks = start_ranks(config, fire, world, blow)
            hits[world] += join([ranks[blow.rank]]) != [0]
            kill(ranks)
            attempts += 1
        if not finished(fire):
            train_whole(config, fire, world=2)
        check_close(config, calm, fire)
        assert read_journal(fire)[-1]["step"] == 120
        trial += 1
    print(f"kills by number of ranks {hits} over {trial} runs: samples exact, losses as undisturbed")
