"""The timer for ticks: on real event loops, and where a loop is early."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from spaces_server.net import timer as timer_module
from spaces_server.net.timer import KernelTimer, LoopTimer, timer_of
from tests.unit.test_net import LOOPS, run

KERNEL = pytest.param(
    KernelTimer,
    marks=pytest.mark.skipif(not timer_module.AVAILABLE, reason="this system has no timerfd"),
)
TIMERS = [KERNEL, LoopTimer]


@pytest.mark.parametrize("new_loop", LOOPS)
@pytest.mark.parametrize("new_timer", TIMERS)
def test_an_alarm_goes_off_once_and_a_cancelled_one_never(new_loop: Any, new_timer: Any) -> None:
    async def main() -> None:
        timer = new_timer(asyncio.get_running_loop())
        done = asyncio.Event()
        calls: list[str] = []
        when = timer.time() + 0.002

        def last() -> None:
            calls.append("last")
            done.set()

        def second() -> None:
            calls.append("second")
            timer.call_at(timer.time() - 1, last)  # its time has passed: at once

        timer.call_at(when, lambda: calls.append("first")).cancel()
        timer.call_at(when, second)
        await done.wait()
        assert time.monotonic() >= when
        await asyncio.sleep(0)
        assert calls == ["second", "last"]
        timer.call_at(timer.time(), lambda: calls.append("too late")).cancel()
        timer.call_at(timer.time(), done.clear)
        while done.is_set():
            await asyncio.sleep(0)
        timer.close()
        assert calls == ["second", "last"]

    run(new_loop, main())


@pytest.mark.skipif(not timer_module.AVAILABLE, reason="this system has no timerfd")
@pytest.mark.parametrize("new_loop", LOOPS)
def test_one_set_anew_after_its_time_waits_for_the_new_one(new_loop: Any) -> None:
    """The loop has seen already that the file can be read, and the time in it is another one."""

    async def main() -> None:
        timer = KernelTimer(asyncio.get_running_loop())
        calls: list[str] = []
        timer.call_at(timer.time() - 1, lambda: calls.append("old")).cancel()
        timer.call_at(timer.time() + 60, lambda: calls.append("new"))
        timer._expired()
        timer.close()
        assert not calls

    run(new_loop, main())


@pytest.mark.skipif(not timer_module.AVAILABLE, reason="this system has no timerfd")
@pytest.mark.parametrize("new_loop", LOOPS)
def test_a_closed_timer_leaves_no_file(new_loop: Any) -> None:
    async def main() -> None:
        files = os.listdir("/proc/self/fd")
        timer = KernelTimer(asyncio.get_running_loop())
        timer.call_at(timer.time() + 60, lambda: None)
        assert len(os.listdir("/proc/self/fd")) == len(files) + 1
        timer.close()
        await asyncio.sleep(0)
        assert os.listdir("/proc/self/fd") == files

    run(new_loop, main())


@pytest.mark.parametrize("without", ["function", "file"])
def test_where_the_kernel_gives_none_the_loop_is_the_timer(
    without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(loop: object) -> None:
        raise OSError("no more files")

    if without == "function":
        monkeypatch.setattr(timer_module, "AVAILABLE", False)
    else:
        monkeypatch.setattr(timer_module, "AVAILABLE", True)
        monkeypatch.setattr(timer_module, "KernelTimer", refused)

    async def main() -> None:
        assert isinstance(timer_of(asyncio.get_running_loop()), LoopTimer)

    asyncio.run(main())


class HastyLoop(asyncio.AbstractEventLoop):
    """Calls 0.4 ms too soon, but waits for a millisecond at least if it is to wait at all."""

    def __init__(self) -> None:
        self.now_s = 5.0
        self.calls: list[tuple[float, Callable[[], object]]] = []

    def clock(self) -> float:
        return self.now_s

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        self.calls.append((delay, lambda: callback(*args)))

    def turn(self) -> None:
        delay, callback = self.calls.pop()
        self.now_s += delay - 0.0004 if delay else 0
        callback()


def test_a_loop_that_is_early_is_asked_once_more() -> None:
    loop = HastyLoop()
    timer = LoopTimer(loop, loop.clock)
    calls: list[float] = []
    timer.call_at(5.02, lambda: calls.append(loop.now_s))
    loop.turn()
    assert not calls
    loop.turn()
    assert calls == [pytest.approx(5.0202)]
    assert not loop.calls
