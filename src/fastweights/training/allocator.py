"""The C library's allocator: freed blocks stay in the process for the next training step (glibc's mallopt).

By default glibc returns large freed blocks to the system, and the next step pays for thousands of page faults: a tenth
of its time on a CPU.
"""

import ctypes
import platform

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # malloc.h


def keep_freed_blocks() -> bool:
    """Make the allocator keep freed blocks of any size; False where it is not glibc's (most Linux)."""
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(MMAP_MAX, 0) and library.mallopt(TRIM_THRESHOLD, 2**31 - 1))
