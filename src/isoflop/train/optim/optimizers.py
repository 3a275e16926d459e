"""Our optimizers: Adafactor, LAMB, LARS, Muon with AdamW. They work on sharded weights (DTensors of FSDP2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor

from isoflop.errors import CheckpointError
from isoflop.train.sharded import is_sharded, whole


class EachParameter(torch.optim.Optimizer):
    """An optimizer that updates each parameter by itself, from its gradient and its own state."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Changes `parameter`, which has a gradient, as its `group` says."""
        raise NotImplementedError


def complete(tensor: Tensor) -> Tensor:
    """`tensor` with sums that are still spread over the ranks added up; an ordinary tensor as it is."""
    if not is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import Replicate  # a second to import

    parts = cast(Any, tensor)
    placements = [Replicate() if placement.is_partial() else placement for placement in parts.placements]
    return cast(Tensor, parts.redistribute(placements=placements))


def laid_out_like(tensor: Tensor, example: Tensor) -> Tensor:
    """`tensor`, whole on every rank as a checkpoint gives it, divided among the ranks as `example` is."""
    if is_sharded(tensor) or not is_sharded(example):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    mesh, placements = cast(Any, example).device_mesh, cast(Any, example).placements
    whole = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return whole.redistribute(placements=placements)


def norm(tensor: Tensor) -> Tensor:
    """The norm of the whole tensor, a scalar that every rank knows."""
    return complete(torch.linalg.vector_norm(tensor))


# Adafactor as the ViT-G paper changed it: the memory of half a copy of the weights, with the results of Adam.


SMALLEST_FACTORED = 32  # a matrix with a shorter side keeps its second moment whole
EPS = 1e-30  # added to squared gradients
MOMENTUM = torch.bfloat16  # what the first moment is kept in
DECAY_POWER = 0.8  # β2 of step t is 1 - t^-0.8 (arXiv 1804.04235, section 7.2)


class Adafactor(EachParameter):
    """Adafactor of arXiv 2106.04560, section 3.4: state of 0.5 × the memory of float32 weights.

    The second moment of a matrix is the outer product of its means over rows and columns (of a convolution, over its
    two longest axes; of the projections of attention, head by head, as in the authors' code: groups say so by
    `factored_as`); the first is kept in bfloat16 and applied in float32. β2 grows as 1 - t^-0.8, up to `beta2_cap`.
    Updates are neither clipped nor scaled by the size of the weights. Weight decay is times the learning rate.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.9,
        beta2_cap: float = 0.999,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "beta2_cap": beta2_cap, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "factored_as": None})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for slots in self.state.values():  # loading gives every slot the type of its weight
            slots["momentum"] = slots["momentum"].to(MOMENTUM)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        slots = self.state[parameter]
        gradient = parameter.grad if parameter.grad.dtype == torch.float64 else parameter.grad.float()
        if "step" not in slots:
            slots["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
            slots["momentum"] = torch.zeros_like(parameter, dtype=MOMENTUM)
        slots["step"] += 1
        beta2 = min(group["beta2_cap"], 1.0 - slots["step"].item() ** -DECAY_POWER)
        shape = group["factored_as"]
        if shape is None:
            scaled = _divided_by_rms(gradient, slots, beta2)
        else:  # a head may lie on several ranks
            scaled = _divided_by_rms(whole(gradient).reshape(shape), slots, beta2)
            scaled = laid_out_like(scaled.reshape(gradient.shape), gradient)
        moment = scaled.lerp_(slots["momentum"].to(scaled.dtype), group["momentum"])
        slots["momentum"].copy_(moment)
        parameter.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(moment.to(parameter.dtype), alpha=-group["lr"])


def factored_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The two longest axes of a shape, the shorter first; None if one is below 32, so that nothing is factored."""
    if len(shape) < 2:
        return None
    *_, short, long = sorted(range(len(shape)), key=lambda axis: shape[axis])
    return (short, long) if shape[short] >= SMALLEST_FACTORED else None


def _divided_by_rms(gradient: Tensor, slots: dict[str, Tensor], beta2: float) -> Tensor:
    """The gradient over the root of its second moment, which is brought up to date in `slots`."""
    square = gradient.square().add_(EPS)
    axes = factored_axes(gradient.shape)
    if axes is None:
        return gradient * _averaged(slots, "second", square, beta2).rsqrt()
    short, long = axes
    rows = _averaged(slots, "second_rows", square.mean(dim=long, keepdim=True), beta2)
    columns = _averaged(slots, "second_columns", square.mean(dim=short, keepdim=True), beta2)
    return gradient * (rows / complete(rows.mean(dim=short, keepdim=True))).rsqrt() * columns.rsqrt()


def _averaged(slots: dict[str, Tensor], name: str, value: Tensor, beta: float) -> Tensor:
    value = complete(value)
    if name not in slots:
        slots[name] = value.clone()  # β2 is 0 at the first step
    elif slots[name].shape != value.shape:
        raise CheckpointError(
            f"the checkpoint has second moments of shape {tuple(slots[name].shape)} where this version of isoflop has "
            f"{tuple(value.shape)}: it factors attention head by head; start a new run"
        )
    else:
        slots[name] = laid_out_like(slots[name], value).lerp_(value, 1.0 - beta)
    return slots[name]


# LAMB: Adam whose step is as long as the weights it changes allow.


class Lamb(EachParameter):
    """LAMB (arXiv 1904.00962, algorithm 2): Adam's direction, and each matrix moves by lr × its own norm.

    Groups with `is_vector` take Adam's step as it is, as in the authors' code (biases and norms are left out of the
    adaptation). Differs from timm's in that the step is part of each parameter's state, so that a resumed run goes on.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "is_vector": False}
        )

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        slots, gradient = self.state[parameter], parameter.grad
        beta1, beta2 = group["betas"]
        if "step" not in slots:
            slots["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
            slots["exp_avg"] = torch.zeros_like(parameter)
            slots["exp_avg_sq"] = torch.zeros_like(parameter)
        slots["step"] += 1
        step = slots["step"].item()
        first = slots["exp_avg"].lerp_(gradient, 1 - beta1)
        second = slots["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        update = (first / (1 - beta1**step)).div_((second / (1 - beta2**step)).sqrt_().add_(group["eps"]))
        update.add_(parameter, alpha=group["weight_decay"])
        if not group["is_vector"]:
            weight, length = norm(parameter), norm(update)
            is_both = (weight > 0) & (length > 0)
            update.mul_(torch.where(is_both, weight / length, torch.ones_like(weight)))
        parameter.add_(update, alpha=-group["lr"])


# LARS: SGD whose step is a fixed share of the weights that it changes.


TRUST = 1e-3  # the share (arXiv 1708.03888, section 4)


class Lars(EachParameter):
    """LARS (arXiv 1708.03888) as the masked autoencoders have it (mae, util/lars.py): u = g + wd·w of a kernel is made
    as long as 0.001·‖w‖, where w and u are not 0, and goes into the momentum.

    Groups with `is_vector` are taken as they are, without weight decay if they have none.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1.0, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "is_vector": False}
        super().__init__(params, defaults)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        update = parameter.grad.add(parameter, alpha=group["weight_decay"])
        if not group["is_vector"]:
            weight, length = norm(parameter), norm(update)
            is_both = (weight > 0) & (length > 0)
            update.mul_(torch.where(is_both, TRUST * weight / length, torch.ones_like(weight)))
        if group["momentum"]:
            slots = self.state[parameter]
            if "momentum_buffer" in slots:
                update = slots["momentum_buffer"].mul_(group["momentum"]).add_(update)
            else:
                slots["momentum_buffer"] = update
        parameter.add_(update, alpha=-group["lr"])


# Muon for the hidden matrices and AdamW for the rest, as one optimizer.


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` for groups with `is_hidden_matrix`, `torch.optim.AdamW` (fused) for the others.

    Muon's updates get the root mean square of AdamW's (times 0.2·√max(rows, columns), arXiv 2502.16982, eq. 4), so that
    one learning rate and one weight decay serve both. Convolutions are left to AdamW.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        matrices = [group for group in params if group["is_hidden_matrix"]]
        rest = [group for group in params if not group["is_hidden_matrix"]]
        muon = {"momentum": momentum, "weight_decay": weight_decay, "adjust_lr_fn": "match_rms_adamw"}
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            self._parts.append(torch.optim.Muon(matrices, lr=lr, **muon))  # type: ignore[arg-type]
        if rest:
            self._parts.append(torch.optim.AdamW(rest, lr=lr, betas=betas, weight_decay=weight_decay, fused=True))
        super().__init__([group for part in self._parts for group in part.param_groups], {"lr": lr})
        self._share()

    def _share(self) -> None:
        """Gives the two parts the groups and the state of the whole."""
        groups = iter(self.param_groups)
        for part in self._parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        for part in self._parts:
            part.step()
