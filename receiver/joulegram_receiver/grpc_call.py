"""One gRPC call on a stream of HTTP/2: messages put together and taken apart, statuses in trailers.

As "gRPC over HTTP2" of the gRPC project says it. A deadline that the client sends is the client's: what it brought is
on disk or is not, whoever still waits.

Invariants:
    * what a call holds of its message is admitted as it comes, and given back when it is answered;
    * a message above the limit is refused when its length is known, before it has come;
    * a call is answered once.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections import deque
from typing import TYPE_CHECKING

from google.rpc import code_pb2

from joulegram_pipeline.errors import JoulegramError
from joulegram_pipeline.http2_frames import header_block
from joulegram_receiver.grpc_methods import (
    ANSWER_BLOCK,
    OK_BLOCK,
    CallRefusedError,
    Unary,
    failure,
    refusal_block,
    refusal_of,
)
from joulegram_receiver.http_body import decoder_for, inflate
from joulegram_receiver.intake_refusals import MediaTypeError, SlowSenderError, TooLargeError

if TYPE_CHECKING:
    from joulegram_receiver.admission import Hold
    from joulegram_receiver.grpc_methods import Streaming
    from joulegram_receiver.http2_stream import Stream

log = logging.getLogger(__name__)

_PREFIX = struct.Struct(">BL")
"""Of a message: whether it is compressed, and its length."""

_PREFIX_BYTES = _PREFIX.size
_TALK_BYTES = 64 * 1024
"""Of the messages of a stream that its method has not read."""

_PART_BYTES = 8 * 1024
_KEPT_BYTES = 64
"""What a message takes beside its bytes."""


class Refused:
    """A call that was answered when its head had come; what follows is read past."""

    def __init__(self, stream: Stream, refusal: CallRefusedError) -> None:
        stream.finish(refusal_block(refusal, begun=False))

    def data(self, chunk: bytes) -> None:
        """Nobody wants it."""

    def end(self) -> None:
        """It was answered."""

    def late(self, limit_s: float) -> None:
        """It was answered."""

    def gone(self) -> None:
        """It was answered."""

    def room(self) -> None:
        """There is no more to send."""


class NotGrpc(Refused):
    """A request that is none of gRPC, answered in the words of HTTP."""

    def __init__(self, stream: Stream, status: bytes) -> None:
        stream.finish(header_block(((b":status", status),)))


class UnaryCall:
    """A call of a `Unary` method."""

    __slots__ = ("_compressed", "_have", "_hold", "_max_bytes", "_method", "_need", "_parts", "_stream", "_task")

    def __init__(self, stream: Stream, method: Unary, max_bytes: int) -> None:
        self._stream = stream
        self._method = method
        self._max_bytes = max_bytes
        self._parts: list[bytes | bytearray] = []
        """Of the message as it came; what is smaller than `_PART_BYTES` is put together, because each costs as much."""
        self._have = 0
        self._need = -1
        """Of the message with its prefix; -1 while that has not come."""
        self._compressed = False
        self._hold: Hold | None = None
        self._task: asyncio.Task[None] | None = None

    def data(self, chunk: bytes) -> None:
        """More of the message."""
        parts = self._parts
        if not parts or len(parts[-1]) >= _PART_BYTES:
            parts.append(chunk)
        else:
            parts[-1] = bytearray(parts[-1]) if isinstance(parts[-1], bytes) else parts[-1]
            parts[-1] += chunk
        self._have += len(chunk)
        try:
            if self._hold is not None:
                self._hold.grow(len(chunk))
            elif self._have >= _PREFIX_BYTES:
                self._begin()
            if 0 <= self._need < self._have:
                raise CallRefusedError(code_pb2.UNIMPLEMENTED, "got more than one message, expected one")
        except JoulegramError as error:
            self._refuse(error)

    def end(self) -> None:
        """The message should be whole."""
        if self._have != self._need or self._hold is None:
            text = f"got {self._have} bytes of a message, expected {max(self._need, _PREFIX_BYTES)}"
            code = code_pb2.INTERNAL if self._have else code_pb2.UNIMPLEMENTED
            self._refuse(CallRefusedError(code, text))
            return
        with memoryview(self._parts[0]) as first:
            message = b"".join((first[_PREFIX_BYTES:], *self._parts[1:]))
        self._parts = []
        self._stream.busy = True
        self._task = asyncio.get_running_loop().create_task(self._run(message, self._hold))

    def late(self, limit_s: float) -> None:
        """The message did not come in its time."""
        self._refuse(SlowSenderError(f"got {self._have} bytes of a message in {limit_s:g} s, expected all of it"))

    def gone(self) -> None:
        """Nobody waits for the answer; what was taken is taken."""
        if not self._stream.busy:
            self._leave()

    def room(self) -> None:
        """The answer is on its way."""
        self._leave()

    def _begin(self) -> None:
        compressed, size = _PREFIX.unpack_from(self._parts[0])
        if compressed > 1:
            raise CallRefusedError(code_pb2.INTERNAL, f"got a message with flag {compressed}, expected 0 or 1")
        if size > self._max_bytes:
            raise TooLargeError(f"got a message of {size} bytes, expected at most {self._max_bytes}")
        self._compressed = bool(compressed)
        self._need = _PREFIX_BYTES + size
        self._hold = self._method.admission.enter(self._have)
        self._stream.grant(self._need - self._have - self._stream.recv_window)

    async def _run(self, message: bytes, hold: Hold) -> None:
        try:
            if self._compressed:
                message = await self._inflated(message, hold)
            answer = await self._method.answer(message, self._stream.head, hold)
        except JoulegramError as error:
            # What refuses knows the frames it passed, and they the message: it goes when this returns.
            error.__traceback__ = error.__context__ = error.__cause__ = None
            self._refuse(error)
        except Exception:
            log.exception("a call of %r failed", self._stream.head.path)
            self._refuse(failure())
        else:
            stream = self._stream
            if not stream.answered:
                stream.begin(ANSWER_BLOCK)
                stream.body(_PREFIX.pack(0, len(answer)) + answer)
                stream.finish(OK_BLOCK)
        finally:
            if not self._stream.stuck:  # an answer that waits to be read may be as large as what was asked
                self._leave()
            self._stream.busy = False
            self._stream.settle()

    async def _inflated(self, message: bytes, hold: Hold) -> bytes:
        coding = self._stream.head.get(b"grpc-encoding").decode("latin-1")
        if coding in {"", "identity"}:
            raise CallRefusedError(code_pb2.INTERNAL, "got a compressed message without grpc-encoding, expected one")
        try:
            decoder = decoder_for(coding, "grpc-encoding")
        except MediaTypeError as error:
            raise CallRefusedError(code_pb2.UNIMPLEMENTED, str(error)) from None
        return await inflate(message, decoder, hold, self._max_bytes)

    def _refuse(self, error: JoulegramError) -> None:
        self._parts = []
        if self._stream.answered:
            return
        self._method.refused(error)
        self._stream.finish(refusal_block(refusal_of(error), begun=False))
        if not self._stream.busy:
            self._leave()

    def _leave(self) -> None:
        if self._hold is not None:
            self._hold.__exit__(None, None, None)
            self._hold = None


class TalkCall:
    """A call of a `Streaming` method."""

    def __init__(self, stream: Stream, method: Streaming) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self._messages: deque[bytes] = deque()
        self._unread = 0
        self._heard = False
        self._changed = asyncio.Event()
        self._begun = False
        stream.busy = True
        self._task = asyncio.get_running_loop().create_task(self._run(method))
        self._task.add_done_callback(self._done)

    async def receive(self) -> bytes | None:
        """The next message; None behind the last."""
        while not self._messages and not self._stream.whole:
            self._changed.clear()
            await self._changed.wait()
        if not self._messages:
            return None
        message = self._messages.popleft()
        self._unread -= len(message) + _KEPT_BYTES
        self._stream.grant(len(message) + _PREFIX_BYTES)
        return message

    async def send(self, message: bytes) -> None:
        """Send a message, once the client reads."""
        if not self._begun:
            self._begun = True
            self._stream.begin(ANSWER_BLOCK)
        self._stream.body(_PREFIX.pack(0, len(message)) + message)
        while self._stream.stuck:
            self._changed.clear()
            await self._changed.wait()

    def data(self, chunk: bytes) -> None:
        """More of the messages."""
        self._buffer += chunk
        while len(self._buffer) >= _PREFIX_BYTES:
            compressed, size = _PREFIX.unpack_from(self._buffer)
            if compressed or self._unread + size > _TALK_BYTES:
                text = f"got {self._unread + size} bytes unread with flag {compressed}, expected at most {_TALK_BYTES}"
                self._refuse(CallRefusedError(code_pb2.RESOURCE_EXHAUSTED, f"{text} and 0"))
                return
            if len(self._buffer) < _PREFIX_BYTES + size:
                break
            self._messages.append(bytes(self._buffer[_PREFIX_BYTES : _PREFIX_BYTES + size]))
            self._unread += size + _KEPT_BYTES
            self._heard = True
            del self._buffer[: _PREFIX_BYTES + size]
        self._changed.set()

    def end(self) -> None:
        """There are no more."""
        if self._buffer:
            text = f"got {len(self._buffer)} bytes of a message, expected all of it"
            self._refuse(CallRefusedError(code_pb2.INTERNAL, text))
        self._changed.set()

    def late(self, limit_s: float) -> None:
        """A stream may be open for long, once it has asked for something."""
        if not self._heard:
            self._refuse(SlowSenderError(f"got no message in {limit_s:g} s, expected one"))

    def gone(self) -> None:
        """Nobody waits for the answers."""
        self._task.cancel()

    def room(self) -> None:
        """What was sent is on its way."""
        self._changed.set()

    async def _run(self, method: Streaming) -> None:
        block = OK_BLOCK
        try:
            with method.admission.enter(_TALK_BYTES):
                await method.serve(self)
            if not self._begun:
                block = ANSWER_BLOCK + OK_BLOCK
        except JoulegramError as error:
            block = refusal_block(refusal_of(error), begun=self._begun)
        except Exception:
            log.exception("a call of %r failed", self._stream.head.path)
            block = refusal_block(failure(), begun=self._begun)
        finally:
            self._stream.finish(block)

    def _done(self, task: asyncio.Task[None]) -> None:
        """Also of a task that was cancelled before it had begun, in which nothing runs."""
        del task
        self._stream.busy = False
        self._stream.settle()

    def _refuse(self, error: JoulegramError) -> None:
        self._task.cancel()
        self._stream.finish(refusal_block(refusal_of(error), begun=self._begun))
