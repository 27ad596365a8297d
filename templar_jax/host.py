"""What a process asks of its host before JAX starts."""

import os
import sys

TUNABLES = "GLIBC_TUNABLES"


def huge_pages() -> None:
    """Restarts this Python, same process id, with glibc asking the kernel for huge pages. Call first in a script.

    XLA on CPU allocates its temporaries anew in every step; with pages of 4 KiB the kernel spends 12 to 25 % of an
    inner step on faults (measured: docs/decisions.md). glibc reads the setting only when a process starts. Does
    nothing elsewhere than on Linux, or where the variable is set already; a libc that does not know it ignores it.
    """
    if sys.platform != "linux" or TUNABLES in os.environ:
        return
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, TUNABLES: "glibc.malloc.hugetlb=1"})
