"""RFC 8785 canonical JSON: the bytes that are hashed.

Two writers give the same bytes. `canonical` walks any JSON value and is the reference (Trail of Bits' rfc8785).
`canonical_plain` is quick and takes only what orjson writes as RFC 8785 does: dicts with ASCII keys, lists, strings,
booleans, None and integers within ±(2**53 - 1). Records of the hot path are built from those alone; floats never are.
The property test in tests/pipeline holds the two equal.
"""

from __future__ import annotations

import hashlib
from typing import Any

import orjson
import rfc8785

from joulegram_pipeline.errors import DocumentError

MAX_SAFE_INTEGER = 2**53 - 1


def canonical(value: Any) -> bytes:
    """The RFC 8785 bytes of a JSON value.

    Raises:
        DocumentError: the value has no canonical form: NaN, infinity, an integer beyond 2**53 - 1, a lone surrogate.
    """
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise DocumentError(f"no canonical JSON for this value: {error}") from error


def canonical_plain(value: dict[str, Any]) -> bytes:
    """The RFC 8785 bytes of a record made of ASCII keys, strings, booleans, None and safe integers only.

    The caller holds that; nothing is checked here but what orjson itself refuses.

    Raises:
        DocumentError: a value orjson cannot write.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER)
    except orjson.JSONEncodeError as error:
        raise DocumentError(f"no canonical JSON for this record: {error}") from error


def sha256_hex(data: bytes) -> str:
    """Lower-case hex SHA-256."""
    return hashlib.sha256(data).hexdigest()
