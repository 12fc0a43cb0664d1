"""The C library's allocator: freed blocks stay in the process for the next training step (glibc's mallopt).

By default glibc returns large freed blocks to the system, and the next step pays for thousands of page faults: a tenth
of its time on a CPU.
"""

import ctypes
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST_BLOCK = 1 << 25  # glibc takes no more


def keep_freed_blocks() -> bool:
    """Make the allocator keep freed blocks of up to 32 MB; False where it is not glibc's (most Linux)."""
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(MMAP_THRESHOLD, LARGEST_BLOCK) and library.mallopt(TRIM_THRESHOLD, 2**31 - 1))
