"""Backbones: one grammar for the Transformer branch, normalizer-free ResNets beside it, and what each costs."""

from isoflop.models.backbone import Backbone
from isoflop.models.cost import Cost, cost
from isoflop.models.create import create_model
from isoflop.models.presets import family_ladder, ladder_of

__all__ = ["Backbone", "Cost", "cost", "create_model", "family_ladder", "ladder_of"]
