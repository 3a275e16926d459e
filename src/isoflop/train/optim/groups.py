"""Which parameters are treated how: weight decay, learning rate, and what is left frozen."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import nn

from isoflop.config import GroupConfig, OptimizerConfig
from isoflop.errors import ConfigError
from isoflop.models import Backbone
from isoflop.models.backbone import CLASSIFIER
from isoflop.models.mup import width_scales
from isoflop.models.parameters import VECTORS, parameter_kinds, shapes_by_head
from isoflop.train.shards import is_sharded

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
        raise ConfigError("`optim.groups`: every parameter is frozen, so that there is nothing to train")
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
