"""How the C library treats memory that a step gives back.

Room: cli. No imports from Reticent.
"""

import ctypes
import os
import sys
from collections.abc import Mapping
from typing import Final

# From glibc's malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_NEVER: Final = -1
_LARGEST: Final = (1 << 31) - 1
# Who sets one of these has an allocator of their own, or settings of their own for this one.
_CHOSEN: Final = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Keep what a training step frees mapped, for the next one; so a process stays as large as it once was.

    By default glibc gives large pieces back to the system, which maps them anew, page by page, in each step.

    Args:
        environment: with variables in it that choose an allocator or its settings, these hold.

    Returns:
        Whether that was asked for; False where there is no glibc.
    """
    if sys.platform != "linux" or any(name.startswith(_CHOSEN) for name in environment):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    trimmed = libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    return bool(libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST)) and bool(trimmed)
