"""A measuring window: what an audience saw of a server, and what that took.

The server is asked for its figures right before and right after; between that and the window the
generator catches up with what was due meanwhile.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.audience import Audience, Window
from bench.server import MeasuredServer

SETTLE_S = 1.5  # from the first word to the window: encoders, jitter buffers, news of who came
CATCH_UP_S = 0.1  # with what was due while the server's figures were waited for


@dataclass(frozen=True, slots=True)
class Measured:
    """window: what the audience saw.  cpu_s: the server's, by the operating system.  before, after:
    its own figures (MeasuredServer.stats)."""

    window: Window
    cpu_s: float
    before: dict[str, Any]
    after: dict[str, Any]

    def each_tick(self, what: str) -> float:
        ticks: int = self.after["ticks"] - self.before["ticks"]
        count: int = self.after[what] - self.before[what]
        return count / max(1, ticks)

    @property
    def server_cpu(self) -> float:
        """As a share of one core."""
        return self.cpu_s / self.window.seconds

    @property
    def tick_lateness_ms(self) -> dict[str, float]:
        """p50, p99, max."""
        return {name: round(ms, 3) for name, ms in self.after["tick_lateness_ms"].items()}

    def figures(self) -> dict[str, Any]:
        """What every measurement of an audience gives; keys are stable, see capacity.measure."""
        window = self.window
        return {
            "seconds": round(window.seconds, 3),
            "expected": window.expected,
            "delivered": window.delivered,
            "loss": round(window.loss, 6),
            "skipped": window.skipped,
            "duplicates": window.duplicates,
            "reordered": window.reordered,
            "datagram_bytes": window.datagram_bytes,
            "server_cpu": round(self.server_cpu, 4),
            "tick_lateness_ms": self.tick_lateness_ms,
            "encodes_per_tick": round(self.each_tick("encodes"), 3),
            "sampled_frames": window.sampled_frames,
            "generator_cpu": round(window.generator_busy, 4),
            "generator_lateness_ms": window.generator_lateness_ms,
        }


def measure_window(
    server: MeasuredServer, audience: Audience, run: Callable[[float], None], seconds: float
) -> Measured:
    """Measures for this long.  run: lets so many seconds pass, for the audience at least; it is
    called twice, the second time for the window.  Raises ProcessError."""
    before = server.stats()
    run(CATCH_UP_S)
    audience.begin()
    before_s = server.process.cpu_s()
    run(seconds)
    cpu_s = server.process.cpu_s() - before_s
    return Measured(audience.end(), cpu_s, before, server.stats())
