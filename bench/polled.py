"""Receiving and counting by the hundred thousand a second: whole columns, no object a datagram.

A receiver that sleeps in epoll makes the sender pay for waking it, half as much again a datagram.
So nothing here ever waits for a socket: sockets are asked in turn with recvmmsg(2), and what came
is looked at as a table, one row a datagram.

    Poller    sockets -> which of them, data (n, room) uint8, lengths (n,)
    headers   data -> kinds (n,), counters (n,), indices (n,) of this protocol's sealed datagrams
    Tally     streams (n,), sequence numbers (n,) -> delivered, expected, duplicates, reordered
"""

import contextlib
import ctypes
import errno
import os
import socket
import struct
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protocol.packets import COUNTER_LIMIT, HEADER_BYTES
from spaces_server.net.mmsg import MMSGHDR, pointers, recvmmsg, table

BUFFER_BYTES = 32 << 20
# From one look at all sockets to the next.  Without it, it would be after every few datagrams while
# the server sends, the whole cost of a look for each, and a generator with time to spare would seem
# as busy as one without.
ROUND_NS = 1_000_000
NOTHING_THERE = frozenset(
    # The last is what a connected socket says of a peer whose process has ended.
    {errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.ECONNREFUSED}
)
REMEMBERED = 64  # numbers below the newest of a stream among which a repeated one is known
STAGGER_BYTES = 64  # rows a power of two apart would share a few sets of the cache

_HEADER = np.dtype([("word", ">u8"), ("index", ">u4")])  # kind u8 | counter u56 | index u32
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE, _SO_MEMINFO = 32, 33, 55  # asm-generic/socket.h
_MEMINFO = struct.Struct("9I")  # linux/sock_diag.h; the last one counts what was dropped


def udp_socket(
    buffer_bytes: int = BUFFER_BYTES, *, bind: tuple[str, int] = ("127.0.0.1", 0)
) -> socket.socket:
    """A bound, non-blocking socket with buffers of this size each way, or as much of it as the
    system permits."""
    family = socket.AF_INET6 if ":" in bind[0] else socket.AF_INET
    one = socket.socket(family, socket.SOCK_DGRAM)
    for force, option in (
        (_SO_RCVBUFFORCE, socket.SO_RCVBUF),
        (_SO_SNDBUFFORCE, socket.SO_SNDBUF),
    ):
        try:
            one.setsockopt(socket.SOL_SOCKET, force, buffer_bytes)
        except OSError:  # only the administrator may go beyond net.core.rmem_max
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, option, buffer_bytes)
    one.bind(bind)
    one.setblocking(False)
    return one


def dropped_by_kernel(sockets: Sequence[socket.socket]) -> int:
    """How many datagrams found the buffers of these sockets full, since they were made."""
    return sum(
        _MEMINFO.unpack(one.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))[-1]
        for one in sockets
    )


def rest(until_ns: int) -> int:
    """Sleeps until then (time.monotonic_ns), if that is not past; -> for how long it did, ns.

    Between two looks at the sockets a generator rests by this instead of spinning.  The sender does
    not notice: no socket has anyone to wake.  But a process of real-time priority that never sleeps
    is put aside by the kernel for up to 50 ms of each second, if anything else wants its core.
    """
    start_ns = time.monotonic_ns()
    if until_ns <= start_ns:
        return 0
    time.sleep((until_ns - start_ns) / 1e9)
    return time.monotonic_ns() - start_ns


class Poller:
    """Sockets read in turn by recvmmsg, never waiting.

    busy_ns: time spent in calls that brought something; calls, datagrams: how many of each.
    """

    def __init__(
        self, sockets: Sequence[socket.socket], rows: int = 1024, room_bytes: int = 2048
    ) -> None:
        """rows: datagrams a call.  room_bytes: what is kept of one; the rest of it is cut off."""
        self.busy_ns = 0
        self.calls = 0
        self.datagrams = 0
        self._fds = [one.fileno() for one in sockets]
        self._turn = 0
        self._rows = rows
        self._messages, self._vectors = table(rows)  # the kernel reads both
        stride_bytes = room_bytes + STAGGER_BYTES
        self._data = np.zeros((rows, stride_bytes), np.uint8)
        self._vectors["base"] = pointers(self._data.ctypes.data, rows, stride_bytes)
        self._vectors["len"] = room_bytes
        self._data = self._data[:, :room_bytes]
        self._lengths = self._messages["len"]
        self._messages_at = self._messages.ctypes.data

    def poll(self) -> tuple[int, NDArray[np.uint8], NDArray[np.intp]] | None:
        """Asks the next socket; -> which one, data (n, room_bytes), lengths (n,), all valid until
        the next call, or None if nothing was there.  Raises OSError."""
        turn = self._turn
        self._turn = (turn + 1) % len(self._fds)
        count = self._receive(turn, 0)
        if not count:
            return None
        return turn, self._data[:count], self._lengths[:count].astype(np.intp)

    def poll_all(self) -> tuple[NDArray[np.uint8], NDArray[np.intp]] | None:
        """Asks every socket; -> data (n, room_bytes), lengths (n,), as `poll`.  Where it does not
        matter from which socket something came, what there is to do with it is done once for all
        of them.  Raises OSError."""
        first, count = self._turn, 0
        for n in range(len(self._fds)):
            self._turn = (first + n) % len(self._fds)
            count += self._receive(self._turn, count)
            if count == self._rows:
                break
        else:
            self._turn = (first + 1) % len(self._fds)
        return (self._data[:count], self._lengths[:count].astype(np.intp)) if count else None

    def _receive(self, turn: int, at: int) -> int:
        """One call, into the rows from `at` on; -> how many it filled."""
        start_ns = time.monotonic_ns()
        messages_at = self._messages_at + at * MMSGHDR.itemsize
        count: int = recvmmsg(self._fds[turn], messages_at, self._rows - at, 0, None)
        if count < 0:
            error = ctypes.get_errno()
            if error not in NOTHING_THERE:
                raise OSError(error, os.strerror(error))
            return 0
        self.busy_ns += time.monotonic_ns() - start_ns
        self.calls += 1
        self.datagrams += count
        return count


def headers(
    data: NDArray[np.uint8],
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.intp]]:
    """The clear headers of sealed datagrams (protocol/packets.py), data (n, >= 12), by columns: ->
    kinds (n,), counters (n,), the receivers' indices (n,).  Of a datagram that is not sealed only
    the kind means anything."""
    columns = np.frombuffer(data[:, :HEADER_BYTES].tobytes(), _HEADER)
    words = columns["word"].astype(np.uint64)
    counters = (words & np.uint64(COUNTER_LIMIT - 1)).astype(np.int64)
    return (words >> np.uint64(56)).astype(np.uint8), counters, columns["index"].astype(np.intp)


class Tally:
    """What each of many numbered streams has delivered; all in numpy, no loop over packets.

    A number that is the stream's newest, or that was still missing among the REMEMBERED before it,
    is delivered (in the second case reordered too).  One that was there before is a duplicate, and
    so is one so old that nobody can tell: a packet that late is of no use.

        expected_by_stream      newest number - newest number when the window began
        delivered_by_stream     how many of these have come

    A stream that was silent when the window began is expected to have begun with the first number
    seen of it.  One that never said anything counts 0 of 0: whoever counts must know how many
    streams there should be.
    """

    def __init__(self, streams: int) -> None:
        self.delivered_by_stream: NDArray[np.int64] = np.zeros(streams, np.int64)
        self.duplicates = 0
        self.reordered = 0
        self.newest = np.zeros(streams, np.int64)
        self._begun = np.zeros(streams, np.int64)  # the newest number when the window began
        self._seen = np.zeros(streams, np.uint64)  # bit k: newest - k was there; 0: none yet
        self._first = np.zeros(streams, np.intp)  # scratch: where in a batch a stream comes first

    def begin(self) -> None:
        """A measuring window begins: all that was counted is forgotten but the newest numbers."""
        self.delivered_by_stream[:] = 0
        self.duplicates = self.reordered = 0
        self._begun[:] = self.newest

    @property
    def expected_by_stream(self) -> NDArray[np.int64]:
        return self.newest - self._begun

    @property
    def expected(self) -> int:
        return int(self.expected_by_stream.sum())

    @property
    def delivered(self) -> int:
        return int(self.delivered_by_stream.sum())

    def count(self, streams: NDArray[np.intp], numbers: NDArray[np.int64], bits: int = 64) -> None:
        """One batch: packet i of stream streams[i] has sequence number numbers[i].

        bits: how many a sequence number has; with fewer than 64 it wraps, and is taken for the one
        next to the stream's newest.
        """
        while len(streams):  # one turn, but for streams that have several packets in this batch
            at = np.arange(len(streams))
            self._first[streams[::-1]] = at[::-1]  # of repeated indices the last one stays
            first = self._first[streams] == at
            if first.all():
                self._count_once(streams, numbers, bits)
                return
            self._count_once(streams[first], numbers[first], bits)
            streams, numbers = streams[~first], numbers[~first]

    def _count_once(self, streams: NDArray[np.intp], numbers: NDArray[np.int64], bits: int) -> None:
        """A batch in which no stream comes twice."""
        seen = self._seen[streams]
        fresh = seen == 0
        if fresh.any():
            begin, number = streams[fresh], numbers[fresh]
            self.newest[begin] = self._begun[begin] = number - 1
        newest = self.newest[streams]
        ahead = numbers - newest
        if bits < 64:
            half, whole = 1 << bits - 1, 1 << bits
            ahead = (ahead + half) % whole - half
        one = np.uint64(1)
        if (ahead == 1).all():  # nearly always, and a third of the work
            self.newest[streams] = newest + 1
            self._seen[streams] = seen << one | one
            self.delivered_by_stream[streams] += 1
            return
        newer = ahead > 0
        shift = np.minimum(np.abs(ahead), REMEMBERED).astype(np.uint64)
        near = shift < REMEMBERED
        shift = np.where(near, shift, 0).astype(np.uint64)
        bit = np.where(newer, one, one << shift)
        seen = np.where(newer, np.where(near, seen << shift, 0), seen).astype(np.uint64)
        good = newer | (near & (seen & bit == 0))
        self._seen[streams] = np.where(good, seen | bit, seen)
        self.newest[streams] = newest + np.where(newer, ahead, 0)
        # What belongs to the time before the window is remembered, but not counted.
        inside = newest + ahead > self._begun[streams]
        self.delivered_by_stream[streams] += good & inside
        self.reordered += int(np.count_nonzero(good & inside & ~newer))
        self.duplicates += int(np.count_nonzero(~good & inside))
