"""Takes memory from the host of a virtual machine before the clock runs.

A guest whose balloon reports free pages hands freed memory back after two seconds, and gets it again page by page, at
1 to 9 ms a MiB (seen with perf as time in memset of a fresh folio). Whoever appends first after a pause pays for that,
and a mapping, which asks for large folios, pays more than small writes do. So each contestant starts with that much
free memory that the host has given.
"""

from __future__ import annotations

import contextlib
import mmap

HUGE_PAGE = 2 << 20
POPULATE_WRITE = 23  # MADV_POPULATE_WRITE; Python 3.11 has no name for it


def take(size: int) -> None:
    """Touches `size` bytes and frees them again; where the system cannot, nothing happens."""
    size = -(-size // HUGE_PAGE) * HUGE_PAGE
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with memory, contextlib.suppress(OSError, AttributeError):
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory.madvise(POPULATE_WRITE)
