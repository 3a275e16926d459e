"""The launch files are what their programs can read, and start what the command line has."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from isoflop.config import load_run
from isoflop.train.guards import PREEMPTED

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "examples" / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((LAUNCH / name).read_text(encoding="utf-8")))


def recipes_named(text: str) -> list[str]:
    return re.findall(r"recipes/[\w+-]+\.toml", text)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(script)], check=True)


@pytest.mark.parametrize("file", sorted(LAUNCH.iterdir()), ids=lambda path: path.name)
def test_the_recipes_that_a_file_names_are_there(file: Path) -> None:
    if file.is_dir():
        return
    for name in recipes_named(file.read_text(encoding="utf-8")):
        assert load_run(ROOT / name).config.steps


def fake(folder: Path, name: str, script: str) -> None:
    """A program of that name that notes its arguments and does as `script` says."""
    path = folder / name
    path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> "$CALLS"\n{script}\n')
    path.chmod(0o755)


def calls(folder: Path, script: Path, *arguments: str, **more: str) -> tuple[int, list[str]]:
    """Runs a script with the programs in `folder`; its exit status and what it called."""
    log = folder / "calls"
    env = {"PATH": f"{folder}:{os.environ['PATH']}", "CALLS": str(log), **more}
    done = subprocess.run(["bash", str(script), *arguments], env=env, capture_output=True, text=True)
    return done.returncode, log.read_text().splitlines() if log.exists() else []


def test_one_host_starts_a_process_on_each_gpu(tmp_path: Path) -> None:
    fake(tmp_path, "torchrun", "")
    fake(tmp_path, "nvidia-smi", "printf 'GPU 0\\nGPU 1\\nGPU 2\\n'")
    _, called = calls(tmp_path, LAUNCH / "one_host.sh", "run.toml", "steps=3")
    assert called[-1] == "torchrun --standalone --nproc-per-node=3 --max-restarts=10 -m isoflop train run.toml steps=3"


SLURM = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "4"}


@pytest.mark.parametrize(
    ("status", "expected", "requeued"), [(0, 0, False), (1, 1, False), (PREEMPTED, 0, True)], ids=str
)
def test_slurm_puts_back_into_the_queue_what_was_asked_to_stop(
    tmp_path: Path, status: int, expected: int, requeued: bool
) -> None:
    fake(tmp_path, "scontrol", "echo host1; echo host2")
    fake(tmp_path, "srun", f"exit {status}")
    code, called = calls(tmp_path, LAUNCH / "slurm.sbatch", "run.toml", **SLURM)
    assert code == expected
    assert ("scontrol requeue 7" in called) == requeued
    (started,) = [line for line in called if line.startswith("srun")]
    assert "--nnodes=2 --nproc-per-node=4" in started
    assert "--rdzv-endpoint=host1:29500" in started
    assert started.endswith("-m isoflop train run.toml")


def test_slurm_hands_its_warning_on_and_waits_for_the_checkpoint(tmp_path: Path) -> None:
    """SIGUSR1 to the script becomes SIGTERM to the step, whose end is waited for before the job is put back."""
    fake(tmp_path, "scontrol", "echo host1")
    saving = (
        "trap 'sleep 0.3; echo saved >> \"$CALLS\"; exit 1' TERM\nkill -USR1 $PPID\nwhile true; do sleep 0.05; done"
    )
    fake(tmp_path, "srun", saving)
    code, called = calls(tmp_path, LAUNCH / "slurm.sbatch", "run.toml", **SLURM)
    assert code == 0
    assert called.index("saved") < called.index("scontrol requeue 7")


def test_slurm_asks_for_what_its_script_relies_on() -> None:
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", (LAUNCH / "slurm.sbatch").read_text(), re.MULTILINE))
    assert asked["signal"].startswith("B:USR1@")
    assert int(asked["signal"].partition("@")[2]) >= 60
    assert asked["ntasks-per-node"] == "1"
    assert "requeue" in asked


def test_kubernetes_meets_at_pod_0_and_keeps_its_runs() -> None:
    service, job = documents("kubernetes.yaml")
    assert (service["kind"], job["kind"], job["apiVersion"]) == ("Service", "Job", "batch/v1")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy asks for it
    (container,) = pod["containers"]
    options = dict(a.removeprefix("--").split("=") for a in container["args"] if a.startswith("--"))
    assert int(options["nnodes"]) == spec["completions"] == spec["parallelism"]
    assert int(options["nproc-per-node"]) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert options["rdzv-endpoint"].split(":")[0] == f"{job['metadata']['name']}-0.{pod['subdomain']}"
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert options["output"].startswith(mounts["runs"])
    rules = spec["podFailurePolicy"]["rules"]
    assert rules[0]["onExitCodes"]["values"] == [PREEMPTED]
    assert rules[0]["onExitCodes"]["containerName"] == container["name"]
    assert pod["terminationGracePeriodSeconds"] >= 60


def test_ray_has_a_worker_for_each_host_that_its_entrypoint_asks_for() -> None:
    (job,) = documents("ray.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    words = shlex.split(job["spec"]["entrypoint"])
    cluster = job["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert int(words[words.index("--hosts") + 1]) == workers["replicas"] == workers["maxReplicas"]
    (container,) = workers["template"]["spec"]["containers"]
    assert int(words[words.index("--gpus") + 1]) == container["resources"]["limits"]["nvidia.com/gpu"]
    for group in (cluster["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert all(mount["name"] in volumes for c in pod["containers"] for mount in c["volumeMounts"])


def test_ray_starts_a_torchrun_on_each_host() -> None:
    path = LAUNCH / "ray_torchrun.py"
    spec = importlib.util.spec_from_file_location("ray_torchrun", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    command = module.command(1, 2, 8, "10.0.0.1", ["run.toml", "steps=3"])
    assert command[:4] == ["torchrun", "--nnodes=2", "--node-rank=1", "--nproc-per-node=8"]
    assert command[-4:] == ["isoflop", "train", "run.toml", "steps=3"]


def test_skypilot_starts_as_many_processes_as_it_is_given(tmp_path: Path) -> None:
    (task,) = documents("skypilot.yaml")
    assert set(task) <= {"name", "num_nodes", "resources", "workdir", "file_mounts", "setup", "run"}
    assert task["resources"]["job_recovery"]["strategy"] == "EAGER_NEXT_REGION"
    fake(tmp_path, "torchrun", "")
    script = tmp_path / "run.sh"
    script.write_text(task["run"])
    given = {
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
    }
    code, (called,) = calls(tmp_path, script, **given)
    assert code == 0
    assert "--nnodes=2 --node-rank=1 --nproc-per-node=8 --master-addr=10.0.0.1" in called
    output = next(word for word in called.split() if word.startswith("--output="))
    assert output.removeprefix("--output=").startswith(tuple(task["file_mounts"]))
