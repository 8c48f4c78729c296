"""The shell around the node: a socket, clocks, threads, the store, signals.

Everything runs in one event loop; only the codec leaves it, for the time of a tick, and the store,
which has a thread of its own.
"""

import asyncio
import contextlib
import gc
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
from spaces_server.gauge import gauge
from spaces_server.governor import TICK_NS, Governor
from spaces_server.mixer.source import FRAME_SAMPLES
from spaces_server.net.priority import Priority
from spaces_server.net.ticker import Ticker
from spaces_server.net.timer import Timer, timer_of
from spaces_server.net.transport import Batch, Transport, host_of, open_transport
from spaces_server.node import Limits, Node
from spaces_server.policy.house import HouseRules
from spaces_server.records import StoreReply
from spaces_server.store.database import Database
from spaces_server.store.worker import StoreWorker

# Numbers of ticks count by 10 ms: those of spaces with frames of 20 ms are even.
PERIOD_NS = TICK_NS // 2
PERIOD_SAMPLES = FRAME_SAMPLES // 2
REPORT_TICKS = 6_000  # a line in the log each minute
# What has lived for a second (sessions, members) is not looked at by the garbage collector again: a
# look at ten thousand of them takes 150 ms.  Reference counts free them; cycles do not occur.
FREEZE_TICKS = 100
WORK_NS = 1 * MS  # for which it works before it looks for datagrams and ticks again
GOODBYE_S = 1.0  # how long clients have to hear that the server stops

log = logging.getLogger("spaces")


def _utc_offset_ns() -> int:
    return time.time_ns() - time.monotonic_ns()


def _cores() -> int:
    """How many this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _each(work: Callable[[Any], Any], jobs: list[Any]) -> list[Any]:
    return [work(job) for job in jobs]


class Server:
    """One server process.  `start`, then `wait`, which ends after `stop` or a signal."""

    def __init__(
        self,
        private_key: bytes,
        limits: Limits,
        rules: HouseRules,
        database: Database,
        *,
        operator_key: bytes,
        stats_file: TextIO | None = None,
    ) -> None:
        """database: at its newest revision.  operator_key: the public key that administers."""
        self._cores = _cores()
        self._pool = ThreadPoolExecutor(self._cores, thread_name_prefix="encode")
        self.node = Node(
            private_key,
            entropy=os.urandom,
            parallel_map=self._parallel_map,
            limits=limits,
            rules=rules,
            loaded=database.load(),
            operator_key=operator_key,
            host_of=host_of,
            now_ns=time.monotonic_ns(),
            utc_offset_ns=_utc_offset_ns(),
            log=log.info,
        )
        self._limits = limits
        self._priority = Priority()
        if self._priority.real_time:
            log.info("ticks run with real-time priority")
        self._encoding_ns = 0  # since the last tick of all spaces
        self._busy_ns = 0
        self._working_ns = 0
        self._took_ns = 0  # ticks, since then
        self.failure: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self._store = StoreWorker(database, self._deliver, self._deliver_failure)
        self._stats_file = stats_file
        self._transport: Transport | None = None
        self._timer: Timer | None = None
        self._ticker: Ticker | None = None
        self._stopping = asyncio.Event()
        self._work_is_due = False  # the loop will call it
        self._worked_after = 0  # the number of a tick
        self._most_sessions = 0
        self._freeze_at = FREEZE_TICKS  # numbers of ticks
        self._report_at = REPORT_TICKS

    def _parallel_map(self, work: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterable[Any]:
        """A share of the jobs for each core, the first for this thread: handing a job over and
        waking a thread for it costs about as much as an encode."""
        begin_ns = time.monotonic_ns()
        jobs = list(jobs)
        shares = [jobs[first :: self._cores] for first in range(self._cores)]
        others = [self._pool.submit(_each, work, share) for share in shares[1:] if share]
        done = [_each(work, shares[0]), *(other.result() for other in others)]
        self._encoding_ns += time.monotonic_ns() - begin_ns
        return [done[n % self._cores][n // self._cores] for n in range(len(jobs))]

    @property
    def port(self) -> int:
        assert self._transport is not None
        return self._transport.local_port

    async def start(self, host: str, port: int) -> None:
        """Raises TransportError if the port cannot be had."""
        log.info("datagrams are sealed by %s", self.node.egress.seals.name)
        if self._limits.governed:
            costs = await gauge(self._limits.complexity, self._limits.bitrate)
            self.node.governor = Governor(costs)
            log.info(
                "on this machine a space can have about %d listeners, and more as a crowd",
                self.node.governor.capacity,
            )
        self._transport = await open_transport(host, port, self._receive, cores=self._cores)
        self._timer = timer_of(self._loop)
        self._ticker = Ticker(
            PERIOD_NS, self._tick, self._timer, due=self.node.due_ns, stride=self.node.stride
        )
        self._ticker.start()
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self.stop)
        if self._stats_file is not None:
            self._loop.add_signal_handler(signal.SIGUSR1, self._write_stats, self._stats_file)

    def owner_code(self) -> str | None:
        """A code with which somebody becomes the server's owner; None if it has one."""
        code = self.node.owner_code(time.monotonic_ns())
        self._pass_on()
        return code

    def stop(self) -> None:
        self._stopping.set()

    async def wait(self) -> None:
        """Until stopped: tells the clients, writes the figures, frees everything.  Raises what
        made the store fail, if that was it."""
        await self._stopping.wait()
        log.info("stopping, and telling the clients")
        self.node.shut_down(time.monotonic_ns())
        end = self._loop.time() + GOODBYE_S
        self._pass_on()
        while self.node.endpoint.talking and self._loop.time() < end:
            await asyncio.sleep(TICK_NS / 1e9)
        assert self._ticker is not None
        assert self._timer is not None
        assert self._transport is not None
        self._ticker.stop()
        self._timer.close()
        self._transport.close()
        self._pool.shutdown()
        self._store.close()
        if self._stats_file is not None:
            self._write_stats(self._stats_file)
        log.info("stopped")
        if self.failure is not None:
            raise self.failure

    def _receive(self, datagrams: Batch) -> None:
        now_ns = time.monotonic_ns()
        for data, address, waited_ns in datagrams:
            self.node.receive_datagram(data, address, now_ns, waited_ns)
        self._pass_on()
        self._busy_ns += time.monotonic_ns() - now_ns

    def _deliver(self, replies: list[StoreReply]) -> None:
        """In the store's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has stopped
            self._loop.call_soon_threadsafe(self._stored, replies)

    def _stored(self, replies: list[StoreReply]) -> None:
        now_ns = time.monotonic_ns()
        for reply in replies:
            self.node.receive_stored(reply, now_ns)
        self._pass_on()
        self._busy_ns += time.monotonic_ns() - now_ns

    def _deliver_failure(self, error: BaseException) -> None:
        """In the store's thread.  What the memory holds and the store does not would be lost
        without a word: better to stop."""
        self.failure = error
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.stop)

    def _tick(self, now_ns: int) -> None:
        assert self._ticker is not None
        assert self._transport is not None
        self._transport.receive_now()
        self._transport.flush()  # the batches of the last tick lie where this tick's will
        number = self._ticker.number
        timestamp = number * PERIOD_SAMPLES & 0xFFFF_FFFF
        due_ns = self._ticker.deadline_ns
        if number % 2:
            batches = self.node.half_tick(timestamp, due_ns)
        else:
            batches = self.node.tick(timestamp, now_ns, due_ns)
        for batch in batches:
            self._transport.send_batch(batch.arena, batch.lengths, batch.addresses)
        self._transport.share()
        self._pass_on()
        self._most_sessions = max(self._most_sessions, len(self.node.endpoint.sessions))
        if number >= self._freeze_at:
            self._freeze_at = number + FREEZE_TICKS
            gc.freeze()
        if number >= self._report_at:
            self._report_at = number + REPORT_TICKS
            self.node.utc_offset_ns = _utc_offset_ns()  # follows a clock that is put right
            self._report()
        took_ns = time.monotonic_ns() - now_ns
        self._took_ns += took_ns
        self._busy_ns += took_ns
        if number % 2:  # counted with the next
            return
        self.node.ticked(self._took_ns, self._encoding_ns, self._busy_ns, now_ns)
        if self._cores == 1:  # else the system moves a thread that has it out of others' way
            self._priority.ticked(self._busy_ns + self._working_ns, now_ns)
        self._encoding_ns = self._busy_ns = self._working_ns = self._took_ns = 0

    def _work(self) -> None:
        """What can wait, in the time that audio leaves, but once in each tick in any case."""
        assert self._ticker is not None
        self._work_is_due = False
        now_ns = begin_ns = time.monotonic_ns()
        end_ns = begin_ns + WORK_NS
        number = self._ticker.number
        if number == self._worked_after:
            end_ns = min(end_ns, self._ticker.deadline_ns)
        while self.node.waiting and now_ns < end_ns:
            self._worked_after = number
            self.node.work(now_ns)
            now_ns = time.monotonic_ns()
        if now_ns > begin_ns:
            self._pass_on()
            self._working_ns += time.monotonic_ns() - begin_ns

    def _pass_on(self) -> None:
        """What the node has for the network and for the store."""
        assert self._transport is not None
        for data, address in self.node.drain(time.monotonic_ns()):
            self._transport.send(data, address)
        requests = self.node.to_store()
        if requests:
            self._store.submit(requests)
        if self._ticker is not None:
            self._ticker.wake()
        if self.node.waiting and not self._work_is_due:
            self._work_is_due = True
            self._loop.call_soon(self._work)

    def _report(self) -> None:
        assert self._ticker is not None
        if self.node.endpoint.sessions:
            log.info(
                "people: %d, spaces: %d; ticks are late by %.1f ms at most of 99 in 100",
                len(self.node.endpoint.sessions),
                len(self.node.spaces),
                self._ticker.lateness()["p99"],
            )

    def _write_stats(self, file: TextIO) -> None:
        """In place of what was written before.  The next figures of lateness are of later ticks."""
        assert self._ticker is not None
        if file.seekable():
            file.seek(0)
            file.truncate()
        json.dump(self.stats(), file)
        file.flush()
        self._ticker.forget_lateness()

    def stats(self) -> dict[str, Any]:
        """Figures since the start; keys are stable, see README."""
        assert self._ticker is not None
        assert self._transport is not None
        mixer = self.node.mixer.stats
        usage = resource.getrusage(resource.RUSAGE_SELF)
        net = self._transport.stats
        governor = self.node.governor
        return {
            "ticks": self._ticker.ticks,
            "ticks_skipped": self._ticker.skipped,
            "tick_errors": self._ticker.errors,
            "tick_lateness_ms": self._ticker.lateness(),
            "load": 0.0 if governor is None else governor.load,
            "complexity": self._limits.complexity if governor is None else governor.complexity,
            "capacity": None if governor is None else governor.capacity,
            "refused_joins": self.node.house.refused_joins,
            "encodes": mixer.encodes,
            "encodes_per_busy_tick": mixer.encodes / max(1, mixer.busy_ticks),
            "decodes": mixer.decodes,
            "sealed": self.node.egress.sealed,
            "datagrams_received": net.received,
            "datagrams_sent": net.sent,
            "datagrams_not_taken_by_kernel": net.send_short,
            "dropped": {**self.node.endpoint.dropped, **self.node.dropped},
            "uplink": self.node.mixer.counted(),
            "store_waiting": self.node.ledger.waiting,
            "most_sessions": self._most_sessions,
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "max_rss_bytes": usage.ru_maxrss * 1024,
        }
