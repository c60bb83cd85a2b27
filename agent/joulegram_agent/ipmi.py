"""The platform's power as its management controller tells it (IPMI, DCMI), over ``/dev/ipmi0``.

1. A read sends one request and waits in `poll` for the answer that bears its number, `DEADLINE_S` at most.
2. Where none comes, the second is a gap. The answer that comes later is for a request that is over: it is discarded.
3. After each failure in a row twice as many seconds pass before it is asked again, up to `MOST_READS`.

Invariants:
    * a controller answers in 5 to 50 ms, or hangs for seconds. Reads are made in the thread of the sensors, and last
      among them: neither the sampling of counters nor another sensor waits for the controller;
    * it is power, added up between reads as an ACPI power meter's is, which often tells the same. Both are shown, and
      are in no sum (D-04).
"""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING

from joulegram_agent.ipmi_dcmi import CMD, NETFN, REQUEST, power_uw
from joulegram_agent.ipmi_device import IpmiDevice
from joulegram_agent.reasons import READ_FAILED, is_gone, why
from joulegram_agent.sensors import Quantity, Sensor, SensorKind

if TYPE_CHECKING:
    from pathlib import Path

DEVICES = ("ipmi0", "ipmi/0", "ipmidev/0")
"""The names under which the first controller is found, which depend on udev's age."""

SENSOR_ID = "ipmi/0/power"

DEADLINE_S = 0.5
"""Half of the second between two reads."""

MOST_READS = 60
"""A controller that fails is asked once in so many reads at least."""

BMC_LATE = "bmc_late"

_SIGNS = ("bus/acpi/devices/IPI0001:*", "firmware/dmi/entries/38-*", "bus/platform/devices/dmi-ipmi-*")


class IpmiProbe:
    """One controller; it is opened at the start and stays so, whoever the agent becomes.

    Args:
        device: open; or the reason why it is not.
    """

    def __init__(self, device: IpmiDevice | str) -> None:
        self.sensor = Sensor(SENSOR_ID, SensorKind.BOARD, Quantity.POWER)
        self._device = device
        self._msgid = 0
        self._failures = 0
        self._pauses = 0
        self._reason = ""

    def read(self) -> int | str:
        if isinstance(self._device, str):
            return self._device
        if self._pauses > 0:
            self._pauses -= 1
            return self._reason
        value = self._ask(self._device)
        if isinstance(value, str):
            self._reason = value
            self._pauses = min(2**self._failures, MOST_READS) - 1
            self._failures = min(self._failures + 1, MOST_READS)
        else:
            self._failures = 0
        return value

    def close(self) -> None:
        if isinstance(self._device, IpmiDevice):
            self._device.close()
            self._device = f"{READ_FAILED}: closed"

    def _ask(self, device: IpmiDevice) -> int | str:
        self._msgid += 1
        until_s = time.monotonic() + DEADLINE_S
        ready = select.poll()
        ready.register(device, select.POLLIN)
        try:
            device.send(self._msgid, NETFN, CMD, REQUEST)
            while ready.poll(max(0.0, until_s - time.monotonic()) * 1_000):
                response = device.receive()
                if response is not None and response.msgid == self._msgid:
                    return power_uw(response.data)
        except OSError as error:
            return why(error)
        return f"{BMC_LATE}: got no answer in {DEADLINE_S:g} s"


def ipmi_probes(dev_root: Path) -> list[IpmiProbe]:
    """A probe for the first controller. Never raises: no device is no controller, one that is refused is a reason.

    Args:
        dev_root: ``/dev``, or where the host's is mounted.
    """
    for name in DEVICES:
        try:
            return [IpmiProbe(IpmiDevice(dev_root / name))]
        except OSError as error:
            if not is_gone(error):
                return [IpmiProbe(why(error))]
    return []


def has_controller(sysfs_root: Path) -> bool:
    """Whether ACPI or the firmware's tables tell of a controller, device or not."""
    return any(next(sysfs_root.glob(sign), None) is not None for sign in _SIGNS)
