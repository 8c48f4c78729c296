"""A measuring window of a peer: who talks takes turns, and what a server sends is counted.

due      | 0 | 1 | 2 | 0 | 1 | 2 | ...      turn n is due n intervals after the start
         |- warm-up -|--- window ---|
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.audience import MAX_BUSY, MAX_LATENESS_MS
from bench.peers.addresses import Addresses, Batch
from bench.polled import ROUND_NS, rest
from bench.process import Process

WARM_UP_S = 1.0


@dataclass(frozen=True, slots=True)
class Window:
    """How long was measured, what it cost the server, and how the generator was.

    busy: share of the time in which it did not rest, as in bench/audience.py.  late_ms: its own
    packets, p99.  dropped: datagrams, by the kernel, where the generator did not take them soon
    enough.
    """

    seconds: float
    cpu_s: float
    busy: float
    late_ms: float
    dropped: int

    def figures(
        self,
        expected: int,
        delivered: int,
        listener_ticks: float,
        delay_ms: float | None,
        *faults: tuple[bool, str],
    ) -> dict[str, Any]:
        """What a row has of it (bench/peers/run.py).  listener_ticks: 20 ms of all that one
        listener gets, how many.  delay_ms: None if nobody can tell.  faults: whether there is one,
        and what it is called, beside the generator's."""
        checks = (
            (self.busy > MAX_BUSY, f"the generator was busy {self.busy:.0%} of the time"),
            (
                self.late_ms > MAX_LATENESS_MS,
                f"the generator's packets left {self.late_ms:.1f} ms late (p99)",
            ),
            (self.dropped > 0, f"the generator's sockets dropped {self.dropped} datagrams"),
            *faults,
        )
        reasons = [text for there, text in checks if there]
        return {
            "seconds": self.seconds,
            "expected": expected,
            "delivered": delivered,
            "loss": max(0.0, 1 - delivered / max(1, expected)),
            "cpu_us_per_packet": 1e6 * self.cpu_s / max(1, delivered),
            "cpu_us_per_listener_tick": 1e6 * self.cpu_s / listener_ticks,
            "server_cpu": self.cpu_s / self.seconds,
            "delay_ms": delay_ms,
            "generator_busy": self.busy,
            "generator_lateness_ms": self.late_ms,
            "valid": not reasons,
            "reason": "; ".join(reasons),
        }


def late_p99_ms(late_ns: Sequence[int]) -> float:
    return float(np.percentile(late_ns or [0], 99)) / 1e6


def take_turns(
    server: Process,
    addresses: Addresses,
    seconds: float,
    interval_ns: float,
    *,
    begin: Callable[[], None],
    say: Callable[[int, int], None],
    hear: Callable[[Batch, int], None],
) -> Window:
    """Warms up, and measures for this long.

    begin(): the window begins.  say(turn, now_ns): it is this turn's time.  hear(batch, now_ns):
    something came.  Raises OSError, ProcessError.
    """
    turn = 0
    late_ns: list[int] = []
    busy_ns = 0
    before_s: float | None = None  # the server's CPU time when the window began
    dropped = addresses.dropped()
    start_ns = time.monotonic_ns()
    begin_ns = start_ns + int(WARM_UP_S * 1e9)
    end_ns = begin_ns + round(seconds * 1e9)
    while (now_ns := time.monotonic_ns()) < end_ns:
        if now_ns >= begin_ns and before_s is None:
            begin()
            before_s = server.cpu_s()
            busy_ns = 0
            late_ns.clear()
        round_ns, said_ns = now_ns + ROUND_NS, now_ns
        while (due_ns := start_ns + round(turn * interval_ns)) <= said_ns < round_ns:
            late_ns.append(said_ns - due_ns)
            say(turn, said_ns)
            turn += 1
            said_ns = time.monotonic_ns()
        batch = addresses.receive()
        if batch is not None:
            hear(batch, said_ns)
        busy_ns += time.monotonic_ns() - now_ns
        rest(min(due_ns, round_ns))
    assert before_s is not None
    return Window(
        seconds=seconds,
        cpu_s=server.cpu_s() - before_s,
        busy=busy_ns / (seconds * 1e9),
        late_ms=late_p99_ms(late_ns),
        dropped=addresses.dropped() - dropped,
    )
