"""Programs under measurement, and the cores they have.

Load on the same core falsifies every figure, so what is measured has a core for itself and whoever
measures has another one.  Both run before other programs where the system permits, but for some
(`ordinary`, below): a generator that has to wait counts its own delays as the server's.
"""

import contextlib
import gc
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

MAX_LINES = 10_000  # of output that nobody has read yet; the oldest give way
ENDING_S = 20.0
LAST_WORDS = 3  # lines of what a program said that go into an error
TIED = Path(__file__).with_name("tied.py")

PRIORITY = 2  # above the server's own: where it has all cores, the generator must not wait for it

_PROCESS_CLOCK = 2  # CPUCLOCK_SCHED: clock_getcpuclockid(3) makes clock ids of process ids by it

_USABLE = os.sched_getaffinity(0)


class ProcessError(Exception):
    """A program does not do what is waited for; the text says which and what it said."""


def cores() -> tuple[int | None, int | None]:
    """-> (the measured program's, the generator's), on different cores of silicon if there are;
    (None, None) where there is only one for both."""
    usable = sorted(_USABLE)
    if len(usable) < 2:
        return None, None
    generators = usable[0]
    apart = [core for core in usable[1:] if core not in _siblings(generators)]
    return (apart or usable[1:])[0], generators


def _siblings(core: int) -> set[int]:
    """The hyperthreads of one core."""
    topology = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    try:
        text = topology.read_text()
    except OSError:
        return {core}
    ranges = re.findall(r"(\d+)(?:-(\d+))?", text)
    return {n for first, last in ranges for n in range(int(first), int(last or first) + 1)}


@contextlib.contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Within, this process has a core (None: any), and comes before other programs where it may, as
    does what it starts (see Process).  Afterwards all is as it was, for the next measurement."""
    affinity = os.sched_getaffinity(0)
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        if core is not None:
            os.sched_setaffinity(0, {core})
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(PRIORITY))
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)
        os.sched_setaffinity(0, affinity)


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Within, Python does not look for garbage: that would take long where there are thousands of
    clients, and what they have to send meanwhile would be late."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def _on(core: int | None) -> Iterator[None]:
    """What is started within inherits the core (None: all that there were at first)."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _USABLE if core is None else {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Process:
    """A program under measurement, on one core; what it costs is what the operating system says."""

    def __init__(
        self,
        stack: ExitStack,
        command: Sequence[str],
        *,
        core: int | None,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        ordinary: bool = False,
    ) -> None:
        """Starts it; it ends, at the latest, with the stack, or with this thread.  core: of
        cores(); None: any.  ordinary: it has no real-time priority, even if this process has, but
        comes before others that have none: the kernel takes 5 % of each second from a program with
        such priority that fills its core, and one that does not know (ours does, net/priority.py)
        would lose packets then.  Raises ProcessError if it cannot be started."""
        self.name = " ".join((Path(command[0]).name, *command[1:3]))
        if shutil.which(command[0]) is None:
            raise ProcessError(f"{self.name} cannot be started: there is no such program")
        self._errors = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack is its context)
        tie = (str(os.getpid()), "ordinary" if ordinary else "inherited")
        try:
            with _on(core):
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(TIED), *tie, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    cwd=cwd,
                    env=env,
                    text=True,
                    errors="replace",
                    start_new_session=True,  # Ctrl-C is ours to pass on
                )
        except OSError as error:
            raise ProcessError(f"{self.name} cannot be started: {error}") from error
        self.pid = self._process.pid
        stack.callback(self.stop)
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_LINES)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        """A program whose output nobody takes would stop at a full pipe."""
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self._put(line.rstrip("\n"))
        self._put(None)

    def _put(self, line: str | None) -> None:
        while True:
            try:
                return self._lines.put_nowait(line)
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    self._lines.get_nowait()

    def line(self, timeout_s: float) -> str:
        """The next line of its standard output.  Raises ProcessError if none comes in time."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise ProcessError(f"{self.name} says nothing for {timeout_s:g} s") from None
        if line is None:
            self._lines.put(None)  # for whoever asks again
            raise ProcessError(f"{self.name} has ended: {self._last_words()}")
        return line

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return " / ".join(lines[-LAST_WORDS:]) or "it said nothing"

    def cpu_s(self) -> float:
        """CPU time of all its threads, those that have ended too.  Raises ProcessError."""
        try:
            return time.clock_gettime_ns(~self.pid << 3 | _PROCESS_CLOCK) / 1e9
        except OSError:
            raise ProcessError(f"{self.name} has ended: {self._last_words()}") from None

    def rss_bytes(self) -> int:
        """Its memory that is in RAM.  Raises ProcessError."""
        try:
            pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        except (OSError, IndexError):
            raise ProcessError(f"{self.name} has ended: {self._last_words()}") from None
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> None:
        """Ends it, with SIGTERM first; may be called again."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(ENDING_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(ENDING_S)
