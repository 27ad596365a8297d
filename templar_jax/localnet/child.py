"""Becomes a program that the kernel kills when the process that started it is gone, however that ended.

    python child.py PARENT_PID PROGRAM ARGUMENTS...

Its own file, run by its path, so that nothing is imported before the tie holds. The signal is SIGKILL: it cannot be
late or unheard, and a node that is killed at any instant loses nothing accepted. Linux only; elsewhere the children
of a killed localnet.py go on until their windows are done.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def tie(parent: int) -> None:
    """Ends with `parent` from now on. The kernel keeps this over exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before the tie
        sys.exit(f"process {parent} that started this one is gone")


if __name__ == "__main__":
    tie(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
