"""Lines of the agent's protocol: the examples of its page, lines with all that can be in them, and their schema."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from joulegram_schemas import validator

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

Json = dict[str, Any]

SCHEMA = "agent-protocol-v1"
PAGE = Path(__file__).parents[2] / "docs" / "agent-protocol.md"

TICK: Json = {
    "seq": 7,
    "start_ns": "1700000000000000000",
    "end_ns": "1700000001000000000",
    "energy_uj": {"package-0": 41250000},
    "static_uj": {"package-0": 1250000},
    "gaps": [{"domain": "package-0/dram", "reason": "read_failed: EINVAL"}],
    "cpu_busy_ns": 730000000,
    "cpu_total_ns": 2000000000,
    "process_cpu_ns": {"4711": 310000000},
    "container_cpu_ns": {"container/ab": 1, "pod/u": 2, "pod/u/container/ab": 3},
    "process_gpu_ns": {"gpu-0": {"0": 5, "4711": 6}},
}
BATCH: Json = {
    "epoch": "boot-5",
    "source": "powercap",
    "method": "measured",
    "reason": "no_nvml: absent",
    "domains": [{"id": "package-0", "kind": "cpu", "max_range_uj": "262143328850"}],
    "ticks": [TICK],
    "more": True,
}
HELLO: Json = {
    "protocol": 1,
    **{key: BATCH[key] for key in ("epoch", "source", "method", "reason", "domains")},
    "capabilities": {"ops": ["hello"], "ticks": ["static"]},
    "publish_ns": "1000000000",
    "ring_s": 600,
}
WINDOW: Json = {
    "epoch": "boot-5",
    "start_ns": "1",
    "end_ns": "2000000001",
    "ticks": 2,
    "energy_uj": {"package-0": 5},
    "gaps": [{"domain": "*", "reason": "clock_step"}],
}
COUNTERS: Json = {
    "epoch": "boot-5",
    "at_ns": "5",
    "energy_uj": {"package-0": 5},
    "unplaced_uj": {"package-0": 0},
    "gaps": {"package-0": {"read_failed": 1}},
    "beside": [
        {
            "id": "hwmon/power_meter/power1",
            "kind": "board",
            "quantity": "power",
            "label": "System",
            "energy_uj": 5,
            "unplaced_uj": 0,
            "power_uw": 210000000,
            "gaps": {"read_failed": 1},
            "reason": "permission_denied: power1_average",
        }
    ],
}

FULL: dict[str, Json] = {
    "hello_request": {"v": 1, "id": 1, "op": "hello"},
    "ticks_request": {"v": 1, "id": "a", "op": "ticks", "after": 5},
    "subscribe_request": {"v": 1, "id": 1, "op": "subscribe", "after": "5"},
    "unsubscribe_request": {"v": 1, "id": 1, "op": "unsubscribe"},
    "name_request": {"v": 1, "id": 1, "op": "name", "pids": [4711]},
    "window_request": {"v": 1, "id": 1, "op": "window", "start_ns": "1", "end_ns": 1000000001},
    "counters_request": {"v": 1, "id": 1, "op": "counters"},
    "hello_result": HELLO,
    "ticks_result": BATCH,
    "subscribe_result": {"epoch": "boot-5", "after": 5},
    "unsubscribe_result": {},
    "name_result": {"named": [4711]},
    "window_result": WINDOW,
    "counters_result": COUNTERS,
    "answer": {"v": 1, "id": 1, "ok": True, "result": {"epoch": "boot-5", "after": 5}},
    "refusal": {"v": 1, "id": None, "ok": False, "error": {"code": "busy", "message": "64 connections are open"}},
    "event": {"v": 1, "id": 1, "event": "ticks", "batch": {**BATCH, "ticks": []}},
}
"""By the name of its part of the schema, a line or result that has every key that part knows."""


@functools.cache
def part(name: str) -> Draft202012Validator:
    """The validator of one of the schema's parts."""
    found: Any = validator(SCHEMA).evolve(schema={"$ref": f"urn:joulegram:schema:{SCHEMA}#/$defs/{name}"})
    return cast("Draft202012Validator", found)


def examples() -> list[Json]:
    """The page's examples, in order."""
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)]
