"""Trains one run on several hosts of a Ray cluster: a task a host, and in each torchrun, a process a GPU.

python ray_torchrun.py --hosts 2 --gpus 8 RUN.toml [key=value ...] [--output DIR]
"""

from __future__ import annotations

import argparse
import subprocess


def command(host: int, hosts: int, gpus: int, address: str, arguments: list[str]) -> list[str]:
    """What host number `host` runs; `address` is that of host 0."""
    return [
        "torchrun",
        f"--nnodes={hosts}",
        f"--node-rank={host}",
        f"--nproc-per-node={gpus}",
        f"--master-addr={address}",
        "--master-port=29500",
        "-m",
        "isoflop",
        "train",
        *arguments,
    ]


def main() -> None:
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    parser = argparse.ArgumentParser()
    parser.add_argument("--hosts", type=int, required=True)
    parser.add_argument("--gpus", type=int, required=True)
    ours, arguments = parser.parse_known_args()

    ray.init()
    group = placement_group([{"GPU": ours.gpus}] * ours.hosts, strategy="STRICT_SPREAD")
    ray.get(group.ready())

    def on(host: int) -> dict[str, object]:
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=host)
        return {"num_cpus": 0, "num_gpus": ours.gpus, "scheduling_strategy": strategy}

    address = ray.get(ray.remote(ray.util.get_node_ip_address).options(**on(0)).remote())
    run = ray.remote(subprocess.check_call)
    ray.get(
        [
            run.options(**on(host)).remote(command(host, ours.hosts, ours.gpus, address, arguments))
            for host in range(ours.hosts)
        ]
    )


if __name__ == "__main__":
    main()
