"""The whole state of a run as named tensors and JSON, and back."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.errors import CheckpointError
from isoflop.train.checkpoints import Checkpoint


@dataclass
class Progress:
    """How far a run has come: all that the next step needs beside weights and optimizer state.

    The data need nothing more than `step`: which samples come next is a pure function of it.
    """

    step: int = 0  # steps consumed
    since: int = 0  # the step of the last journal row
    loss_sum: float = 0.0  # of the steps after it
    samples: str = ""  # the chain over all samples consumed (runs/journal.py)
    seconds: float = 0.0  # spent in training over all attempts; the only field that two equal runs may differ in
    missed: int = 0  # steps since the last journal row whose loss was not finite
    nonfinite: int = 0  # steps without an update, since loss or gradient were not finite
    skipped: list[list[int]] = field(default_factory=list)  # [step, steps of samples passed over before it], in order
    recent: list[float] = field(default_factory=list)  # losses that a spike is told by
    best: list[float] = field(default_factory=list)  # the lowest held-out loss and its step

    @property
    def data_step(self) -> int:
        """The step of the sample order that comes next."""
        return self.step + sum(count for _, count in self.skipped)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Progress:
        """What `to_dict` made; what a later version has added is ignored. CheckpointError where it is something
        else."""
        known = {name: state[name] for name in cls.__dataclass_fields__ if name in state}
        default = cls()
        for name, value in known.items():
            kind = type(getattr(default, name))
            if isinstance(value, bool) or not isinstance(value, (kind, int) if kind is float else kind):
                raise CheckpointError(f"state.json: not readable: `{name}` is {value!r}")
        return cls(**known)


def check_progress(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError where the state of `checkpoint` is not that of a run."""
    try:
        Progress.from_dict(checkpoint.state)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.path}/{error}") from error


def pack(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors of `model` (as `model.NAME`) and `optimizer` (as `optimizer.PARAMETER.SLOT`).

    Names and not numbers, since the order of an optimizer's groups may depend on how the model is sharded.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        slots = optimizer.state.get(parameter, {})
        tensors |= {f"optimizer.{name}.{slot}": value for slot, value in slots.items() if isinstance(value, Tensor)}
    return tensors


def unpack(tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Puts packed tensors back; CheckpointError names what is missing or does not fit."""
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint does not fit the model: {' '.join(str(error).split())}") from error
    if optimizer is None:
        return
    parameters = dict(model.named_parameters())
    numbers = {p: number for number, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    slots: dict[int, dict[str, Tensor]] = {}
    for packed, tensor in tensors.items():
        if packed.startswith("optimizer."):
            name, _, slot = packed.removeprefix("optimizer.").rpartition(".")
            if parameters.get(name) not in numbers:
                raise CheckpointError(f"the checkpoint does not fit the optimizer: it has a state of {name}")
            parameter = parameters[name]
            if tensor.shape == parameter.shape:
                # Fused updates walk weight and state side by side in memory: the state must lie as the weight does.
                tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
            slots.setdefault(numbers[parameter], {})[slot] = tensor
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})


def step_seed(seed: int, step: int) -> int:
    """The seed of the random layers (stochastic depth, dropout) at `step`, whatever happened before."""
    return int.from_bytes(hashlib.blake2b(f"layers {seed} {step}".encode(), digest_size=8).digest(), "little") >> 1
