"""Several processes that are killed, stopped and asked to stop: the run goes on, on as many as there are."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from isoflop.config import RunConfig
from isoflop.train import read_journal
from isoflop.train.checkpoints import saved_steps
from isoflop.train.preemption import PREEMPTED
from isoflop.train.run_directory import read_status
from tests.promises.chaos import finished, join, kill, run_config, start_ranks, train_whole, wait_for, warm_up
from tests.promises.same import check_close, check_same


def config_of(steps: int, sharding: str = "full") -> RunConfig:
    return run_config(
        steps=steps,
        optim={"learning_rate": 0.002},  # small, for what rounding does to the weights not to grow
        parallel={"sharding": sharding},
        evaluation={"every": 25},
        checkpoint={"every_seconds": 0.2},
        log_every=3,
    )


def preempt(config: RunConfig, directory: Path, world: int, after: int, number: int) -> None:
    """Asks one of the ranks to stop, once there is a checkpoint of so many steps; all of them must."""
    before = set(directory.glob("attempts/*"))
    ranks = start_ranks(config, directory, world)
    wait_for_an_attempt(directory, before)
    wait_for(directory, after)
    os.kill(ranks[-1].pid, number)
    assert set(join(ranks)) == {PREEMPTED}
    status = read_status(directory)
    assert status["state"] == "preempted"
    assert saved_steps(directory / "checkpoints")[0] == status["step"]  # to the step, not to the last regular save


def wait_for_an_attempt(directory: Path, before: set[Path]) -> None:
    """Returns when an attempt that is not among `before` has trained: all of its ranks then listen to signals."""
    deadline = time.monotonic() + 120
    while not any(
        path.read_text().count("\n") > 1
        for attempt in set(directory.glob("attempts/*")) - before
        for path in attempt.glob("metrics-*.jsonl")
    ):
        assert time.monotonic() < deadline, f"no rank of {directory} moves"
        time.sleep(0.005)


def test_a_preempted_run_goes_on_with_any_number_of_ranks(tmp_path: Path) -> None:
    config = config_of(100)
    warm_up()
    train_whole(config, tmp_path / "calm")
    elastic = tmp_path / "elastic"
    preempt(config, elastic, 2, 10, signal.SIGTERM)
    preempt(config, elastic, 1, 30, signal.SIGUSR1)
    preempt(config, elastic, 4, 45, signal.SIGTERM)
    train_whole(config, elastic, world=2)
    check_close(config, tmp_path / "calm", elastic)


def test_killed_ranks_change_nothing_at_the_same_layout(tmp_path: Path) -> None:
    config = config_of(60)
    warm_up()
    train_whole(config, tmp_path / "calm", world=2)
    fire = tmp_path / "fire"
    for after in (5, 30):
        ranks = start_ranks(config, fire, 2)
        wait_for(fire, after)
        os.kill(random.Random(after).choice(ranks).pid, signal.SIGKILL)
        kill(ranks)
    train_whole(config, fire, world=2)
    check_same(config, tmp_path / "calm", fire)


def test_a_damaged_shard_is_passed_over_by_all_ranks(tmp_path: Path) -> None:
    config = config_of(60)
    train_whole(config, tmp_path / "calm", world=2)
    hurt = tmp_path / "hurt"
    shutil.copytree(tmp_path / "calm", hurt)
    (hurt / "status.json").unlink()
    shards = sorted(hurt.glob(f"checkpoints/step-{60:012d}/shard-00002-*"))
    content = bytearray(shards[0].read_bytes())
    content[len(content) // 2] ^= 4
    shards[0].write_bytes(content)
    train_whole(config, hurt, world=2)
    starts = [row for row in _all_rows(hurt) if row["kind"] == "start"]
    assert 0 < starts[-1]["step"] < 60
    check_same(config, tmp_path / "calm", hurt)


def _all_rows(directory: Path) -> list[dict[str, object]]:
    from isoflop.train.journal import attempts

    return [row for rows in attempts(directory) for row in rows]


def test_a_stopped_rank_is_reported_with_its_stack(tmp_path: Path) -> None:
    config = config_of(400).model_copy(
        update={"guards": config_of(400).guards.model_copy(update={"stuck_seconds": 8.0})}
    )
    ranks = start_ranks(config, tmp_path / "run", 2)
    wait_for(tmp_path / "run", 5)
    os.kill(ranks[1].pid, signal.SIGSTOP)
    try:
        ranks[0].join(300)
        assert ranks[0].exitcode == 1
        report = (tmp_path / "run/stuck/rank-0.txt").read_text()
        assert "rank 0" in report
        assert "attempt.py" in report  # where it stood
    finally:
        os.kill(ranks[1].pid, signal.SIGCONT)
        kill(ranks)


@pytest.mark.long  # for the sake of five imports of PyTorch
def test_torchrun_starts_again_after_a_rank_was_killed(tmp_path: Path) -> None:
    config = config_of(60)
    warm_up()
    train_whole(config, tmp_path / "calm", world=2)
    run = tmp_path / "run"
    script = tmp_path / "entry.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom isoflop.config import RunConfig, parse\n"
        "from isoflop.train import train\nimport json, torch\ntorch.set_num_threads(1)\n"
        f"train(parse(json.loads({config.model_dump_json()!r}), RunConfig), Path({str(run)!r}))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    with (tmp_path / "said").open("wb") as said:
        torchrun = subprocess.Popen([*command, str(script)], stdout=said, stderr=said)
        try:
            wait_for(run, 10)
            os.kill(_children(torchrun.pid)[-1], signal.SIGKILL)
            status = torchrun.wait(300)
        finally:
            torchrun.terminate()
            torchrun.wait()
    assert status == 0, (tmp_path / "said").read_text()[-2000:]
    assert len([row for row in _all_rows(run) if row["kind"] == "start"]) == 2
    check_same(config, tmp_path / "calm", run)


def _children(pid: int) -> list[int]:
    """The processes that torchrun started, by rank."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ranked = {}
    for child in map(int, found):
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        rank = [entry for entry in environment if entry.startswith(b"RANK=")]
        if rank:
            ranked[int(rank[0][5:])] = child
    return [ranked[rank] for rank in sorted(ranked)]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_sixty_kills_of_ranks_that_come_and_go_miss_no_sample(tmp_path: Path) -> None:
    chance = random.Random(6)
    hits, trial = {1: 0, 2: 0, 4: 0}, 0
    warm_up()
    calm = tmp_path / "calm"
    train_whole(config_of(120), calm)
    while sum(hits.values()) < 60:
        fire, attempts = tmp_path / f"fire-{trial}", 0
        sharding = chance.choice(["none", "full", "hybrid"])
        config = config_of(120, sharding)
        while not finished(fire) and attempts < 10:
            world = chance.choice([1, 2, 2, 4])
            ranks = start_ranks(config, fire, world)
            ranks[0].join(chance.uniform(0.0, 1.5 + 1.5 * world))
            alive = [rank for rank in ranks if rank.is_alive()]
            if alive:
                os.kill(chance.choice(alive).pid, signal.SIGKILL)
                hits[world] += 1
            kill(ranks)
            attempts += 1
        if not finished(fire):
            train_whole(config, fire, world=2)
        check_close(config, calm, fire)
        assert read_journal(fire)[-1]["step"] == 120
        trial += 1
    print(f"kills by number of ranks {hits} over {trial} runs: samples exact, losses as undisturbed")
