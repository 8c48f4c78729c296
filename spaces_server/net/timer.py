"""A timer for ticks: the kernel's, exact to some ten microseconds, or else the event loop's.

Event loops count in milliseconds (uvloop's timers, epoll's timeout): all that waits for a tick
would wait half a millisecond more. Linux's timerfd_create(2) is a file that can be read when its
time has come; it counts as time.monotonic() does.
"""

import asyncio
import contextlib
import ctypes
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Protocol

_TFD_TIMER_ABSTIME = 1
_NS_PER_S = 1_000_000_000

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
AVAILABLE = hasattr(_libc, "timerfd_create")


class Alarm(Protocol):
    def cancel(self) -> None: ...


class Timer(Protocol):
    """The part of an event loop that a ticker needs; to be closed by who opened it."""

    def time(self) -> float:
        """Now, in seconds."""

    def call_at(self, when: float, callback: Callable[[], object], /) -> Alarm:
        """Call once, not before the time `when`. There is one alarm at a time: who sets another
        one cancels it before, or has been called."""

    def close(self) -> None: ...


class _Alarm:
    """What a timer is set to; nothing once it is cancelled."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class KernelTimer:
    """A timerfd."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Raises OSError if the system has none to give."""
        assert _libc is not None
        self._fd: int = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        # struct itimerspec: the interval (none), and the time
        self._spec = (ctypes.c_long * 4)()
        self._alarm: _Alarm | None = None
        self._loop = loop
        loop.add_reader(self._fd, self._expired)

    def time(self) -> float:
        return time.monotonic()

    def call_at(self, when: float, callback: Callable[[], object], /) -> Alarm:
        assert _libc is not None
        self._alarm = _Alarm(callback)
        when_ns = max(1, math.ceil(when * _NS_PER_S))  # 0 would mean never
        self._spec[2], self._spec[3] = divmod(when_ns, _NS_PER_S)
        _libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, self._spec, None)
        return self._alarm

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _expired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # set anew since
            return
        if self._alarm is not None and self._alarm.callback is not None:
            self._alarm.callback()


class LoopTimer:
    """The event loop's. What it counts in is rounded up, so that a callback that comes too early
    and is set again waits, instead of being set again and again."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._loop = loop
        self.time = clock

    def call_at(self, when: float, callback: Callable[[], object], /) -> Alarm:
        alarm = _Alarm(callback)
        self._wait(when, alarm)
        return alarm

    def close(self) -> None:
        """Nothing is open."""

    def _wait(self, when: float, alarm: _Alarm) -> None:
        wait_ms = max(0, math.ceil(1000 * (when - self.time())))
        self._loop.call_later(wait_ms / 1000, self._expired, when, alarm)

    def _expired(self, when: float, alarm: _Alarm) -> None:
        if alarm.callback is None:
            return
        if self.time() < when:
            self._wait(when, alarm)
        else:
            alarm.callback()


def timer_of(loop: asyncio.AbstractEventLoop) -> Timer:
    """The best that there is here."""
    if AVAILABLE:
        with contextlib.suppress(OSError):
            return KernelTimer(loop)
    return LoopTimer(loop)
