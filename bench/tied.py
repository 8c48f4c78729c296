"""Becomes another program that ends when whoever started it does, however that ends.

    python tied.py PARENT PROGRAM ARGUMENT...       PARENT: the process id of who starts it

A measuring run that is killed cannot stop what it has started, and a server or a floor that goes on
with real-time priority would spoil every measurement after it.  The kernel can: PR_SET_PDEATHSIG,
which a program keeps when it becomes another one.  It is set here and not between fork and exec
(preexec_fn), where a process with threads must not do such things.

(The kernel means the thread that started it: let that be one that lives as long as the run.)
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h

if __name__ == "__main__":
    parent, *command = sys.argv[1:]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != int(parent):  # it had ended before
        sys.exit(1)
    os.execvp(command[0], command)
