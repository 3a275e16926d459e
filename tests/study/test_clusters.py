"""The same study on a Ray cluster, as jobs of submitit and on this machine; nodes and addresses that are gone."""

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from isoflop.config import StudyConfig
from isoflop.errors import StudyError
from isoflop.runs.directory import read_status
from isoflop.study import Store, run_study
from isoflop.study.executors import Event, Executor, RunTask, make_executor
from isoflop.study.executors.ray import RayExecutor
from isoflop.study.executors.slurm import SlurmExecutor
from isoflop.study.planned import Catalogue
from tests.study.test_study import Listener, toy_study

MEASURED = "seconds"  # the column of the table in which two equal studies may differ


def table(config: StudyConfig, executor: Executor | None = None) -> tuple[list[dict[str, Any]], Listener]:
    """What `results.csv` of the study says, less the time that it took."""
    listener = Listener()
    run_study(config, listener, executor=executor)
    rows = Store(config.directory).rows()
    return [{name: value for name, value in row.items() if name != MEASURED} for row in rows], listener


@dataclass
class Nodes:
    """A Ray cluster of this machine: a head without CPUs for tasks, and two nodes with one each."""

    cluster: Any
    nodes: list[Any]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "300")  # on a busy machine
    monkeypatch.setenv("RAY_worker_niceness", "0")
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 80 << 20}
    patient = {"health_check_failure_threshold": 50}  # on a busy machine a node that is slow is not yet dead
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": patient, **memory},
    )
    yield Nodes(cluster, [cluster.add_node(num_cpus=1, **memory) for _ in range(2)])
    cluster.shutdown()


class Unlucky(RayExecutor):
    """Loses a node as soon as a run of the study has got somewhere: both nodes are at work then."""

    def lose(self, nodes: Nodes) -> "Unlucky":
        self.nodes: Nodes | None = nodes
        return self

    def run(self, tasks: Sequence[RunTask]) -> Iterator[Event]:
        for event in super().run(tasks):
            yield event
            if event.kind == "progress" and self.nodes:
                self.nodes.cluster.remove_node(self.nodes.nodes[0], allow_graceful=False)
                self.nodes = None


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_study_gives_the_same_table_here_as_jobs_and_on_ray_though_a_node_is_killed(
    tmp_path: Path, nodes: Nodes
) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed")
    here, _ = table(toy_study(tmp_path / "here"))

    config = toy_study(tmp_path / "ray", study={"address": nodes.cluster.address})
    executor = Unlucky(config).lose(nodes)
    on_ray, listener = table(config, executor)
    assert executor.nodes is None
    assert any("its worker was lost" in line for line in listener.lines), listener.lines
    assert on_ray == here

    config = toy_study(tmp_path / "jobs")
    as_jobs, _ = table(config, SlurmExecutor(config, cluster="local", pause=0.2))
    assert as_jobs == here


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_run_resumes_on_another_node_from_its_checkpoint(tmp_path: Path, nodes: Nodes) -> None:
    config = toy_study(
        tmp_path, study={"address": nodes.cluster.address, "workers": 2}, checkpoint={"every_seconds": 0.2}
    )
    store, catalogue = Store(tmp_path), Catalogue(config)
    runs = [catalogue.run("vit", "vit_w8d2p8", 2.4e9, rate) for rate in (0.01, 0.02)]
    executor = RayExecutor(config)
    resumed, died = [], []
    with executor:
        for event in executor.run([RunTask(run, store.run_directory(run.run_id), None) for run in runs]):
            if event.kind == "progress" and not died and event.step > 40 and nodes.nodes:
                nodes.cluster.remove_node(nodes.nodes.pop(), allow_graceful=False)
            died += [event.run_id] if event.kind == "died" else []
    for run in runs:
        directory = store.run_directory(run.run_id)
        assert read_status(directory).state == "done"
        second = directory / "attempts" / "2" / "metrics-0001.jsonl"
        resumed += [run.run_id] if second.exists() and '"origin": "checkpoint"' in second.read_text() else []
    assert died
    assert resumed == died


def test_an_address_where_nobody_answers_is_told_in_one_line(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    for address in (f"127.0.0.1:{port}", "nonsense"):
        config = toy_study(tmp_path / "toy", study={"executor": "ray", "address": address})
        with pytest.raises(StudyError, match=f"Ray cluster at {address} does not answer: start one") as caught:
            run_study(config)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "toy").exists()


def test_where_there_is_no_slurm_a_study_says_so_and_writes_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(StudyError, match="there is no SLURM here"):
        make_executor(toy_study(tmp_path / "toy", study={"executor": "slurm"}))
    with pytest.raises(StudyError, match=r"\[slurm\]: .*partitoin"):
        SlurmExecutor(toy_study(tmp_path / "toy", slurm={"partitoin": "gpu"}), cluster="local")
    assert not (tmp_path / "toy").exists()
