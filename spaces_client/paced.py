"""Inputs and outputs without a device: real time comes from the event loop's clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import cycle
from typing import Any, Final, Protocol

import numpy as np

from protocol.profile import VOICE, Profile
from spaces_client.audio import (
    BLOCK_MS,
    BLOCK_SAMPLES,
    SAMPLE_RATE_HZ,
    AudioInput,
    AudioOutput,
    Pull,
    Push,
    Samples,
)

_MAX_BEHIND_S: Final = 0.2


class Scheduler(Protocol):
    """What is needed of an event loop: its clock (the monotonic one, in seconds) and a timer."""

    def time(self) -> float: ...

    def call_at(self, when: float, callback: Callable[[], object], /) -> Any:
        """Call once at the time `when`; the result has a `cancel()`."""
        ...


class Ticker:
    """Calls `tick(deadline_ns)` each 20 ms, or as often as wanted, at absolute deadlines, so the
    pace does not drift.

    A little lateness is caught up with at once; after a long halt (a suspended laptop) the missed
    ticks are skipped, because late audio is of no use.
    """

    def __init__(
        self, tick: Callable[[int], None], scheduler: Scheduler, every_ms: float = BLOCK_MS
    ) -> None:
        self._tick = tick
        self._every_s = every_ms / 1000
        self._scheduler = scheduler
        self._deadline_s = scheduler.time()
        self._timer: Any = scheduler.call_at(self._deadline_s, self._run)

    def cancel(self) -> None:
        self._timer.cancel()

    def postpone(self, by_s: float) -> None:
        """All deadlines from now on are so much later."""
        self._timer.cancel()
        self._deadline_s += by_s
        self._timer = self._scheduler.call_at(self._deadline_s, self._run)

    def _run(self) -> None:
        deadline_s = self._deadline_s
        now_s = self._scheduler.time()
        if now_s - deadline_s > _MAX_BEHIND_S:
            deadline_s = now_s
        # Set before the tick, so that the tick may cancel it.
        self._deadline_s = deadline_s + self._every_s
        self._timer = self._scheduler.call_at(self._deadline_s, self._run)
        self._tick(round(deadline_s * 1e9))


class Looped(AudioInput):
    """A sound over and over: what does not fill the last 20 ms of it is left out."""

    def __init__(self, sound: Samples) -> None:
        """sound: float32 (n,) at 48 kHz, 20 ms at least."""
        self._sound = sound[: len(sound) // BLOCK_SAMPLES * BLOCK_SAMPLES]
        self._ticker: Ticker | None = None

    def start(self, push: Push, profile: Profile = VOICE) -> None:
        blocks = cycle(self._sound.reshape(-1, profile.frame_samples))
        self._ticker = Ticker(
            lambda now_ns: push(next(blocks).copy(), now_ns),
            asyncio.get_running_loop(),
            profile.frame_samples / 48,
        )

    def postpone(self, samples: int) -> int:
        if self._ticker is None:
            return 0
        self._ticker.postpone(samples / SAMPLE_RATE_HZ)
        return samples

    async def finished(self) -> None:
        await asyncio.Event().wait()  # never

    def stop(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None


class Listen(AudioOutput):
    """Plays into nothing: takes what is to be heard every 20 ms, or, as a device would, as often as
    the profile says."""

    def __init__(self, *, as_device: bool = False) -> None:
        self.out: Samples = np.zeros(BLOCK_SAMPLES, np.float32)  # what was taken last
        self._as_device = as_device
        self._ticker: Ticker | None = None

    def start(self, pull: Pull, profile: Profile = VOICE) -> None:
        if self._as_device:
            self.out = np.zeros(profile.period_samples, np.float32)

        def tick(now_ns: int) -> None:
            pull(self.out, now_ns)
            self.taken()

        self._ticker = Ticker(tick, asyncio.get_running_loop(), len(self.out) / 48)

    def taken(self) -> None:
        """For whoever wants to know of `out`."""

    def stop(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
