"""Why a counter gives no energy: the codes that reasons begin with, and which errors of the kernel they stand for.

Invariants:
    * a reason begins with a code, so that gaps can be counted by few values; details follow after a colon.
"""

from __future__ import annotations

import errno

NO_POWERCAP = "no_powercap"
MASKED = "masked"
NO_MSR = "no_msr"
NO_PERF = "no_perf"
NO_CGROUPS = "no_cgroups"
NO_HWMON = "no_hwmon"
PERMISSION_DENIED = "permission_denied"
DOMAIN_VANISHED = "domain_vanished"
READ_FAILED = "read_failed"

_GONE = frozenset({errno.ENOENT, errno.ENODEV, errno.ENXIO})
_DENIED = frozenset({errno.EACCES, errno.EPERM})


def is_denied(error: OSError) -> bool:
    """Whether the kernel refused for want of a permission."""
    return error.errno in _DENIED


def is_gone(error: OSError) -> bool:
    """Whether what was to be opened or read is not there, or no longer."""
    return error.errno in _GONE


def errno_name(error: OSError) -> str:
    """``EIO`` and the like; the error's own words where it has no number."""
    return errno.errorcode.get(error.errno or 0, str(error))


def why(error: OSError) -> str:
    """The reason of a gap that this error left."""
    if is_denied(error):
        return PERMISSION_DENIED
    if is_gone(error):
        return DOMAIN_VANISHED
    return f"{READ_FAILED}: {errno_name(error)}"
