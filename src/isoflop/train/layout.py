"""How an objective lies on the devices: recomputed, compiled and sharded by block, all in place.

The order matters: what is recomputed lies inside of what is compiled, and both inside of what FSDP2 gathers. Where
weights are sharded, each process holds its shards and one block at a time, from the first moment on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from isoflop.config import RunConfig
from isoflop.errors import ConfigError, ModelError
from isoflop.models.drop import Dropout, DropPath
from isoflop.objectives import Masked, Objective
from isoflop.train.deferred import Deferred
from isoflop.train.device import give_back_memory, to_device
from isoflop.train.ranks import Ranks
from isoflop.train.shards import is_sharded

AnyObjective = TypeVar("AnyObjective", bound=Objective)


ROW = re.compile(r"(^|\.)(blocks|stages\.\w+|layer\d)$")  # what rows of blocks are called; `layer1` in timm's ResNets
REGNET_STAGE = re.compile(r"(^|\.)model\.s\d$")  # timm's: a module that holds its blocks by itself


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The repeated parts of a network, in order: what is sharded, recomputed and compiled one by one."""
    for name, parent in module.named_modules():
        is_row = ROW.search(name) and isinstance(parent, nn.Sequential | nn.ModuleList)
        if is_row or REGNET_STAGE.search(name):
            yield from parent.children()


def build_and_arrange(build: Callable[[], AnyObjective], config: RunConfig, ranks: Ranks) -> AnyObjective:
    """What `build` builds, checked and laid out; see `built` and `arrange`. The same numbers for any layout."""
    if not is_divided(config, ranks):
        return arrange(built(build), config, ranks)
    with new_memory_is_nan(), Deferred() as deferred:
        objective = build()
    return arrange(objective, config, ranks, deferred)


def is_divided(config: RunConfig, ranks: Ranks) -> bool:
    """Whether this process is to keep only a part of the weights."""
    return not ranks.is_alone and config.parallel.sharding != "none"


def arrange(objective: AnyObjective, config: RunConfig, ranks: Ranks, deferred: Deferred | None = None) -> AnyObjective:
    """`objective` on the device of this rank, laid out as `config.parallel` says; what is `deferred` is settled.

    Raises ConfigError for what would depend on the layout: batch statistics, and random layers that cannot draw for the
    whole batch. ModelError as `built`, for what is settled.
    """
    parallel = config.parallel
    if not ranks.is_alone or parallel.device_batch_size:
        make_independent_of_layout(objective)
    if config.precision == "float8":
        use_float8(objective, ranks.device)
    parts = list(blocks(objective))
    by_block = {
        "parallel.recompute": parallel.recompute,
        "parallel.compile": parallel.compile,
        "precision = float8": config.precision == "float8",
    }
    asked = [option for option, is_asked in by_block.items() if is_asked]
    if asked and not parts:
        raise ConfigError(f"`{asked[0]}` works block by block, and {objective.backbone.preset} has none that are known")
    if parallel.recompute and any(isinstance(module, _BatchNorm) for part in parts for module in part.modules()):
        raise ConfigError(f"`parallel.recompute` would take the batch statistics of {objective.backbone.preset} twice")
    for number, block in enumerate(parts):
        if parallel.recompute and number % parallel.recompute == 0:
            forward: Callable[..., Any] = block.forward
            block.forward = partial(checkpoint, forward, use_reentrant=False)
        if parallel.compile:
            block.compile()
    if not is_divided(config, ranks):
        return to_device(objective, ranks.device)
    _shard(objective, config, ranks, deferred or Deferred())
    return objective


def make_independent_of_layout(objective: nn.Module) -> None:
    """Has random layers draw for the whole batch; ConfigError where a layer looks at other images of its batch."""
    for name, module in list(objective.named_modules()):
        if isinstance(module, _BatchNorm):
            raise ConfigError(
                f"{name} takes statistics of a batch, which would be of a part of it here: train this model on one "
                "process without `parallel.device_batch_size`, or take one with another norm"
            )
        p = getattr(module, "p", 0.0) if isinstance(module, nn.Dropout) else 0.0
        if p and "attn_drop" in name:
            raise ConfigError(f"{name}: dropout of attention is drawn in parts of a batch: train on one process")
        parent = objective.get_submodule(name.rpartition(".")[0])
        if type(module) is nn.Dropout:
            setattr(parent, name.rpartition(".")[2], Dropout(module.p))
        elif type(module).__name__ == "DropPath" and hasattr(module, "drop_prob"):  # timm's, without importing it
            setattr(parent, name.rpartition(".")[2], DropPath(float(module.drop_prob)))


def use_float8(objective: Objective, device: torch.device, *, emulate: bool = False) -> None:
    """Replaces the linear layers of the blocks by torchao's, whose matrix products are in float8 (arXiv 2209.05433).

    Raises ConfigError where hardware or package are missing; `emulate` does without the hardware, for tests.
    """
    if not emulate and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9)):
        raise ConfigError("precision = float8 needs a GPU that computes in it (H100, L40S, …): take bfloat16")
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError:
        raise ConfigError("precision = float8 needs torchao: pip install 'isoflop[float8]'") from None

    def is_fit(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and module.in_features % 16 == 0 and module.out_features % 16 == 0

    for block in blocks(objective):
        convert_to_float8_training(block, config=Float8LinearConfig(emulate=emulate), module_filter_fn=is_fit)


def _shard(objective: Objective, config: RunConfig, ranks: Ranks, deferred: Deferred) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    kind = ranks.device.type
    if config.parallel.sharding == "hybrid":
        if ranks.world % ranks.local_world:
            raise ConfigError(f"hybrid sharding needs as many processes on each host: {ranks.world} in all")
        shape = (ranks.world // ranks.local_world, ranks.local_world)
        mesh = init_device_mesh(kind, shape, mesh_dim_names=("copy", "part"))
    else:
        mesh = init_device_mesh(kind, (ranks.world,), mesh_dim_names=("part",))
    # Scalars cannot be divided, and frozen tables need not be: every rank keeps them whole.
    undivided = {p for p in objective.parameters() if p.ndim == 0 or not p.requires_grad}
    names = {id(p): name for name, p in objective.named_parameters()}
    forgotten: list[str] = []
    policy = MixedPrecisionPolicy(
        param_dtype=None if config.precision == "float32" else torch.bfloat16,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # autocast does that, as it does where nothing is sharded
    )
    for module in (*blocks(objective), objective):
        held = [p for p in module.parameters() if not is_sharded(p)]
        deferred.settle((*held, *module.buffers()))
        forgotten += [names[id(p)] for p in held if not bool(p.isfinite().all())]
        for parameter in held:
            parameter.data = parameter.data.contiguous()  # FSDP2 takes no channels-last weights
            if parameter in undivided:
                parameter.data = parameter.data.to(ranks.device)
        fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=undivided)
        give_back_memory()
    deferred.settle_rest()
    _raise_for(forgotten + _not_finite(objective.named_buffers()))
    for module in objective.modules():
        if isinstance(module, FSDPModule):
            # The loss of each rank is already weighted by its share of the batch: gradients add up.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(objective, "evaluate")
    if isinstance(objective, Masked):
        register_fsdp_forward_method(objective, "reconstruct")


def built(build: Callable[[], AnyObjective]) -> AnyObjective:
    """What `build` builds, checked: memory that nobody initialised is filled with NaN, and none may be left.

    Raises ModelError that names the parameters and buffers that are not finite.
    """
    with new_memory_is_nan():
        objective = build()
    check_initialised(objective)
    return objective


@contextmanager
def new_memory_is_nan() -> Iterator[None]:
    """Meanwhile, PyTorch fills memory that it takes with NaN."""
    was_on, was_warning = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)  # only this has it do so
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=was_warning)


def check_initialised(objective: nn.Module) -> None:
    """Raises ModelError if a parameter or buffer has a number that is not finite."""
    _raise_for(_not_finite([*objective.named_parameters(), *objective.named_buffers()]))


def _not_finite(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    return [name for name, t in named if t.is_floating_point() and not bool(t.isfinite().all())]


def _raise_for(names: list[str]) -> None:
    if names:
        raise ModelError(f"{len(names)} parameters start without finite numbers: {', '.join(names[:5])}")
