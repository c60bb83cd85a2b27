"""What tests of the SDK share: the two ways its accounts are kept."""

from __future__ import annotations

import pytest

from joulegram import native


@pytest.fixture(params=["native", "python"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Spans are charged by the compiled part, or by the Python that does without it."""
    chosen: str = request.param
    if chosen == "native" and native.LOADED is None:
        pytest.skip(f"the native part is {native.state()}")
    if chosen == "python":
        monkeypatch.setattr(native, "LOADED", None)
    return chosen
