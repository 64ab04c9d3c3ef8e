"""glibc's allocator, told to return to the system what images occupied."""

import ctypes
import sys

# As in <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_ARENAS = 2
_MMAP_BYTES = 128 * 1024


def return_freed_memory() -> None:
    """Call it before threads start; does nothing where the C library is another one.

    glibc raises the size from which it maps a block of its own as such blocks are freed, up to 32 MB; images then lie
    between small objects in heaps, one a thread, which never shrink. A size that is set stays as it is.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)
        mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _MMAP_BYTES)
