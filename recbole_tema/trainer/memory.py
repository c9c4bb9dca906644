"""How freed memory is kept: without this, each training step asks the system for it anew."""

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
NEVER = -1  # of M_TRIM_THRESHOLD
OF_THE_USER = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def keep_freed_memory() -> bool:
    """Let this process use freed memory again where it would give it back to the system.

    glibc gives each block of more than 32 MB back when it is freed, and a softmax over 20,000 items
    has several in each step: the system then clears the same pages again and again
    (`benchmarks/freed_memory.py`). What a process computes stays the same; it holds what it once
    had, and half as much again, since blocks of changing sizes leave holes.

    Returns:
        Whether it is so from now on: not where the C library is another, nor where the user has
        set glibc's own variables (``MALLOC_...``, ``GLIBC_TUNABLES``).
    """
    asked = [*(name for name in OF_THE_USER if name in os.environ)]
    if asked or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, NEVER))
