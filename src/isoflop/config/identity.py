"""The identity of a configuration: equal hashes, equal results."""

import hashlib
import json
from typing import Any

from isoflop.config.fields import Table


def canonical_json(config: Table) -> str:
    """The resolved configuration as JSON with sorted keys, without the fields that cannot change what is learned."""
    return json.dumps(_identity(config), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def config_hash(config: Table) -> str:
    """12 hexadecimal digits of the SHA-256 of `canonical_json`: a run's id.

    Left out are the cadence and number of checkpoints, evaluation batch size, output folder, workers, and device and
    CPU threads: these last two change rounding, and yet a run that was planned on one machine is the same on another.
    """
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()[:12]


def _identity(value: Any) -> Any:
    if isinstance(value, Table):
        fields = type(value).model_fields
        return {
            **{name: _identity(extra) for name, extra in (value.model_extra or {}).items()},
            **{
                name: _identity(getattr(value, name))
                for name, field in fields.items()
                if not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("in_hash") is False)
            },
        }
    if isinstance(value, dict):
        return {key: _identity(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_identity(item) for item in value]
    return value
