"""Keeps every CUDA device busy for a time: the load of benchmarks/nvml.py where none is given.

    python benchmarks/nvml_load.py --seconds 20

It needs the driver's own libcuda and nothing else: the kernel is PTX, which the driver compiles for the board that is
there (Volta and later, as the energy counter). Every thread of it iterates y = 1 - 1.9 y² in four places, which never
settles, so that the arithmetic units have something to switch; memory is left alone.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import time
from dataclasses import dataclass

LIBRARY = "libcuda.so.1"
THREADS, BLOCKS_AN_SM, TURNS = 256, 16, 200_000
"""A launch is some 50 ms: short enough to end when it is time, long enough that the gaps between do not count."""

_MULTIPROCESSORS = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT (cuda.h)

PTX = b"""
.version 6.0
.target sm_70
.address_size 64
.visible .entry busy(.param .u64 out, .param .u32 turns)
{
    .reg .pred %p1;
    .reg .b32 %r<3>;
    .reg .b64 %rd<3>;
    .reg .f32 %y<5>, %t<5>, %a, %one;
    ld.param.u64 %rd1, [out];
    ld.param.u32 %r1, [turns];
    mov.f32 %one, 0f3F800000;
    mov.f32 %a, 0fBFF33333;
    mov.u32 %r2, %tid.x;
    cvt.rn.f32.u32 %y1, %r2;
    mul.f32 %y1, %y1, 0f3A800000;
    add.f32 %y2, %y1, 0f3E000000;
    add.f32 %y3, %y1, 0f3E800000;
    add.f32 %y4, %y1, 0f3F000000;
again:
    mul.f32 %t1, %y1, %y1;
    mul.f32 %t2, %y2, %y2;
    mul.f32 %t3, %y3, %y3;
    mul.f32 %t4, %y4, %y4;
    fma.rn.f32 %y1, %t1, %a, %one;
    fma.rn.f32 %y2, %t2, %a, %one;
    fma.rn.f32 %y3, %t3, %a, %one;
    fma.rn.f32 %y4, %t4, %a, %one;
    sub.u32 %r1, %r1, 1;
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra again;
    add.f32 %y1, %y1, %y2;
    add.f32 %y3, %y3, %y4;
    add.f32 %y1, %y1, %y3;
    cvta.to.global.u64 %rd2, %rd1;
    st.global.f32 [%rd2], %y1;
    ret;
}
\0"""
"""What is stored keeps the compiler from leaving the loop out; all threads store to one place, and nobody reads it."""


class CudaError(Exception):
    """The driver refused a call, or is not there."""


@dataclass(frozen=True, slots=True)
class Device:
    """What a launch on one device needs; all of it is opaque."""

    context: ctypes.c_void_p
    kernel: ctypes.c_void_p
    blocks: int
    arguments: ctypes.Array[ctypes.c_void_p]
    kept: tuple[object, ...]
    """What `arguments` points at, and must live as long."""


class Cuda:
    """The driver's library, loaded and initialised.

    Raises:
        CudaError: it cannot be loaded, or refuses; from every method.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise CudaError(str(error)) from error
        self.call("cuInit", ctypes.c_uint(0))

    def call(self, name: str, *args: object) -> None:
        code = getattr(self._library, name)(*args)
        if code != 0:
            words = ctypes.c_char_p()
            self._library.cuGetErrorString(ctypes.c_int(code), ctypes.byref(words))
            raise CudaError(f'{name} says "{(words.value or b"no words for it").decode()}" ({code})')

    def devices(self) -> list[Device]:
        """Every device, with the kernel on it; expects at least one."""
        count = ctypes.c_int()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        if count.value == 0:
            raise CudaError(f"got 0 devices from {LIBRARY}, expected at least 1")
        return [self._device(number) for number in range(count.value)]

    def _device(self, number: int) -> Device:
        device, multiprocessors = ctypes.c_int(), ctypes.c_int()
        context, module, kernel = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        out, turns = ctypes.c_uint64(), ctypes.c_uint32(TURNS)
        self.call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(number))
        self.call("cuDeviceGetAttribute", ctypes.byref(multiprocessors), ctypes.c_int(_MULTIPROCESSORS), device)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        self.call("cuModuleLoadData", ctypes.byref(module), PTX)
        self.call("cuModuleGetFunction", ctypes.byref(kernel), module, b"busy")
        self.call("cuMemAlloc_v2", ctypes.byref(out), ctypes.c_size_t(4))
        places = (ctypes.c_void_p * 2)(ctypes.addressof(out), ctypes.addressof(turns))
        return Device(context, kernel, multiprocessors.value * BLOCKS_AN_SM, places, (out, turns))

    def launch(self, device: Device) -> None:
        """Begin one launch and do not wait for it."""
        self.call("cuCtxSetCurrent", device.context)
        one, threads, none = ctypes.c_uint(1), ctypes.c_uint(THREADS), ctypes.c_void_p()
        grid = (ctypes.c_uint(device.blocks), one, one)
        shared_bytes, stream = ctypes.c_uint(0), none
        self.call(
            "cuLaunchKernel", device.kernel, *grid, threads, one, one, shared_bytes, stream, device.arguments, none
        )

    def wait(self, device: Device) -> None:
        """Wait for what was launched."""
        self.call("cuCtxSetCurrent", device.context)
        self.call("cuCtxSynchronize")


def burn(seconds: float) -> int:
    """Keep every device busy; how many launches it took."""
    cuda = Cuda()
    devices = cuda.devices()
    end, launches = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        for step in (cuda.launch, cuda.launch, cuda.wait):
            for device in devices:
                step(device)
        launches += 2 * len(devices)
    return launches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="default 20")
    seconds = parser.parse_args().seconds
    try:
        launches = burn(seconds)
    except CudaError as error:
        sys.exit(f"no CUDA load: {error}")
    print(f"{launches} launches in {seconds:g} s", flush=True)


if __name__ == "__main__":
    main()
