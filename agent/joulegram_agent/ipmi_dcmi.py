"""DCMI's Get Power Reading: its request, and what a controller's answer says (DCMI 1.5, 6.6.1; IPMI 2.0, table 5-2).

Invariants:
    * the current power is taken. Mean, least and most are those of a period that the controller chooses, which may be
      a second or the days since its last reset;
    * a controller that says that it does not measure, and one that says 0 W while it answers, is a reason (D-10).
"""

from __future__ import annotations

import struct

from joulegram_agent.reasons import READ_FAILED

NETFN = 0x2C
"""Group extension; the group is DCMI's."""

CMD = 0x02
REQUEST = bytes((0xDC, 0x01, 0x00, 0x00))
"""DCMI; the statistics of the system's power; two bytes that are reserved."""

BMC_REFUSED = "bmc_refused"
NOT_MEASURING = "not_measuring"

# Completion code, group, watts (current, least, most, mean), time, period in milliseconds, state.
_ANSWER = struct.Struct("<BBHHHHIIB")
_GROUP = 0xDC
_MEASURES = 0x40
_UW_PER_W = 1_000_000

_COMPLETION = {
    0xC0: "node busy",
    0xC1: "invalid command: it has no DCMI, or no power in it",
    0xC2: "command invalid for this unit",
    0xC3: "timeout",
    0xC4: "out of space",
    0xC5: "reservation cancelled",
    0xC6: "request truncated",
    0xC7: "request length invalid",
    0xC8: "request too long",
    0xC9: "parameter out of range",
    0xCA: "cannot return that many bytes",
    0xCB: "sensor or record not present",
    0xCC: "invalid data field in request",
    0xCD: "command illegal for this sensor or record",
    0xCE: "no response could be provided",
    0xCF: "duplicated request",
    0xD0: "repository is being updated",
    0xD1: "firmware is being updated",
    0xD2: "controller is starting",
    0xD3: "destination unavailable",
    0xD4: "insufficient privilege",
    0xD5: "not supported in its present state",
    0xD6: "disabled",
    0xFF: "unspecified error",
}


def power_uw(answer: bytes) -> int | str:
    """The platform's power in microwatts, or the reason why there is none.

    Args:
        answer: its completion code first.
    """
    if answer and answer[0] != 0:
        words = _COMPLETION.get(answer[0], "a code of its own")
        return f"{BMC_REFUSED}: got completion code {answer[0]:#04x} ({words}), expected 0x00"
    if len(answer) < _ANSWER.size:
        return f"{READ_FAILED}: got {len(answer)} bytes {answer.hex()!r}, expected {_ANSWER.size}"
    _, group, watts, _, _, _, _, _, state = _ANSWER.unpack_from(answer)
    if group != _GROUP:
        return f"{READ_FAILED}: got group {group:#04x}, expected {_GROUP:#04x}"
    if not state & _MEASURES:
        return f"{NOT_MEASURING}: got state {state:#04x} beside {watts} W, expected bit 6: power is being measured"
    if watts == 0:
        return f"{NOT_MEASURING}: got 0 W of a machine that runs, expected more"
    return int(watts) * _UW_PER_W
