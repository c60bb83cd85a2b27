"""/debug/pipelines: figures for people and programs, and nothing in it that a browser would run."""

from __future__ import annotations

import json
from html.parser import HTMLParser

from joulegram_service.pipelines_page import Stage, as_html, as_json

STAGES = [
    Stage("receiver", {"in_flight_bytes": 12_345}, oldest_s=1.25),
    Stage("upstream <b>x</b>", {"state": "<script>alert(1)</script>"}, last_error="got '<&>'", since_s=3.4),
    Stage("ledger"),
]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on") or name == "src"]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_shows_each_stage_in_the_order_of_the_flow() -> None:
    """Holds, oldest, last error; what comes from outside is text."""
    page = Tags()
    page.feed(as_html(STAGES).decode())
    assert not {"script", "img", "link", "iframe"} & set(page.tags)
    text = " ".join(page.text)
    assert text.index("receiver") < text.index("upstream <b>x</b>") < text.index("ledger")
    for expected in ("in_flight_bytes: 12,345", "1.2 s", "state: <script>alert(1)</script>", "got '<&>'", "(3 s ago)"):
        assert expected in text


def test_as_json_it_is_the_same() -> None:
    """For programs."""
    stages = json.loads(as_json(STAGES))["stages"]
    assert [stage["name"] for stage in stages] == [stage.name for stage in STAGES]
    assert stages[0] == {
        "name": "receiver",
        "holds": {"in_flight_bytes": 12345},
        "oldest_s": 1.25,
        "last_error": None,
        "since_s": None,
    }
