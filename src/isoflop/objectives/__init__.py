"""What a backbone learns from a batch."""

from isoflop.objectives.build import make_objective, objective_cost
from isoflop.objectives.distilled import Distilled
from isoflop.objectives.huggingface import load_huggingface_mae
from isoflop.objectives.masked import Masked, Reconstruction
from isoflop.objectives.objective import Objective, Uniforms
from isoflop.objectives.supervised import Supervised
from isoflop.objectives.teacher import load_teacher

__all__ = [
    "Distilled",
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
