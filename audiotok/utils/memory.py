"""How a process of ours keeps memory on a CPU."""

import atexit
import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # M_TRIM_THRESHOLD and so on, of malloc.h


def keep_freed_memory() -> None:
    """Let glibc's malloc keep what is freed, to give it out again.

    By default it fetches every block above some megabytes from the system and returns it when it is freed. A
    convolution over a second of audio makes such blocks by the dozen, and the system clears each one anew, page by
    page: a quarter of a training step, and more than half of encoding. All threads share one pool: those of their own
    consist of pieces of 64 MiB, which large blocks fill badly. The most memory that a process holds stays about the
    same. To be called before the first thread starts. Elsewhere than on glibc, and where the environment sets
    `MALLOC_…`, nothing is changed.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        library = ctypes.CDLL(None)
        mallopt, trim = library.mallopt, library.malloc_trim
    except (OSError, AttributeError):  # another library, such as musl
        return
    mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    atexit.register(trim, 0)  # what ends then, CUDA's libraries, takes 120 MiB for it
