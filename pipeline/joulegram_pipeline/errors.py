"""The one error tree of joulegram.

    JoulegramError
    ├── PermanentError          the same input will always be refused
    │   ├── ConfigError         a key the user wrote; carries key, got, expected
    │   ├── RegionError         a region that is unknown or names several
    │   ├── TableError          an intensity table that is missing or not what its manifest says
    │   ├── WireError           bytes that are not the OTLP they claim to be
    │   ├── IdentifierError     a run, trace or span id that may not be used
    │   ├── DocumentError       a document (STAC Item, schema instance) that cannot be read or written as asked
    │   └── LedgerError         a ledger that is not what it was when it was written
    └── RetryableError          the same input may be accepted later
        ├── BusyError           a resource another process holds: a port, a data directory
        ├── StorageError        the disk refused: full, read-only, failed
        ├── AgentError          the energy agent did not answer, or not in its protocol
        └── UpstreamError       the next hop did not take the data

The kind decides what happens: permanent input is rejected and explained, retryable input stays where it is.
"""

from __future__ import annotations

__all__ = [
    "AgentError",
    "BusyError",
    "ConfigError",
    "DocumentError",
    "IdentifierError",
    "JoulegramError",
    "LedgerError",
    "PermanentError",
    "RegionError",
    "RetryableError",
    "StorageError",
    "TableError",
    "UpstreamError",
    "WireError",
]


class JoulegramError(Exception):
    """Anything joulegram refuses or cannot do, in words meant for its user."""


class PermanentError(JoulegramError):
    """An error that the same input will always give."""


class RetryableError(JoulegramError):
    """An error that the same input may not give later."""


class ConfigError(PermanentError):
    """A configuration key has a value it may not have.

    Args:
        key: the user's own key, dotted as in the file, or the flag or variable as typed.
        got: what stood there.
        expected: what may stand there.
    """

    def __init__(self, key: str, got: object, expected: str) -> None:
        self.key = key
        self.got = got
        self.expected = expected
        super().__init__(f"{key}: got {got!r}, expected {expected}")


class RegionError(PermanentError):
    """A region key is unknown, or an alias names several regions."""


class TableError(PermanentError):
    """An intensity table is missing, malformed, or not the bytes its manifest names."""


class WireError(PermanentError):
    """Received bytes are not the OTLP message they claim to be."""


class IdentifierError(PermanentError):
    """An id may not be used: wrong length, all zero, or not safe in a path."""


class DocumentError(PermanentError):
    """A document cannot be read or patched as asked.

    Args:
        text: what is wrong, with what stood there.
        plain: the same without a word of what stood there, for the log.
    """

    def __init__(self, text: str, plain: str = "it cannot be read or written as asked") -> None:
        self.plain = plain
        super().__init__(text)


class LedgerError(PermanentError):
    """A ledger line is not what it was when it was written.

    Args:
        where: file and line, as ``ledger-000000.ndjson:12``.
        problem: what is wrong, with what was expected.
    """

    def __init__(self, where: str, problem: str) -> None:
        self.where = where
        self.problem = problem
        super().__init__(f"{where}: {problem}")


class BusyError(RetryableError):
    """Another process holds the port, socket or directory."""


class StorageError(RetryableError):
    """The disk refused a write, a sync or a rename."""


class AgentError(RetryableError):
    """The energy agent did not answer, or not in its protocol."""


class UpstreamError(RetryableError):
    """The next hop did not take the data; it stays queued."""
