"""Any timm model behind our interface, by the name `timm:NAME`."""

from __future__ import annotations

import difflib
from typing import Any

import timm
from timm.models import group_parameters
from torch import Tensor, nn

from isoflop.errors import ModelError
from isoflop.models.backbone import Backbone


class TimmBackbone(Backbone):
    """timm's model of that name; `options` are timm's own (`drop_path_rate=0.1`, `pretrained=True`).

    Raises ModelError for a name or an option that timm does not have.
    """

    def __init__(
        self, name: str, *, num_classes: int, image_size: tuple[int, int], in_channels: int, **options: Any
    ) -> None:
        super().__init__()
        for theirs, ours in (("in_chans", "in_channels"), ("img_size", "image_size")):
            if theirs in options:
                raise ModelError(f"timm:{name}: `{theirs}` is what `{ours}` says, and not an option besides")
        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=1)
            raise ModelError(f"timm has no model {name!r}" + (f" - did you mean `timm:{near[0]}`?" if near else ""))
        self.model = _create(name, image_size, {"num_classes": num_classes, "in_chans": in_channels, **options})
        self.num_classes, self.image_size, self.in_channels = num_classes, image_size, in_channels
        self.num_features = self.model.head_hidden_size
        # Several of timm's maps may have one stride: the last of each is the finished one.
        stages = {info["reduction"]: (index, info["num_chs"]) for index, info in enumerate(self.model.feature_info)}
        self.feature_strides = tuple(stages)
        self.feature_widths = tuple(width for _, width in stages.values())
        self.feature_indices = [index for index, _ in stages.values()]
        self.head = nn.Identity()  # the classifier is timm's own, inside `model`

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits

    def features(self, images: Tensor) -> Tensor:
        pooled: Tensor = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        return pooled

    def tokens(self, images: Tensor) -> Tensor:
        x: Tensor = self.model.forward_features(images)
        if x.ndim == 3:
            return x
        last = self.model.feature_info[-1]["num_chs"]
        return x.flatten(2).transpose(1, 2) if x.shape[1] == last else x.flatten(1, 2)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        if not hasattr(self.model, "forward_intermediates"):
            raise ModelError(f"{self.preset} does not hand out its feature maps")
        maps = self.model.forward_intermediates(
            images, indices=self.feature_indices, intermediates_only=True, output_fmt="NCHW"
        )
        return list(maps)

    def classifier(self) -> tuple[str, ...]:
        own = getattr(self.model, "pretrained_cfg", {}).get("classifier") or ()
        return tuple(f"model.{name}" for name in ((own,) if isinstance(own, str) else own))

    def no_weight_decay(self) -> set[str]:
        spared = self.model.no_weight_decay() if hasattr(self.model, "no_weight_decay") else set()
        return {f"model.{name}" for name in spared if name in dict(self.model.named_parameters())}

    def layer_ids(self) -> dict[str, int]:
        ids = group_parameters(self.model, self.model.group_matcher(coarse=False), reverse=True)
        return {f"model.{name}": int(layer) for name, layer in ids.items()}


def _create(name: str, image_size: tuple[int, int], options: dict[str, Any]) -> Any:
    # Only models with positions or windows are built for a size; the others refuse to be told one.
    try:
        try:
            return timm.create_model(name, img_size=image_size, **options)
        except TypeError:
            return timm.create_model(name, **options)
    except OSError as error:  # of the hub, where weights are asked for
        raise ModelError(f"timm:{name}: no weights of timm's: {_line(error)}") from error
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ModelError(f"timm cannot build {name} with these options: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
