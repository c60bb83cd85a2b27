"""One sidecar for the whole list: what it is asked does not depend on what it was asked before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from receiver.conformance.hop import Hop, running

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def hop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hop]:
    """A sidecar between its clients and an upstream."""
    with running(tmp_path_factory.mktemp("hop"), Hop) as found:
        yield found
