"""JSON Schemas (draft 2020-12) of what joulegram writes, and their loader."""

from __future__ import annotations

from joulegram_schemas.loader import NAMES, SchemaError, schema, validate, validator

__all__ = ["NAMES", "SchemaError", "schema", "validate", "validator"]
