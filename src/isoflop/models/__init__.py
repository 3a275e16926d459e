"""Backbones: MetaFormers (ViT and its relatives), NFNet, BiT and ResNet-9, and their cost."""

from isoflop import needs_training  # noqa: F401
from isoflop.models.backbone import Backbone
from isoflop.models.cost import Cost, cost
from isoflop.models.create import create_model
from isoflop.models.presets import family_ladder, ladder_of

__all__ = ["Backbone", "Cost", "cost", "create_model", "family_ladder", "ladder_of"]
