"""What a measurement starts ends with it, however it ends."""

import os
import select
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.process import Process, ProcessError, pinned

PATIENCE_MS = 20_000

# Says its process id, and holds the pipe open for as long as it lives.
CHILD = """\
import os, sys, time
pipe = os.open(sys.argv[1], os.O_WRONLY)
os.write(pipe, b"%d" % os.getpid())
print("ready", flush=True)
time.sleep(600)
"""
PARENT = """\
import sys
from contextlib import ExitStack
from bench.process import Process

with ExitStack() as stack:
    child = Process(stack, [sys.executable, "-c", *sys.argv[1:]], core=None)
    child.line(20)
    print(child.pid, flush=True)
    sys.stdin.read()
"""


def read(pipe: int) -> bytes:
    """What comes next; b'' when nobody holds the other end any more."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN | select.POLLHUP)
    assert poll.poll(PATIENCE_MS), "nothing comes"
    return os.read(pipe, 100)


def test_a_child_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with ExitStack() as stack:
        pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        stack.callback(os.close, pipe)
        parent = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", PARENT, CHILD, str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        stack.callback(parent.kill)
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert read(pipe) == b"%d" % child, "it is not the process that is measured"
        os.kill(child, 0)
        parent.send_signal(signal.SIGKILL)
        assert read(pipe) == b""


@pytest.mark.parametrize("ordinary", [False, True])
def test_a_child_comes_before_other_programs_unless_it_is_to_be_ordinary(ordinary: bool) -> None:
    code = "import os; print(os.sched_getscheduler(0), os.nice(0))"
    command = [sys.executable, "-c", code]
    with ExitStack() as stack:
        stack.enter_context(pinned(None))
        own = os.sched_getscheduler(0)  # SCHED_RR, where that is permitted
        child = Process(stack, command, core=None, ordinary=ordinary)
        policy, nice = map(int, child.line(20).split())
        assert policy == (os.SCHED_OTHER if ordinary else own)
        assert nice in ((-20, os.nice(0)) if ordinary else (os.nice(0),))  # if permitted
        assert os.sched_getscheduler(0) == own, "who measures does not change"


def test_a_program_that_is_not_there_is_said_to_be_missing() -> None:
    with ExitStack() as stack, pytest.raises(ProcessError, match="no such program"):
        Process(stack, ["/nowhere/at-all"], core=None)


def test_a_child_ends_with_the_stack_and_its_errors_are_told() -> None:
    with ExitStack() as stack:
        child = Process(stack, [sys.executable, "-c", "raise SystemExit('why')"], core=None)
        with pytest.raises(ProcessError, match="has ended: why"):
            child.line(20)
