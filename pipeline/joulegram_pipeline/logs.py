"""joulegram's own log: one event a line on stderr, as text or JSON, never more of one kind than a reader can use.

Invariants:
    * no payload content: what is logged is the sidecar's own sentences, cut at `MAX_CHARACTERS`, and of an exception
      its type and frames, with its text only where that is ours (`words_of`);
    * of one kind (logger, level, sentence before its values are put in) at most `BURST` lines in `WINDOW_S`; what is
      left out is counted, and the next line of that kind says how many.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, Literal

from joulegram_pipeline.errors import ConfigError, RetryableError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

BURST = 10
WINDOW_S = 30.0
MAX_CHARACTERS = 2000
_MAX_KINDS = 1024

log = logging.getLogger(__name__)


class RateLimit(logging.Filter):
    """Lets the first `burst` records of a kind through in each window.

    Args:
        burst: records of one kind.
        window_s: over which they are counted.
        now_s: a clock that never falls; the monotonic one but in tests.
    """

    def __init__(
        self, burst: int = BURST, window_s: float = WINDOW_S, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._burst = burst
        self._window_s = window_s
        self._now_s = now_s
        self._kinds: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written; the first of a new window carries `suppressed`, the count left out before."""
        kind = (record.name, record.levelno, str(record.msg))
        now_s = self._now_s()
        began_s, seen = self._kinds.get(kind, (now_s, 0))
        if now_s - began_s >= self._window_s:
            record.suppressed = max(0, seen - self._burst)
            began_s, seen = now_s, 0
        if len(self._kinds) >= _MAX_KINDS and kind not in self._kinds:
            self._kinds.pop(next(iter(self._kinds)))
        self._kinds[kind] = (began_s, seen + 1)
        return seen < self._burst


class TextFormatter(logging.Formatter):
    """``2026-01-02T03:04:05.678Z WARNING joulegram_sink.upstream: sentence``."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{_when(record)} {record.levelname} {record.name}: {_sentence(record)}{_more(record)}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``ts``, ``level``, ``logger``, ``message``, and ``exception`` where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "ts": _when(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _sentence(record),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = _trace(record.exc_info[1])
        suppressed = getattr(record, "suppressed", 0)
        if suppressed:
            line["suppressed"] = suppressed
        return json.dumps(line, ensure_ascii=False)


def set_up_logging(level: str = "info", encoding: Literal["console", "json"] = "console") -> None:
    """Send everything to stderr, limited and formatted; replaces what was set up before.

    Args:
        level: the least level that is written: debug, info, warning or error.
        encoding: console for people, json for machines.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if encoding == "json" else TextFormatter())
    handler.addFilter(RateLimit())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def words_of(error: BaseException) -> str:
    """What a log may say of an error: its type, and its text where no such text quotes what was received."""
    if isinstance(error, OSError | RetryableError | ConfigError):
        return f"{type(error).__name__}: {error}"
    return type(error).__name__


def tell_of_loop(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An exception handler for event loops: asyncio's own shows the arguments of what failed, which hold bytes."""
    del loop
    error = context.get("exception")
    log.error("a callback or task failed: %s", "no exception" if error is None else words_of(error), exc_info=error)


def _trace(error: BaseException | None) -> str:
    """The frames of an error behind those of its causes; the end of it, if it is long."""
    parts: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        parts.append("".join(traceback.format_tb(error.__traceback__)) + words_of(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\nwhich led to:\n".join(reversed(parts))[-MAX_CHARACTERS:]


def _when(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _sentence(record: logging.LogRecord) -> str:
    # One event a line: what is quoted from outside may hold line feeds.
    text = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"


def _more(record: logging.LogRecord) -> str:
    suppressed = getattr(record, "suppressed", 0)
    more = f" ({suppressed} more like this were left out)" if suppressed else ""
    if record.exc_info and record.exc_info[0] is not None:
        more += "\n" + _trace(record.exc_info[1])
    return more
