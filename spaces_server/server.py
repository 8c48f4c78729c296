"""The shell around the node: a socket, a clock, threads, signals.

Everything runs in one event loop; only the codec leaves it, for the time of a tick.
"""

import asyncio
import json
import logging
import os
import resource
import signal
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TextIO

from protocol.connection import MS
from spaces_server.mixer.source import FRAME_SAMPLES
from spaces_server.net.ticker import Ticker
from spaces_server.net.transport import Transport, open_transport
from spaces_server.node import Limits, Node

TICK_NS = 20 * MS
REPORT_TICKS = 3_000  # a line in the log each minute
GOODBYE_S = 1.0  # how long clients have to hear that the server stops

log = logging.getLogger("spaces")


def _each(work: Callable[[Any], Any], jobs: list[Any]) -> list[Any]:
    return [work(job) for job in jobs]


class Server:
    """One server process.  `start`, then `wait`, which ends after `stop` or a signal."""

    def __init__(
        self, private_key: bytes, limits: Limits, stats_file: TextIO | None = None
    ) -> None:
        self._threads = os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="encode")
        self.node = Node(
            private_key,
            entropy=os.urandom,
            parallel_map=self._parallel_map,
            limits=limits,
            log=log.info,
        )
        self._stats_file = stats_file
        self._transport: Transport | None = None
        self._ticker: Ticker | None = None
        self._stopping = asyncio.Event()
        self._most_sessions = 0

    def _parallel_map(self, work: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterable[Any]:
        """A share of the jobs for each core, the first for this thread: handing a job over and
        waking a thread for it costs about as much as an encode."""
        jobs = list(jobs)
        shares = [jobs[first :: self._threads] for first in range(self._threads)]
        others = [self._pool.submit(_each, work, share) for share in shares[1:] if share]
        done = [_each(work, shares[0]), *(other.result() for other in others)]
        return [done[n % self._threads][n // self._threads] for n in range(len(jobs))]

    @property
    def port(self) -> int:
        assert self._transport is not None
        return self._transport.local_port

    async def start(self, host: str, port: int) -> None:
        """Raises TransportError if the port cannot be had."""
        self._transport = await open_transport(host, port, self._receive)
        loop = asyncio.get_running_loop()
        self._ticker = Ticker(TICK_NS, self._tick, loop)
        self._ticker.start()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stop)

    def stop(self) -> None:
        self._stopping.set()

    async def wait(self) -> None:
        """Until stopped: tells the clients, writes the figures, frees everything."""
        await self._stopping.wait()
        log.info("stopping, and telling the clients")
        self.node.shut_down(time.monotonic_ns())
        loop = asyncio.get_running_loop()
        end = loop.time() + GOODBYE_S
        self._send_control()
        while self.node.endpoint.talking and loop.time() < end:
            await asyncio.sleep(TICK_NS / 1e9)
        assert self._ticker is not None
        assert self._transport is not None
        self._ticker.stop()
        self._transport.close()
        self._pool.shutdown()
        if self._stats_file is not None:
            json.dump(self.stats(), self._stats_file)
        log.info("stopped")

    def _receive(self, datagrams: list[tuple[bytes, bytes]]) -> None:
        now_ns = time.monotonic_ns()
        for data, address in datagrams:
            self.node.receive_datagram(data, address, now_ns)
        self._send_control()

    def _tick(self, now_ns: int) -> None:
        assert self._ticker is not None
        assert self._transport is not None
        number = self._ticker.ticks + self._ticker.skipped
        batch = self.node.tick(number * FRAME_SAMPLES & 0xFFFF_FFFF, now_ns)
        if batch is not None:
            self._transport.send_batch(batch.arena, batch.lengths, batch.addresses)
        self._send_control()
        self._most_sessions = max(self._most_sessions, len(self.node.endpoint.sessions))
        if self._ticker.ticks % REPORT_TICKS == 0:
            self._report()

    def _send_control(self) -> None:
        assert self._transport is not None
        for data, address in self.node.drain(time.monotonic_ns()):
            self._transport.send(data, address)

    def _report(self) -> None:
        assert self._ticker is not None
        if self.node.endpoint.sessions:
            log.info(
                "%d people in %d spaces; ticks are late by %.1f ms at most of 99 in 100",
                len(self.node.endpoint.sessions),
                len(self.node.spaces),
                self._ticker.lateness()["p99"],
            )

    def stats(self) -> dict[str, Any]:
        """Figures since the start; keys are stable, see README."""
        assert self._ticker is not None
        assert self._transport is not None
        mixer = self.node.mixer.stats
        usage = resource.getrusage(resource.RUSAGE_SELF)
        net = self._transport.stats
        return {
            "ticks": self._ticker.ticks,
            "ticks_skipped": self._ticker.skipped,
            "tick_errors": self._ticker.errors,
            "tick_lateness_ms": self._ticker.lateness(),
            "encodes": mixer.encodes,
            "encodes_per_busy_tick": mixer.encodes / max(1, mixer.busy_ticks),
            "decodes": mixer.decodes,
            "sealed": self.node.egress.sealed,
            "datagrams_received": net.received,
            "datagrams_sent": net.sent,
            "datagrams_not_taken_by_kernel": net.send_short,
            "dropped": {**self.node.endpoint.dropped, **self.node.dropped},
            "most_sessions": self._most_sessions,
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "max_rss_bytes": usage.ru_maxrss * 1024,
        }
