"""The headers of a send: those of the configuration, from text or file, and those a request brought along."""

from __future__ import annotations

import re
from threading import Lock
from typing import TYPE_CHECKING

from joulegram_pipeline.errors import ConfigError, UpstreamError
from joulegram_sink.upstream_tls import stamp

if TYPE_CHECKING:
    from collections.abc import Iterable

    from joulegram_pipeline.records import Metadata
    from joulegram_sink.upstream_destination import Header
    from joulegram_sink.upstream_tls import Stamp

_NAME = re.compile(r"[0-9a-z_.-]{1,128}", re.ASCII)
_VALUE = re.compile(r"[\x20-\x7e]{0,16384}", re.ASCII)
RESERVED = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "transfer-encoding",
        "upgrade",
    }
)
"""What the transports say themselves, and what HTTP/2 does not have."""

_MAX_FILE_BYTES = 16 * 1024


class Headers:
    """The headers of one destination; safe for threads.

    Args:
        headers: of the configuration.
        key: of their section, as errors quote it.

    Raises:
        ConfigError: a name or value that no header may have, or a file that cannot be read; values are not shown.
    """

    def __init__(self, headers: Iterable[Header], key: str) -> None:
        self._headers = tuple(headers)
        self._lock = Lock()
        self._read: dict[str, tuple[Stamp, str]] = {}
        for header in self._headers:
            check_name(header.name, key)
            value = header.value or ""
            if _VALUE.fullmatch(value + header.prefix) is None:
                raise ConfigError(f"{key}.{header.name}", "a value that is not shown", "printable ASCII in one line")
            try:
                self._value(header)
            except UpstreamError as error:
                raise ConfigError(f"{key}.{header.name}.file", str(header.file), str(error)) from error
        self._names = frozenset(header.name for header in self._headers)

    def beside(self, metadata: Metadata) -> list[tuple[str, str]]:
        """Name and value of every header of a send with `metadata`; the configuration's beat a request's.

        Raises:
            UpstreamError: a file that could be read cannot be read any more.
        """
        configured = [(header.name, self._value(header)) for header in self._headers]
        return configured + [(name, value) for name, value in metadata if name not in self._names]

    def _value(self, header: Header) -> str:
        if header.file is None:
            return header.value or ""
        now = stamp((header.file,))
        with self._lock:
            kept = self._read.get(header.name)
        if kept is not None and kept[0] == now:
            return kept[1]
        expected = f"a file of one line of printable ASCII, {_MAX_FILE_BYTES} bytes at most"
        try:
            with header.file.open("rb") as file:
                text = file.read(_MAX_FILE_BYTES + 1).decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not ASCII"
            raise UpstreamError(f"{expected} ({reason})") from error
        value = header.prefix + text
        if not text or len(text) > _MAX_FILE_BYTES or _VALUE.fullmatch(value) is None:
            raise UpstreamError(expected)
        with self._lock:
            self._read[header.name] = now, value
        return value


def check_name(name: str, key: str) -> None:
    """Refuse a header that cannot be sent.

    Raises:
        ConfigError: quoting the name.
    """
    is_grpc = name.startswith((":", "grpc-")) or name.endswith("-bin")
    if _NAME.fullmatch(name) is None or name in RESERVED or is_grpc:
        raise ConfigError(
            f"{key}.{name}", name, "the name of a header in lower case that is not one of the transport's own"
        )
