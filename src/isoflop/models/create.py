"""Creation of a backbone by name."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from isoflop.config import REVISION
from isoflop.config.run import is_code
from isoflop.errors import ModelError, did_you_mean
from isoflop.models.backbone import Backbone
from isoflop.models.bit import BiT
from isoflop.models.metaformer import OF_EACH_STAGE, MetaFormer, MetaFormerConfig
from isoflop.models.nfnet import NFNet, NFNetConfig
from isoflop.models.presets import PRESETS, Config, as_of
from isoflop.models.resnet9 import ResNet9, ResNet9Config
from isoflop.models.user_code import load_code, told

# Integer options that may also be 0: all others count or measure something that has to be there.
MAY_BE_ZERO = frozenset({"stem_padding", "down_padding", "prefix_tokens", "position_stages"})
OTHERS = "; `isoflop models` lists ours, and any of timm is `timm:NAME`, your own `FILE.py:NAME`"
LARGEST_SIDE = 2**16  # pixels
LARGEST_NUMBER = 1e30  # what float32 can hold, and a square of its root


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] = 224,
    in_channels: int = 3,
    seed: int | None = None,
    **overrides: Any,
) -> Backbone:
    """The backbone of that name, freshly initialised; `timm:NAME` is any model of timm, `FILE.py:NAME` one of your own.

    `image_size` is pixels, one number for a square or (height, width). `overrides` replace fields of the preset's
    configuration (`drop_path=0.1`, `depths=(2, 2, 6, 2)`). With `seed`, the weights depend on it alone and the global
    random state is left as it was; without, they come from the global state.

    Raises ModelError for an unknown name or override (with a suggestion), or values that cannot be built.
    """
    sides = tuple(image_size) if isinstance(image_size, tuple | list) else (image_size, image_size)
    if len(sides) != 2 or not all(_is_count(side) for side in sides):
        raise ModelError(f"`image_size` is a number of pixels or (height, width), not {image_size!r}")
    size = (sides[0], sides[1])
    for what, value in (("num_classes", num_classes), ("in_channels", in_channels), ("image_size", min(size))):
        if not _is_count(value):
            raise ModelError(f"`{what}` is a whole number, not {value!r}")
        if value < 1:
            raise ModelError(f"`{what}` must be at least 1, not {value}")
    if max(size) > LARGEST_SIDE:
        raise ModelError(f"`image_size` must be at most {LARGEST_SIDE}, not {max(size)}")
    if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**63):
        raise ModelError(f"`seed` is a whole number from 0 up to 2^63, not {seed!r}")
    if name.startswith("timm:"):
        # timm takes a second to import, which nobody should pay who does not ask for it.
        from isoflop.models.timm_adapter import TimmBackbone

        shape: Any = {"num_classes": num_classes, "image_size": size, "in_channels": in_channels}
        with _seeded(seed):
            model: Backbone = TimmBackbone(name.removeprefix("timm:"), **shape, **overrides)
        family = "timm"
    elif is_code(name):
        overrides.pop("revision", None)
        with _seeded(seed):
            shape = {"num_classes": num_classes, "image_size": size, "in_channels": in_channels}
            model = _user_model(name, {**shape, **overrides})
        family = name.rpartition(":")[2]
    else:
        family, config = resolve(name, **overrides)
        with _seeded(seed):
            model = _build(config, num_classes, size, in_channels)
    model.family, model.preset, model.revision = family, name, overrides.get("revision", REVISION)
    return model


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _build(config: Config, num_classes: int, image_size: tuple[int, int], in_channels: int) -> Backbone:
    if isinstance(config, MetaFormerConfig):
        return MetaFormer(config, num_classes=num_classes, image_size=image_size, in_channels=in_channels)
    if isinstance(config, NFNetConfig):
        return NFNet(config, num_classes=num_classes, image_size=image_size, in_channels=in_channels)
    if isinstance(config, ResNet9Config):
        return ResNet9(config, num_classes=num_classes, image_size=image_size, in_channels=in_channels)
    return BiT(config, num_classes=num_classes, image_size=image_size, in_channels=in_channels)


def _user_model(spec: str, arguments: dict[str, Any]) -> Backbone:
    """The backbone that the code `spec` makes of `arguments`. ModelError where it makes none, or one that does not give
    logits (batch, num_classes)."""
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    _probe(spec, load_code(spec), tuple(arguments.items()))
    return _made(spec, load_code(spec), arguments)


@functools.lru_cache(maxsize=256)
def _probe(spec: str, make: Callable[..., Any], arguments: tuple[tuple[str, Any], ...]) -> None:
    """Builds and runs the model once on the meta device, where it takes no memory and no random numbers."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = _made(spec, make, dict(arguments)).eval()
        try:
            with torch.no_grad():
                logits = model(torch.empty(2, model.in_channels, *model.image_size))
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"{spec}: fails on images: {told(error, spec)}") from error
    if tuple(getattr(logits, "shape", ())) != (2, model.num_classes):
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ModelError(f"{spec}: logits have the shape (2, {model.num_classes}) for 2 images, not {got}")


def _made(spec: str, make: Callable[..., Any], arguments: dict[str, Any]) -> Backbone:
    try:
        inspect.signature(make).bind(**arguments)
    except TypeError as error:
        raise ModelError(f"{spec}: is called with {', '.join(arguments)}, but {error}") from error
    try:
        model = make(**arguments)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{spec}: cannot be built: {told(error, spec)}") from error
    if not isinstance(model, Backbone):
        raise ModelError(f"{spec}: gives {type(model).__name__}, not an isoflop.models.Backbone")
    for name in ("num_classes", "image_size", "in_channels"):
        if not hasattr(model, name):
            setattr(model, name, arguments[name])
    for name in ("num_features", "head"):
        if not hasattr(model, name):
            raise ModelError(f"{spec}: lacks `{name}`, which every backbone has (docs/models.md)")
    return model


def resolve(name: str, revision: int = REVISION, **overrides: Any) -> tuple[str, Config]:
    """The family and the configuration that a name and its overrides stand for, now or in an earlier `revision`."""
    if name not in PRESETS:
        raise ModelError(f"there is no model {name!r}{did_you_mean(name, PRESETS) or OTHERS}")
    if revision not in range(1, REVISION + 1):
        raise ModelError(f"{name}: `revision` is a number from 1 to {REVISION}, not {revision!r}")
    family, config = PRESETS[name]
    overrides = as_of(revision, name, overrides)
    fields = [field.name for field in dataclasses.fields(config)]
    for key in overrides:
        if key not in fields:
            there_is = f"; it has {', '.join(fields)}"
            raise ModelError(f"{name} has no option `{key}`{did_you_mean(key, fields) or there_is}", option=key)
    if not overrides:
        return family, config
    changed = {**{field: getattr(config, field) for field in fields}, **overrides}
    if isinstance(config, MetaFormerConfig) and isinstance(changed["depths"], list | tuple):
        changed |= {key: (value,) * len(changed["depths"]) for key, value in overrides.items()
                    if key in OF_EACH_STAGE and isinstance(value, str | int)}  # fmt: skip
    try:
        new = _reader(type(config)).validate_python(changed)  # type: ignore[arg-type]  # mypy takes no class for hashable
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ModelError(
            f"{name}: `{place}` = {first['input']!r}: {first['msg']}", option=str(first["loc"][0])
        ) from error
    for key in overrides:
        try:
            _check_value(f"{name}: `{key}`", key, getattr(new, key))
        except ModelError as error:
            error.option = key
            raise
    return family, new


@functools.cache
def _reader(kind: type[Config]) -> TypeAdapter[Config]:
    return TypeAdapter(kind)


def _check_value(place: str, key: str, value: Any) -> None:
    """Refuse sizes of nothing and impossible rates, whatever the architecture."""
    if key in ("drop_path", "dropout"):
        if not 0 <= value < 1:
            raise ModelError(f"{place} is a rate from 0 up to, not including, 1; not {value}")
        return
    least = 0 if key in MAY_BE_ZERO else 1
    entries = value if isinstance(value, tuple) else (value,)
    if any(isinstance(entry, int) and not isinstance(entry, bool) and entry < least for entry in entries):
        raise ModelError(f"{place} must be at least {least}, not {value}")
    if any(isinstance(entry, float) and not abs(entry) < LARGEST_NUMBER for entry in entries):
        raise ModelError(f"{place} must be finite, not {value}")
    if key.endswith("eps") and value is not None and value < 0:
        raise ModelError(f"{place} must be at least 0, not {value}")


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
