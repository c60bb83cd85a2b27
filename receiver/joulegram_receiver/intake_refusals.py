"""Why a request is not taken, typed, so that each transport can say it in its own words.

Beside these, a request that does not parse is a `WireError`. Each has a `reason`, the label it is counted under.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from joulegram_pipeline.errors import BusyError, PermanentError, StorageError

if TYPE_CHECKING:
    from joulegram_pipeline.errors import JoulegramError


class TooLargeError(PermanentError):
    """A request is larger than the limit; sent again it will be no smaller."""

    reason: Final = "too_large"


class MediaTypeError(PermanentError):
    """A media type or content coding that is not taken."""

    reason: Final = "media_type"


class SlowSenderError(PermanentError):
    """A body did not come within its time."""

    reason: Final = "slow"


class SenderGoneError(PermanentError):
    """The client closed the connection before its body was whole; nobody waits for an answer."""

    reason: Final = "gone"


class OverloadError(BusyError):
    """More is in flight or waiting than there is room for.

    Args:
        text: what there was and what was expected.
        retry_after_s: when to try again; grows with the backlog.
    """

    reason: Final = "busy"

    def __init__(self, text: str, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(text)


class UndurableError(StorageError):
    """The disk did not take the request, so it is not acknowledged.

    Args:
        text: what the disk said.
        retry_after_s: when to try again; grows with the backlog.
    """

    reason: Final = "storage"

    def __init__(self, text: str, retry_after_s: int) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(text)


def reason_of(error: JoulegramError) -> str:
    """The label a refusal is counted under; what does not parse is ``malformed``."""
    return str(getattr(error, "reason", "malformed"))
