"""A setting of the C library's memory allocator."""

import ctypes


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next use instead of handing it back to the kernel.

    A training step on CPU allocates and frees the same hundreds of megabytes again and again; faulting those pages in
    anew took 10 to 25 % of a quickstart step (docs/archive/log.md), and a quarter of the explorer's time for 50,257
    tokens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc
        return
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, -1)
