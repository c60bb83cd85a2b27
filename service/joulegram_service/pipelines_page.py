"""/debug/pipelines: what each stage of the sidecar holds, how old the oldest of it is, and what last went wrong."""

from __future__ import annotations

import html
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the flow (docs/architecture.md), as it stands at this moment.

    Args:
        name: as the picture of the flow names it.
        holds: figures with their units in the keys, ``{"bytes": 12, "spans": 3}``.
        oldest_s: age of the oldest thing it holds; None where it holds nothing, or nothing that waits.
        last_error: the last sentence of trouble, be it over or not; None where there was none since the start.
        since_s: how long ago that was.
    """

    name: str
    holds: dict[str, int | float | str] = field(default_factory=dict)
    oldest_s: float | None = None
    last_error: str | None = None
    since_s: float | None = None


def as_json(stages: Sequence[Stage]) -> bytes:
    """The page for programs: ``{"stages": [...]}``."""
    return json.dumps({"stages": [asdict(stage) for stage in stages]}, indent=2).encode() + b"\n"


def as_html(stages: Sequence[Stage]) -> bytes:
    """The page for people: a table, no script, no resource from elsewhere."""
    rows = "".join(
        f"<tr><th scope=row>{html.escape(stage.name)}</th>"
        f"<td>{'<br>'.join(f'{html.escape(key)}: {_number(value)}' for key, value in stage.holds.items()) or '-'}</td>"
        f"<td>{'-' if stage.oldest_s is None else f'{stage.oldest_s:.1f} s'}</td>"
        f"<td>{_trouble(stage)}</td></tr>"
        for stage in stages
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>joulegram pipelines</title>"
        "<style>body{font:14px/1.4 system-ui,sans-serif;margin:2em}table{border-collapse:collapse}"
        "th,td{border:1px solid #bbb;padding:.3em .8em;text-align:left;vertical-align:top}</style>"
        "<h1>Pipelines</h1><p>From the job to the records, in the order of the flow. "
        '<a href="?format=json">As JSON</a>.'
        "<table><thead><tr><th>stage<th>holds<th>oldest<th>last error</tr></thead>"
        f"<tbody>{rows}</tbody></table></html>\n"
    ).encode()


def _number(value: float | str) -> str:
    return html.escape(value) if isinstance(value, str) else f"{value:,}"


def _trouble(stage: Stage) -> str:
    if stage.last_error is None:
        return "-"
    ago = "" if stage.since_s is None else f" ({stage.since_s:.0f} s ago)"
    return html.escape(stage.last_error) + ago
