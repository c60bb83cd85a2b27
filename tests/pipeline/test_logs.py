"""The log: one event a line, as text or JSON, limited by kind, and nothing of a payload's length."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import sys
from typing import TYPE_CHECKING

import pytest

from joulegram_pipeline.errors import ConfigError, DocumentError, StorageError, WireError
from joulegram_pipeline.logs import (
    BURST,
    MAX_CHARACTERS,
    JsonFormatter,
    RateLimit,
    TextFormatter,
    set_up_logging,
    tell_of_loop,
    words_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def lines() -> Iterator[tuple[logging.Logger, io.StringIO, list[float]]]:
    """A logger of its own with a limit of 3 a window of 10 s, what it wrote, and the clock's hands."""
    clock = [0.0]
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(TextFormatter())
    handler.addFilter(RateLimit(burst=3, window_s=10.0, now_s=lambda: clock[0]))
    logger = logging.getLogger("joulegram_test_logs")
    logger.propagate = False
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield logger, out, clock
    logger.removeHandler(handler)


def test_of_one_kind_so_many_are_written_and_the_rest_is_counted(
    lines: tuple[logging.Logger, io.StringIO, list[float]],
) -> None:
    """The kind is the sentence before its values: a storm of one does not hide the other."""
    logger, out, clock = lines
    for number in range(20):
        logger.warning("the upstream refused request %d", number)
    logger.warning("something else")
    clock[0] = 10.0
    logger.warning("the upstream refused request %d", 99)
    written = [line.split(": ", 1)[1] for line in out.getvalue().splitlines()]
    assert written == [
        "the upstream refused request 0",
        "the upstream refused request 1",
        "the upstream refused request 2",
        "something else",
        "the upstream refused request 99 (17 more like this were left out)",
    ]


def test_a_line_is_one_line_and_has_an_end(lines: tuple[logging.Logger, io.StringIO, list[float]]) -> None:
    """What is quoted from outside can forge no second line, and no log is flooded by one quote."""
    logger, out, _ = lines
    logger.error("got %s", "a\r\n2026-01-01T00:00:00Z ERROR forged")
    logger.error("got that: %s", "x" * 100_000)
    first, second = out.getvalue().splitlines()
    assert first.endswith("got a\\r\\n2026-01-01T00:00:00Z ERROR forged")
    assert len(second) < MAX_CHARACTERS + 100
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ERROR joulegram_test_logs: ", first)


def test_as_json_each_line_is_an_object() -> None:
    """For machines: time, level, logger, message; an exception stands in a member of its own."""
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        record = logging.LogRecord("a.b", logging.ERROR, __file__, 1, "it %s", ("failed\nbadly",), sys.exc_info())
    line = JsonFormatter().format(record)
    assert "\n" not in line
    value = json.loads(line)
    assert (value["level"], value["logger"], value["message"]) == ("error", "a.b", "it failed\\nbadly")
    assert value["exception"].endswith('raise RuntimeError("boom")\nRuntimeError')
    assert "suppressed" not in value


def test_of_an_exception_the_frames_are_told_and_only_words_of_ours(
    lines: tuple[logging.Logger, io.StringIO, list[float]],
) -> None:
    """A KeyError's text is the key, which came in a request; a disk's or a configuration's errors are ours to tell."""
    logger, out, _ = lines
    key = "hunter2"
    try:
        try:
            dict[str, str]()[key]
        except KeyError as error:
            raise WireError(f"got {key}, expected another") from error
    except WireError:
        logger.exception("a request broke us")
    assert key not in out.getvalue()
    assert re.search(r"in test_of_an.*KeyError\nwhich led to:\n.*in test_of_an.*WireError\n", out.getvalue(), re.DOTALL)
    assert words_of(StorageError("the disk is full")) == "StorageError: the disk is full"
    assert words_of(OSError(5, "Input/output error")) == "OSError: [Errno 5] Input/output error"
    assert words_of(ConfigError("a.b", 1, "2")) == "ConfigError: a.b: got 1, expected 2"
    assert words_of(DocumentError("got hunter2")) == "DocumentError"


def test_a_callback_that_fails_is_told_without_its_arguments(caplog: pytest.LogCaptureFixture) -> None:
    """The handler of asyncio would show them: of a protocol they are what was received."""

    def received(data: bytes) -> None:
        raise ValueError(data)

    async def fail() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(tell_of_loop)
        loop.call_soon(received, b"hunter2")
        await asyncio.sleep(0)

    asyncio.run(fail())
    (record,) = caplog.records
    assert record.getMessage() == "a callback or task failed: ValueError"
    assert "hunter2" not in TextFormatter().format(record)


def test_what_is_set_up_writes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """`telemetry.logs`: level and encoding; the limit is on."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        set_up_logging("warning", "json")
        for _ in range(BURST + 5):
            logging.getLogger("joulegram_test_setup").warning("again")
        logging.getLogger("joulegram_test_setup").info("too quiet")
        written = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    assert [line["message"] for line in written] == ["again"] * BURST
