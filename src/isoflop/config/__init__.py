"""Typed configuration: what a run and a study are, read from TOML with every problem told at once."""

from .fields import Table
from .identity import canonical_json, config_hash
from .load import Loaded, load, parse
from .run import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
)
from .study import FamilyConfig, LawsConfig, ReportConfig, StudyConfig, StudyTable, TransferConfig
from .tree import dotted, flatten, literal

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "EvaluationConfig",
    "FamilyConfig",
    "LawsConfig",
    "Loaded",
    "ModelConfig",
    "OptimConfig",
    "OptimizerConfig",
    "ReportConfig",
    "RunConfig",
    "ScheduleConfig",
    "StudyConfig",
    "StudyTable",
    "Table",
    "TransferConfig",
    "canonical_json",
    "config_hash",
    "dotted",
    "flatten",
    "literal",
    "load",
    "parse",
]
