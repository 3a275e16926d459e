"""The optimizer and the learning-rate schedule (warmup, cooldown) of a configuration."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import nn

from isoflop.config import GroupConfig, OptimConfig, OptimizerConfig, ScheduleConfig
from isoflop.errors import ConfigError
from isoflop.models import Backbone
from isoflop.models.backbone import CLASSIFIER
from isoflop.models.mup import width_scales
from isoflop.models.parameters import VECTORS, parameter_kinds, shapes_by_head
from isoflop.train.optim.optimizers import Adafactor, Lamb, Lars, MuonAdamW, factored_axes
from isoflop.train.sharded import is_sharded

# Which parameters are treated how: weight decay, learning rate, and what is left frozen.


WRAPPERS = re.compile(r"^backbone\.|_orig_mod\.|_checkpoint_wrapped_module\.|^module\.")
EVERYTHING = GroupConfig(parameters=("*",))


def plain_name(name: str) -> str:
    """The name that a parameter has in its backbone, without what objectives and engines put in front of it."""
    return WRAPPERS.sub("", name)


def of_classifier(model: nn.Module) -> Callable[[str], bool]:
    """Whether a parameter of that plain name belongs to the classifier of `model`, a backbone or what has one."""
    backbone = getattr(model, "backbone", model)
    modules = backbone.classifier() if isinstance(backbone, Backbone) else CLASSIFIER
    return lambda name: name.startswith(tuple(f"{module}." for module in modules))


def freeze(model: nn.Module, config: OptimizerConfig) -> None:
    """Freezes the parameters of `model` that the rules of `config` say; ConfigError as `rules_by_name`."""
    names = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    for name, rule in rules_by_name(list(names), config.groups).items():
        if rule.freeze:
            names[name].requires_grad_(False)


def rules_by_name(names: list[str], groups: Mapping[str, GroupConfig]) -> dict[str, GroupConfig]:
    """The one rule of each parameter. ConfigError lists the parameters that no rule names, or more than one."""
    if not groups:
        return dict.fromkeys(names, EVERYTHING)
    found: dict[str, list[str]] = {
        name: [key for key, rule in groups.items() if any(fnmatchcase(name, glob) for glob in rule.parameters)]
        for name in names
    }
    missing = [name for name, keys in found.items() if not keys]
    if missing:
        raise ConfigError(f"`optim.groups`: no group names {_listed(missing)}; add a group for the rest")
    twice = [f"{name} ({' and '.join(keys)})" for name, keys in found.items() if len(keys) > 1]
    if twice:
        raise ConfigError(f"`optim.groups`: more than one group names {_listed(twice)}")
    used = {key for keys in found.values() for key in keys}
    for key in groups:
        if key not in used:
            raise ConfigError(f"`optim.groups.{key}`: no parameter is named {' or '.join(groups[key].parameters)}")
    return {name: groups[keys[0]] for name, keys in found.items()}


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """The trainable parameters of `model` in groups for a `torch.optim.Optimizer`, each parameter in exactly one.

    Every group has `weight_decay` (0 but for the kinds that `config.weight_decay_on` names), `lr_scale` (times the
    learning rate, see `set_rate`), `is_vector` (biases, gains and scales), `is_hidden_matrix` (a kernel of two axes, no
    classifier) and `factored_as` (the shape in which Adafactor factors these). ConfigError as `rules_by_name`.
    """
    parameters = {plain_name(name): p for name, p in model.named_parameters() if p.requires_grad}
    kinds = {plain_name(name): kind for name, kind in parameter_kinds(model).items()}
    shapes = {plain_name(name): shape for name, shape in shapes_by_head(model).items()}
    rules = rules_by_name([plain_name(name) for name, _ in model.named_parameters()], config.groups)
    scales = _depth_scales(model, config.layer_decay)
    is_head = of_classifier(model)
    widths = width_scales(cast(Backbone, getattr(model, "backbone", model)), config.mup) if config.mup else {}
    groups: dict[tuple[object, ...], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        rule = rules[name]
        is_kernel = kinds[name] == "kernel"
        decay = config.weight_decay if rule.weight_decay is None else rule.weight_decay
        if rule.weight_decay is None and config.head_weight_decay is not None and is_head(name):
            decay = config.head_weight_decay
        width = widths[name].fan_in if name in widths else 1.0
        treatment = {
            # Decay is taken off times the rate: what it takes off in a step is to be the same at every width.
            "weight_decay": decay * width if kinds[name] in config.weight_decay_on else 0.0,
            "lr_scale": rule.learning_rate_scale * scales.get(name, 1.0) / width,
            "is_vector": kinds[name] in VECTORS,
            "is_hidden_matrix": is_kernel and parameter.ndim == 2 and not is_head(name),
            "factored_as": shapes.get(name) if config.name == "adafactor" else None,
        }
        # Fused updates take tensors of one kind: what FSDP2 divides, and what every rank keeps whole.
        key = (*treatment.values(), is_sharded(parameter))
        groups.setdefault(key, {"params": [], **treatment})["params"].append(parameter)
    if not groups:
        raise ConfigError("`optim.groups`: every parameter is frozen, so there is nothing to train")
    return list(groups.values())


def _depth_scales(model: nn.Module, decay: float | None) -> dict[str, float]:
    """decay^(L + 1 - layer) by plain name (arXiv 2106.08254, appendix): 1 behind the last block."""
    if decay is None:
        return {}
    layers = cast(Backbone, getattr(model, "backbone", model)).layer_ids()
    last = max(layers.values())
    return {name: decay ** (last - layer) for name, layer in layers.items()}


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:12])
    return shown if len(names) <= 12 else f"{shown} and {len(names) - 12} more"


Groups = list[dict[str, Any]]


def _adamw(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def _sgd(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    nesterov = config.nesterov and config.momentum > 0
    fused = not any(is_sharded(p) for group in groups for p in group["params"])  # which PyTorch has not for DTensors
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov, fused=fused)


def _adafactor(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    momentum, cap = config.betas
    return Adafactor(groups, lr=config.learning_rate, momentum=momentum, beta2_cap=cap)


def _lamb(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    return Lamb(groups, lr=config.learning_rate, betas=config.betas)


def _lars(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    return Lars(groups, lr=config.learning_rate, momentum=config.momentum)


def _muon(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    return MuonAdamW(groups, lr=config.learning_rate, momentum=config.momentum, betas=config.betas)


OPTIMIZERS: dict[str, Callable[[Groups, OptimConfig], torch.optim.Optimizer]] = {
    "adamw": _adamw,  # arXiv 1711.05101
    "sgd": _sgd,
    "adafactor": _adafactor,
    "lamb": _lamb,
    "lars": _lars,
    "muon": _muon,
}


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of `config` over the trainable parameters of `model`; ConfigError as `parameter_groups`."""
    return OPTIMIZERS[config.name](parameter_groups(model, config), config)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of this step, in each group times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


# What an optimizer remembers, in bytes, without building it.


FLOAT32, BFLOAT16 = 4, 2


def state_bytes(model: nn.Module, config: OptimizerConfig) -> int:
    """Bytes of optimizer state for the trainable parameters of `model`, which may be on the meta device.

    Step counters, of a few bytes a parameter, are left out; a running average of the weights is counted.
    """
    total = 0
    for group in parameter_groups(model, config):
        for parameter in group["params"]:
            count = parameter.numel()
            if config.name == "adafactor":
                total += BFLOAT16 * count + FLOAT32 * _second_moment(group["factored_as"] or parameter.shape)
            else:
                total += FLOAT32 * count * _copies(config, group["is_hidden_matrix"])
            if config.average is not None:
                total += FLOAT32 * count
    return total


def _copies(config: OptimizerConfig, is_hidden_matrix: bool) -> int:
    if config.name in ("sgd", "lars"):
        return int(config.momentum > 0)
    return 1 if config.name == "muon" and is_hidden_matrix else 2


def _second_moment(shape: tuple[int, ...]) -> int:
    count, axes = math.prod(shape), factored_axes(shape)
    return count if axes is None else sum(count // shape[axis] for axis in axes)


# Learning-rate schedules: the factor on the peak rate at each step, as pure functions.
#
# A *trunk* schedule (constant, reciprocal √) knows nothing of its end until the cooldown begins, so runs of different
# length share every step before it, bit for bit: that is what lets budgets branch off one trunk. The others have none.


TRUNK_SCHEDULES = frozenset({"constant", "rsqrt"})
_POLY = 0.9


def cooldown_steps(schedule: ScheduleConfig, steps: int) -> int:
    """The number of final steps over which a trunk schedule falls linearly to zero; 0 for those that have none."""
    return round(schedule.cooldown * steps) if schedule.name in TRUNK_SCHEDULES else 0


def trunk_steps(schedule: ScheduleConfig, steps: int) -> int:
    """The number of first steps that do not depend on `steps`: what runs of different length share."""
    return steps - cooldown_steps(schedule, steps) if schedule.name in TRUNK_SCHEDULES else 0


def rate_factor(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """The factor on the peak learning rate at `step` of 0 … `steps` − 1; in (0, 1].

    Reciprocal √ and cooldown as in arXiv 2106.04560: 1 / √(1 + (step − warmup) / timescale), times
    min(1, step / warmup), times min(1, (total − step) / cooldown). Steps count from 1 in the warm-up, so that the
    first update is not lost. Cosine: half a period from the end of the warm-up to the last step (arXiv 1608.03983), or
    to the floor and the steps that stay there. Steps: a tenth after each of `drops` (arXiv 1912.11370). Poly:
    (1 − step / total)^0.9 (arXiv 1606.00915); with the power 1, that is a constant rate that cools down all along.
    """
    factor = 1.0
    if step + 1 < schedule.warmup:
        factor = schedule.warmup_from + (1.0 - schedule.warmup_from) * (step + 1) / schedule.warmup
    past_warmup = max(0, step - schedule.warmup)
    if schedule.name == "cosine":
        falling = max(1, steps - schedule.warmup - round(schedule.hold * steps))
        wave = 0.5 * (1.0 + math.cos(math.pi * min(1.0, past_warmup / falling)))
        return factor * (schedule.floor + (1.0 - schedule.floor) * wave)
    if schedule.name == "steps":
        return factor * 0.1 ** sum(step >= drop * steps for drop in schedule.drops)
    if schedule.name == "poly":
        return float(factor * (1.0 - step / steps) ** _POLY)
    if schedule.name == "rsqrt":
        factor /= math.sqrt(1.0 + past_warmup / schedule.timescale)
    cooldown = cooldown_steps(schedule, steps)
    return factor * min(1.0, (steps - step) / cooldown) if cooldown else factor
