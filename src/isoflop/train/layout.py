"""The layout of an objective on the devices: recomputation, compilation and sharding by block, in place.

The order matters: recomputation is inside compilation, and both are inside FSDP2. With sharding, each process holds
only its shards and one block at a time, from the start.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from isoflop.config import RunConfig
from isoflop.errors import ConfigError, ModelError
from isoflop.models.blocks import Dropout, DropPath
from isoflop.objectives import LeJEPA, Masked, Objective
from isoflop.train.device import give_back_memory, to_device
from isoflop.train.ranks import Ranks
from isoflop.train.sharded import is_sharded

# Weights that are drawn when they are wanted, so that no process ever holds a whole model that is to be divided.
#
# While `Deferred` is on, constructors run as they are. A large tensor is filled as ever, so that the random numbers go
# on as ever; then its memory is given back, and what filled it is noted: the operations, and the state of the generator
# before each. `settle` takes memory and does the same again, bit for bit. What cannot be noted (reading a weight,
# filling
# a part of it) settles the tensor first: that costs memory, never exactness.


LEAST_BYTES = 1 << 16
"""Smaller tensors are simply made."""

aten = torch.ops.aten
OVERWRITES = {  # what was in the tensor before is gone
    aten.uniform_.default,
    aten.normal_.default,
    aten.zero_.default,
    aten.fill_.Scalar,
    aten.copy_.default,
}


@dataclass
class _Note:
    """What a tensor whose memory was given back is made of."""

    tensor: Tensor
    num_bytes: int
    fillings: list[tuple[Callable[[Tensor], object], Tensor | None]] = field(default_factory=list)
    """what to do to the tensor, and the state of the random numbers to begin with, if it draws any"""


class Deferred(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is on, CPU tensors made by `torch.empty` of `least_bytes` and more keep no memory until `settle`."""

    def __init__(self, least_bytes: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._least_bytes = LEAST_BYTES if least_bytes is None else least_bytes
        self._notes: dict[int, _Note] = {}
        self._is_busy = False
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def __enter__(self) -> Deferred:
        # It looks at what it drew and draws again; as a whole, it can be noted.
        self._trunc_normal = nn.init.trunc_normal_
        nn.init.trunc_normal_ = self._whole_trunc_normal
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._scratch = torch.empty(0, dtype=torch.uint8)
        nn.init.trunc_normal_ = self._trunc_normal
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._is_busy:
            return func(*args, **kwargs)
        if func is aten.empty.memory_format:
            with _untouched():
                made: Tensor = func(*args, **kwargs)
            if made.device.type == "cpu" and made.nbytes >= self._least_bytes:
                self._defer(made)
                return made
            return func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        involved = [tensor for tensor in tensors if _key(tensor) in self._notes]
        if not involved:
            return func(*args, **kwargs)
        target = args[0]
        if func.is_view:
            with _in_memory(self._notes[_key(target)]):
                return func(*args, **kwargs)
        is_of_whole = len(involved) == 1 and involved[0] is target and self._is_whole(target)
        if is_of_whole and func is aten._to_copy.default and _is_in_other_order(target, kwargs):  # to channels-last
            note = self._notes[_key(target)]
            with _untouched():
                made = torch.empty_like(target, memory_format=kwargs["memory_format"])
            self._defer(made).fillings.append((lambda t: self._copy(note, t), None))
            return made
        if is_of_whole and _fills(func, args, kwargs):
            is_unchanged = _watch(args[1:])

            def fill(tensor: Tensor) -> None:
                assert is_unchanged(), "a tensor has changed since it was copied"
                func(tensor, *args[1:], **kwargs)

            self._fill(target, fill, torch.Tag.nondeterministic_seeded in func.tags, func in OVERWRITES)
            return target
        if func is aten.copy_.default and _key(target) == _key(args[1]) and _is_same_view(target, args[1]):
            return target
        self.settle(involved)
        return func(*args, **kwargs)

    def settle(self, tensors: Iterable[Tensor]) -> None:
        """Gives each of `tensors` its memory and numbers, if it has none. What nobody filled is NaN."""
        for tensor in tensors:
            self._settle(tensor)

    def settle_rest(self) -> None:
        """Settles all that is left, one by one: what nobody uses is gone again at once."""
        while self._notes:
            self._settle(next(iter(self._notes.values())).tensor)

    def _defer(self, made: Tensor) -> _Note:
        note = self._notes[_key(made)] = _Note(made.detach(), made.untyped_storage().nbytes())
        made.untyped_storage().resize_(0)
        return note

    def _settle(self, tensor: Tensor) -> None:
        note = self._notes.pop(_key(tensor), None)
        if note:
            note.tensor.untyped_storage().resize_(note.num_bytes)
            self._replay(note)

    def _replay(self, note: _Note) -> None:
        """Fills the memory of `note`."""
        before = torch.get_rng_state()
        with self._alone(), torch.no_grad():
            if note.tensor.is_floating_point():
                note.tensor.fill_(torch.nan)
            for fill, state in note.fillings:
                if state is not None:
                    torch.set_rng_state(state)
                fill(note.tensor)
        torch.set_rng_state(before)

    def _copy(self, note: _Note, tensor: Tensor) -> None:
        with _in_memory(note):
            self._replay(note)
            tensor.copy_(note.tensor)

    def _fill(self, tensor: Tensor, fill: Callable[[Tensor], object], is_random: bool, overwrites: bool) -> None:
        """Notes what fills `tensor`; if it draws random numbers, they are drawn."""
        note = self._notes[_key(tensor)]
        if overwrites:
            note.fillings.clear()
        note.fillings.append((fill, torch.get_rng_state() if is_random else None))
        if is_random:
            with self._alone():
                fill(self._in_scratch(note))

    def _in_scratch(self, note: _Note) -> Tensor:
        """A tensor like that of `note`, in memory that is used again and again: what is freed may be slow to go."""
        if self._scratch.nbytes < note.num_bytes:
            self._scratch = torch.empty(note.num_bytes, dtype=torch.uint8)
        like, storage = note.tensor, self._scratch.untyped_storage()
        return torch.empty(0, dtype=like.dtype).set_(storage, 0, like.shape, like.stride())

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Meanwhile, operations are what they are."""
        was_busy, self._is_busy = self._is_busy, True
        try:
            yield
        finally:
            self._is_busy = was_busy

    def _whole_trunc_normal(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._is_busy or _key(tensor) not in self._notes or not self._is_whole(tensor) or "generator" in kwargs:
            return self._trunc_normal(tensor, *args, **kwargs)
        self._fill(tensor, lambda t: self._trunc_normal(t, *args, **kwargs), is_random=True, overwrites=True)
        return tensor

    def _is_whole(self, tensor: Tensor) -> bool:
        return _is_same_view(tensor, self._notes[_key(tensor)].tensor)


@contextmanager
def _untouched() -> Iterator[None]:
    """Meanwhile, new memory is not filled: the system gives it only when it is."""
    switch: Any = torch.utils.deterministic
    was = switch.fill_uninitialized_memory
    switch.fill_uninitialized_memory = False
    try:
        yield
    finally:
        switch.fill_uninitialized_memory = was


@contextmanager
def _in_memory(note: _Note) -> Iterator[None]:
    """Meanwhile, the tensor of `note` has memory, whatever is in it."""
    storage = note.tensor.untyped_storage()
    storage.resize_(note.num_bytes)
    try:
        yield
    finally:
        storage.resize_(0)


def _key(tensor: Tensor) -> int:
    """The same for all tensors of one memory; notes keep theirs, so that it is never given to another."""
    return int(tensor.untyped_storage()._cdata)


def _is_same_view(one: Tensor, other: Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one.storage_offset() == other.storage_offset()
    )


def _is_in_other_order(tensor: Tensor, kwargs: Any) -> bool:
    """Whether a copy of `tensor` with those options differs by nothing but its order in memory."""
    same: dict[str, Any] = {"dtype": tensor.dtype, "device": tensor.device, "layout": tensor.layout}
    options = {name: value for name, value in kwargs.items() if value is not None and same.get(name) != value}
    return options.keys() == {"memory_format"}


def _fills(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether `func` changes its first argument in place, by numbers, copying or the one random generator."""
    others = tree_leaves((args[1:], kwargs))
    if any(isinstance(leaf, torch.Generator) for leaf in others) or not func._schema.name.endswith("_"):
        return False
    return func is aten.copy_.default or not any(isinstance(leaf, Tensor) for leaf in others)


def _watch(sources: Iterable[Any]) -> Callable[[], bool]:
    """Tells later whether those tensors are still what they are now."""
    versions = [(source, source._version) for source in sources if isinstance(source, Tensor)]
    return lambda: all(source._version == version for source, version in versions)


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
    if parallel.device_batch_size and objective.is_of_batch:
        raise ConfigError(
            f"the objective `{config.objective.name}` compares the images of a batch: train without "
            "`parallel.device_batch_size`, on more processes or with a smaller `batch_size`"
        )
    if isinstance(objective, LeJEPA) and not ranks.is_alone:
        objective.divide()
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
        raise ConfigError(
            f"`{asked[0]}` works block by block, and the blocks of {objective.backbone.preset} are not known"
        )
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
    frozen = getattr(objective, "freezes_batchnorm", False)
    for name, module in list(objective.named_modules()):
        if isinstance(module, _BatchNorm) and not (frozen or getattr(module, "is_divided", False)):
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
    register_fsdp_forward_method(objective, "features")
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
