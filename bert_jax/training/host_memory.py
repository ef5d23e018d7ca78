"""How the C library hands memory back, which decides a tenth or more of a step on the CPU."""

import ctypes
import platform

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def keep_freed_memory() -> bool:
    """Tells glibc to keep what is freed for the next allocation, instead of giving it back.

    XLA allocates a CPU step's temporaries anew each time. By default glibc maps large blocks from
    the system and unmaps them when they are freed, so that every step has all of its pages faulted
    in and zeroed again. Worker threads' arenas cannot hold large blocks, so there is only one.

    To be called before much is allocated. The process then never shrinks.

    Returns:
      Whether it had an effect; elsewhere than on glibc there is none.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {_M_ARENA_MAX: 1, _M_TRIM_THRESHOLD: 2**31 - 1, _M_MMAP_THRESHOLD: 2**30}
    return all(mallopt(setting, value) == 1 for setting, value in settings.items())
