"""How the memory of this process is managed."""

import ctypes

TRIM, MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
LARGEST_MMAP = 32 << 20  # the most that glibc takes


def keep_freed_memory() -> bool:
    """Have glibc keep freed memory for the next step of a training; whether it could be told so.

    By default it gives the large blocks of a step back to the system, which clears them before the next step has them
    again: a sixth of the time of a small network's step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # another C library, or Windows
        return False
    return bool(mallopt(TRIM, 2**31 - 1)) and bool(mallopt(MMAP, LARGEST_MMAP))
