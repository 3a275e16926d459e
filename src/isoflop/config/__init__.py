"""Typed configuration: what a run and a study are, read from TOML with every problem told at once."""

from isoflop.config.dense import DenseTransferConfig, DetectConfig, SegmentConfig
from isoflop.config.fields import Table
from isoflop.config.identity import canonical_json, config_hash
from isoflop.config.kinds import load_any, load_run, load_study, stored_run, stored_study
from isoflop.config.load import Loaded, load, parse, plain
from isoflop.config.objective import DistilledConfig, MaskedConfig, ObjectiveConfig, SupervisedConfig
from isoflop.config.optim import GroupConfig, OptimConfig, OptimizerConfig
from isoflop.config.reference import Key, reference
from isoflop.config.run import (
    REVISION,
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    RunConfig,
    ScheduleConfig,
    is_revised,
)
from isoflop.config.start import StartConfig
from isoflop.config.study import FamilyConfig, LawsConfig, ReportConfig, StudyConfig, StudyTable
from isoflop.config.transfer import Protocol, TargetConfig, TransferConfig
from isoflop.config.tree import dotted, flatten, literal

__all__ = [
    "REVISION",
    "CheckpointConfig",
    "DataConfig",
    "DenseTransferConfig",
    "DetectConfig",
    "DistilledConfig",
    "EvaluationConfig",
    "FamilyConfig",
    "GroupConfig",
    "Key",
    "LawsConfig",
    "Loaded",
    "MaskedConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "OptimizerConfig",
    "Protocol",
    "ReportConfig",
    "RunConfig",
    "ScheduleConfig",
    "SegmentConfig",
    "StartConfig",
    "StudyConfig",
    "StudyTable",
    "SupervisedConfig",
    "Table",
    "TargetConfig",
    "TransferConfig",
    "canonical_json",
    "config_hash",
    "dotted",
    "flatten",
    "is_revised",
    "literal",
    "load",
    "load_any",
    "load_run",
    "load_study",
    "parse",
    "plain",
    "reference",
    "stored_run",
    "stored_study",
]
