"""Becomes another program that ends when whoever started it does, however that ends.

    python tied.py PARENT SCHEDULING PROGRAM ARGUMENT...

    PARENT      the process id of who starts it
    SCHEDULING  `inherited`, or `ordinary`: SCHED_OTHER, whatever the parent's is, but as the first
                of such programs where the system permits

A measuring run that is killed cannot stop what it has started, and a server or a floor that goes on
with real-time priority would spoil every measurement after it.  The kernel can: PR_SET_PDEATHSIG,
which a program keeps when it becomes another one.  It is set here and not between fork and exec
(preexec_fn), where a process with threads must not do such things.

(The kernel means the thread that started it: let that be one that lives as long as the run.)
"""

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h

if __name__ == "__main__":
    parent, scheduling, *command = sys.argv[1:]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != int(parent):  # it had ended before
        sys.exit(1)
    if scheduling == "ordinary":
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -20)
        # Where each session is a group that shares the machine with others (sched(7)).
        with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as group:
            group.write("-20")
    os.execvp(command[0], command)
