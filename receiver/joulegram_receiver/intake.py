"""What both transports do with a request: let in, parse, check, make durable, answer.

Invariants:
    * a response is given only after the request is on disk;
    * what is stored is what came, byte for byte;
    * what is refused is refused before it is parsed where that can be known.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Protocol

from joulegram_pipeline.errors import BusyError, ConfigError, RetryableError, WireError
from joulegram_pipeline.records import AFAR
from joulegram_pipeline.span_rows import scope_rows
from joulegram_receiver import in_parts
from joulegram_receiver.admission import Admission
from joulegram_receiver.checks import broken_rows, explain
from joulegram_receiver.intake_refusals import OverloadError, TooLargeError, UndurableError, reason_of
from joulegram_receiver.signals import TRACES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from joulegram_pipeline.errors import JoulegramError
    from joulegram_pipeline.metrics import Metrics
    from joulegram_pipeline.records import Metadata, RecordKind
    from joulegram_pipeline.span_rows import Extract, Row
    from joulegram_receiver.admission import Hold
    from joulegram_receiver.signals import Signal

MAX_REQUEST_BYTES = 64 * 1024 * 1024
"""What OTLP 1.11 recommends (A2), before and after decompression."""

MAX_RESPONSE_BYTES = 4 * 1024 * 1024
"""What OTLP 1.11 recommends (A3), before compression."""

MAX_METADATA_BYTES = 8 * 1024
"""Of the headers that travel with one request, names and values together."""

_THREAD_BYTES = 4 * 1024 * 1024
"""A request above this is parsed beside the event loop, so that the others are answered meanwhile."""

_DENSE_SPANS = 16 * 1024
_MIN_SPAN_BYTES = 32
"""A span with the ids and times it must have takes 46 bytes; an empty one takes 2, and 180 once it is parsed."""

_HEADER_NAME = re.compile(r"[a-z0-9_.-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")


class Store(Protocol):
    """Where requests go: the spool."""

    async def append(
        self,
        kind: RecordKind,
        payload: bytes,
        received_ns: int | None = None,
        parsed: Extract | None = None,
        metadata: Metadata = (),
    ) -> int:
        """Return when the record is on disk; BusyError or StorageError where it will not be."""


class Intake:
    """The way in, shared by the transports; used from one event loop.

    Args:
        spool: where requests go.
        metrics: accepted_*, refused_requests, invalid_spans.
        admission: shared with whoever else holds requests; one of its own if None.
        extract: reads of a trace request what the join wants, which then travels with it; without it the request is
            parsed and checked here, and read again there. Raises WireError.
        metadata_keys: lower-case names of the request headers that travel with a request.
        max_request_bytes: a larger request is refused.
        max_response_bytes: a longer response has its error message cut.

    Raises:
        ConfigError: a metadata key that cannot travel.
    """

    def __init__(
        self,
        spool: Store,
        metrics: Metrics,
        *,
        admission: Admission | None = None,
        extract: Callable[[bytes], Extract] | None = None,
        metadata_keys: frozenset[str] = frozenset(),
        max_request_bytes: int = MAX_REQUEST_BYTES,
        max_response_bytes: int = MAX_RESPONSE_BYTES,
    ) -> None:
        self.admission = admission or Admission()
        self.metadata_keys = check_metadata_keys(metadata_keys)
        self.max_request_bytes = max_request_bytes
        self._max_response_bytes = max_response_bytes
        self._extract = extract
        self._spool = spool
        self._metrics = metrics

    async def take(self, signal: Signal, payload: bytes, metadata: Metadata = ()) -> bytes:
        """Take a request that is in memory whole.

        Args:
            signal: what it is.
            payload: its protobuf bytes.
            metadata: as `metadata_of` gave it.

        Returns:
            The protobuf bytes of the response; none at all is full success (A5).

        Raises:
            WireError: the bytes are not such a request.
            TooLargeError: it is above the limit.
            OverloadError: there is no room now; it was not parsed.
            UndurableError: the disk did not take it.
        """
        with self.admission.enter(len(payload)) as hold:
            return await self.take_held(signal, payload, metadata, hold)

    async def take_held(self, signal: Signal, payload: bytes, metadata: Metadata, hold: Hold) -> bytes:
        """`take` for a request whose bytes are held already."""
        if len(payload) > self.max_request_bytes:
            raise TooLargeError(f"got a request of {len(payload)} bytes, expected at most {self.max_request_bytes}")
        if signal is not TRACES:
            if await _holds_something(signal, payload):
                await self._store(signal, payload, None, metadata, hold)
            return b""
        if len(payload) > _THREAD_BYTES:
            spans, broken, found = await asyncio.to_thread(self._read_traces, payload)
        else:
            spans, broken, found = self._read_traces(payload)
        if not spans:
            return b""
        await self._store(signal, payload, found, metadata, hold)
        self._metrics.accepted_spans.inc(spans)
        if not broken:
            return b""
        text, faults = explain(broken)
        for reason, count in faults.items():
            self._metrics.invalid_spans.labels(reason).inc(count)
        return self.warn(signal, text)

    def warn(self, signal: Signal, text: str) -> bytes:
        """A response that takes all and says something (A6); its text is cut to what a response may have (A3)."""
        response = signal.response()
        response.partial_success.error_message = text
        excess = response.ByteSize() - self._max_response_bytes
        if excess > 0:
            room = max(0, len(text.encode()) - excess)
            response.partial_success.error_message = text.encode()[:room].decode(errors="ignore")
        encoded: bytes = response.SerializeToString()
        return encoded

    def metadata_of(self, headers: Iterable[tuple[Any, Any]], *, afar: bool = False) -> Metadata:
        """The headers that travel with a request, sorted; names and values come as str or bytes.

        Args:
            headers: of the request.
            afar: it came from another address than this machine's: `AFAR` goes along.

        Raises:
            WireError: a value is not printable ASCII, so it cannot travel on every transport.
            TooLargeError: they are too long together.
        """
        keys = self.metadata_keys
        if not keys:
            return (AFAR,) if afar else ()
        found: list[tuple[str, str]] = []
        size = 0
        for name, value in headers:
            key = name if isinstance(name, str) else name.decode("latin-1")
            if key not in keys:
                continue
            text = value if isinstance(value, str) else value.decode("latin-1")
            if _HEADER_VALUE.fullmatch(text) is None:
                raise WireError(f"header {key}: got {len(text)} characters, expected printable ASCII only")
            size += len(key) + len(text)
            found.append((key, text))
        if size > MAX_METADATA_BYTES:
            raise TooLargeError(f"headers to take along: got {size} bytes, expected at most {MAX_METADATA_BYTES}")
        return ((AFAR,) if afar else ()) + tuple(sorted(found))

    def count_refusal(self, signal: Signal, error: JoulegramError) -> None:
        """Count a request that was not taken; for the transport that says so to its sender."""
        self._metrics.refuse(signal.name, reason_of(error))

    def _read_traces(self, payload: bytes) -> tuple[int, list[Row], Extract | None]:
        """Count of spans, those that break OTLP, and what the join wants.

        The message itself is gone on return: its memory is wanted by the next request while this one waits for the
        disk.
        """
        if self._extract is not None:
            found = self._extract(payload)
            _refuse_dense(found.total, len(payload))
            return found.total, found.broken, found
        message = TRACES.parse(payload)
        spans = sum(len(scope.spans) for item in message.resource_spans for scope in item.scope_spans)
        _refuse_dense(spans, len(payload))
        return spans, broken_rows(scope_rows(message)), None

    async def _store(
        self, signal: Signal, payload: bytes, parsed: Extract | None, metadata: Metadata, hold: Hold
    ) -> None:
        try:
            await self._spool.append(signal.kind, payload, parsed=parsed, metadata=metadata)
        except RetryableError as error:
            hold.will_return()
            delay_s = self.admission.retry_after_s()
            if isinstance(error, BusyError):
                raise OverloadError(str(error), delay_s) from error
            raise UndurableError(str(error), delay_s) from error
        self._metrics.accepted_requests.labels(signal.name).inc()


async def _holds_something(signal: Signal, payload: bytes) -> bool:
    """Nothing of such a request is looked at, but it must be what it says it is."""
    if len(payload) > _THREAD_BYTES:
        return await asyncio.to_thread(in_parts.holds_something, signal, payload)
    return bool(getattr(signal.parse(payload), signal.envelope))


def _refuse_dense(spans: int, size: int) -> None:
    if spans > _DENSE_SPANS and size < spans * _MIN_SPAN_BYTES:
        raise TooLargeError(
            f"got {spans} spans in {size} bytes, expected at least {_MIN_SPAN_BYTES} bytes a span "
            f"in a request of more than {_DENSE_SPANS}"
        )


def check_metadata_keys(keys: frozenset[str]) -> frozenset[str]:
    """The keys as they are.

    Raises:
        ConfigError: one is not a lower-case header name of text, or is one that gRPC keeps for itself.
    """
    for key in sorted(keys):
        if _HEADER_NAME.fullmatch(key) is None or key.endswith("-bin") or key.startswith("grpc-"):
            raise ConfigError(
                "receiver.metadata_keys",
                key,
                "a lower-case header name of letters, digits, '-', '_' and '.', not ending in -bin (those hold bytes) "
                "and not beginning with grpc-",
            )
    return keys
