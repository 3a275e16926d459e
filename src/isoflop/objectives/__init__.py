"""Training objectives: labels, masking, views, distillation, detection, segmentation."""

from isoflop import needs_training  # noqa: F401
from isoflop.objectives.build import make_objective, objective_cost
from isoflop.objectives.distilled import Distilled, load_teacher
from isoflop.objectives.lejepa import LeJEPA
from isoflop.objectives.masked import Masked, Reconstruction, load_huggingface_mae
from isoflop.objectives.supervised import Objective, Supervised, Uniforms

__all__ = [
    "Distilled",
    "LeJEPA",
    "Masked",
    "Objective",
    "Reconstruction",
    "Supervised",
    "Uniforms",
    "load_huggingface_mae",
    "load_teacher",
    "make_objective",
    "objective_cost",
]
