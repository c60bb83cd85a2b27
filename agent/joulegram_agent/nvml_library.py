"""NVIDIA's management library (NVML), opened by name: the calls that energy needs.

It is called through `ctypes` and not through ``pynvml``, for three reasons: this process is privileged and keeps
to the standard library; ``pynvml`` takes 5 MiB and 60 ms to import, of the 20 MiB an agent may have; and it finds
the library under one name only, while a container may have the host's at a path of its own.

Invariants:
    * every call either gives its value or raises `NvmlError` with NVML's number and NVML's own words;
    * no call is repeated or waited for here. The interpreter runs on while one lasts: most take microseconds,
      some drivers take 100 ms with MIG (Kepler measured it), and the sampler lives with a slow sweep.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from joulegram_pipeline.errors import AgentError

LIBRARY = "libnvidia-ml.so.1"
"""The name under which the driver installs it."""

Handle = ctypes.c_void_p
"""What NVML calls ``nvmlDevice_t``: opaque, and dead once its board is gone."""

# The numbers of nvmlReturn_t that are treated apart; they never change (nvml.h).
NOT_SUPPORTED = 3
NO_PERMISSION = 4
NOT_FOUND = 6
INSUFFICIENT_SIZE = 7
DRIVER_NOT_LOADED = 9
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
LIB_RM_VERSION_MISMATCH = 18
GPU_NOT_FOUND = 28

_TEXT_BYTES = 96
"""NVML's longest buffer for a name or an UUID (NVML_DEVICE_UUID_V2_BUFFER_SIZE)."""


_SPARE_SAMPLES = 16
"""Room for processes that begin between two calls."""


class _RawSample(ctypes.Structure):
    """``nvmlProcessUtilizationSample_t`` (nvml.h)."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("timeStamp", ctypes.c_ulonglong),
        ("smUtil", ctypes.c_uint),
        ("memUtil", ctypes.c_uint),
        ("encUtil", ctypes.c_uint),
        ("decUtil", ctypes.c_uint),
    )


@dataclass(frozen=True, slots=True)
class ProcessSample:
    """How busy a process kept a board.

    Args:
        pid: in the namespace of the host.
        at_us: when, by the driver's clock.
        sm_percent: of the time since the sample before, in which something of the process ran on the board.
    """

    pid: int
    at_us: int
    sm_percent: int


class NvmlError(AgentError):
    """NVML refused a call.

    Args:
        call: the function.
        code: its number in ``nvmlReturn_t``.
        text: NVML's own words for it, or the loader's.
    """

    def __init__(self, call: str, code: int, text: str) -> None:
        self.call = call
        self.code = code
        self.text = text
        super().__init__(f'{call} says "{text}" ({code})')


class NvmlLibrary:
    """NVML, loaded and initialised.

    Args:
        name: of the shared library: a name the loader finds, or a path.

    Raises:
        NvmlError: it cannot be loaded, or refuses to start: no driver, no permission, another version than the
            driver's.
    """

    def __init__(self, name: str = LIBRARY) -> None:
        try:
            self._library = ctypes.CDLL(name)
        except OSError as error:
            raise NvmlError("dlopen", LIBRARY_NOT_FOUND, str(error)) from error
        self._open = False
        self._call("nvmlInit_v2")
        self._open = True

    def count(self) -> int:
        """How many boards there are; those this process may not open are counted."""
        number = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(number))
        return number.value

    def board_at(self, index: int) -> Handle:
        """The board at an index, from 0; the order is NVML's and may differ after the next start."""
        handle = Handle()
        self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
        return handle

    def board_of(self, uuid: str) -> Handle:
        """The board that has an UUID."""
        handle = Handle()
        self._call("nvmlDeviceGetHandleByUUID", ctypes.c_char_p(uuid.encode()), ctypes.byref(handle))
        return handle

    def uuid(self, handle: Handle) -> str:
        """The board's UUID, as ``GPU-`` and 36 characters; the same for the board's life."""
        return self._text("nvmlDeviceGetUUID", handle)

    def name(self, handle: Handle) -> str:
        """The board's product name."""
        return self._text("nvmlDeviceGetName", handle)

    def mig_enabled(self, handle: Handle) -> bool:
        """Whether the board is split into instances now; NOT_SUPPORTED on boards that cannot be."""
        current, pending = ctypes.c_uint(), ctypes.c_uint()
        self._call("nvmlDeviceGetMigMode", handle, ctypes.byref(current), ctypes.byref(pending))
        return current.value == 1

    def energy_mj(self, handle: Handle) -> int:
        """What the whole board spent since the driver was loaded, in millijoules.

        NOT_SUPPORTED before Volta and on most virtual boards. The counter moves every 20 to 100 ms.
        """
        energy = ctypes.c_ulonglong()
        self._call("nvmlDeviceGetTotalEnergyConsumption", handle, ctypes.byref(energy))
        return energy.value

    def power_mw(self, handle: Handle) -> int:
        """What the whole board draws, in milliwatts.

        Of the instant up to GA100; the mean of the last second on other Ampere boards and later ones. NVIDIA
        gives 5 % for the older ones.
        """
        power = ctypes.c_uint()
        self._call("nvmlDeviceGetPowerUsage", handle, ctypes.byref(power))
        return power.value

    def process_samples(self, handle: Handle, since_us: int) -> list[ProcessSample]:
        """What processes kept the board busy after an instant of the driver's clock; 0 is as far back as it knows.

        NOT_SUPPORTED with MIG and before Maxwell. No process is an empty list.
        """
        count = ctypes.c_uint(0)
        since = ctypes.c_ulonglong(since_us)
        try:
            self._call("nvmlDeviceGetProcessUtilization", handle, None, ctypes.byref(count), since)
        except NvmlError as error:
            if error.code == NOT_FOUND:
                return []
            if error.code != INSUFFICIENT_SIZE:
                raise
        count.value += _SPARE_SAMPLES
        samples = (_RawSample * count.value)()
        try:
            self._call("nvmlDeviceGetProcessUtilization", handle, samples, ctypes.byref(count), since)
        except NvmlError as error:
            if error.code == NOT_FOUND:
                return []
            raise
        return [ProcessSample(one.pid, one.timeStamp, one.smUtil) for one in samples[: count.value]]

    def close(self) -> None:
        """Give NVML back; a second call does nothing, and what a dead driver says to the first is of no use."""
        if self._open:
            self._open = False
            self._library.nvmlShutdown()

    def _text(self, call: str, *before: Handle) -> str:
        buffer = ctypes.create_string_buffer(_TEXT_BYTES)
        self._call(call, *before, buffer, ctypes.c_uint(_TEXT_BYTES))
        return buffer.value.decode("utf-8", "replace")

    def _call(self, name: str, *args: object) -> None:
        try:
            code = getattr(self._library, name)(*args)
        except AttributeError as error:
            raise NvmlError(name, FUNCTION_NOT_FOUND, "this library has no such function") from error
        if code != 0:
            raise NvmlError(name, code, self._words(code))

    def _words(self, code: int) -> str:
        describe = self._library.nvmlErrorString
        describe.restype = ctypes.c_char_p
        return (describe(ctypes.c_int(code)) or b"no words for it").decode("utf-8", "replace")
