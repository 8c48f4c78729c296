"""Clients by the thousand in one process: they share a few sockets, one heap of timers, one loop.

Each is a client of its own, with a key, a handshake and a connection; it is found by its index, as
the server finds it, not by an address.  Media is not opened: of a whole batch of datagrams only the
clear headers are read, and all else goes to the client that it is for.

    HELLO ->              greet(), and again, ever less often, until it is answered
    <- COOKIE             _challenged()
    <- WELCOME            _welcomed()
    requests ->           ask()
    <- replies            _replied()
    <- media              _count()
    REFUSED, CLOSE, or no word for long: _ended()

Who simulates clients derives from Client what one of them has to remember, and from Clients what
they do: the methods with a leading underscore are there to be overridden.
"""

import contextlib
import heapq
import itertools
import os
import socket
import time
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from bench.polled import Poller, headers, udp_socket
from protocol import frames
from protocol.connection import Closed, Connection, Event, Message
from protocol.link import Link
from protocol.noise import KeyPair, NoiseError
from protocol.opening import Opening
from protocol.packets import (
    INDEX_BYTES,
    MAX_DATAGRAM_BYTES,
    NO_COOKIE,
    Kind,
    Welcome,
    unpack_cookie,
)
from spaces_client.client import HELLO_REPEAT_NS, MAX_HELLO_REPEAT_NS

SOCKETS = 8


class Client:
    """One client.

    index: in the headers of what comes for it.  opening: until it is answered.  acts_ns: when it
    does something that nobody asked it for.  wakes_ns: when its timer is due.  0: never.
    repeat_ns: how long it waits for an answer before it says its HELLO again.
    """

    __slots__ = ("acts_ns", "connection", "index", "key", "last_id", "opening", "repeat_ns",
                 "socket", "wakes_ns")  # fmt: skip

    def __init__(self, index: int, one: socket.socket, key: bytes) -> None:
        """key: private, 32 bytes."""
        self.index = index
        self.socket = one
        self.key = KeyPair(key)
        self.opening: Opening | None = None
        self.connection: Connection | None = None
        self.last_id = 0
        self.acts_ns = 0
        self.wakes_ns = 0
        self.repeat_ns = 0


class Batch(NamedTuple):
    """Some datagrams and their clear headers, one a row (bench/polled.py)."""

    kinds: NDArray[np.uint8]
    counters: NDArray[np.int64]
    indices: NDArray[np.intp]
    data: NDArray[np.uint8]
    lengths: NDArray[np.intp]


C = TypeVar("C", bound=Client)


class Clients(Generic[C]):
    """All clients of one generator, their sockets and timers."""

    def __init__(self, link: Link) -> None:
        self.sockets = [udp_socket() for _ in range(SOCKETS)]
        for one in self.sockets:
            one.connect((link.host, link.port))
        self._link = link
        self._poller = Poller(self.sockets, room_bytes=MAX_DATAGRAM_BYTES)
        self._by_index: dict[int, C] = {}
        self._timers: list[tuple[int, int, C]] = []
        self._timers_made = itertools.count()

    def close(self) -> None:
        for one in self.sockets:
            one.close()

    def socket_for(self, number: int) -> socket.socket:
        """Which one the client with this number is to use."""
        return self.sockets[number % SOCKETS]

    def turn(self) -> None:
        """Does what is due, and takes what has come."""
        now_ns = time.monotonic_ns()
        timers = self._timers
        while timers and timers[0][0] <= now_ns:
            when_ns, _, client = heapq.heappop(timers)
            if when_ns == client.wakes_ns:
                client.wakes_ns = 0
                self._timer(client, now_ns)
        came = self._poller.poll_all()
        if came is None:
            return
        now_ns = time.monotonic_ns()
        data, lengths = came
        batch = Batch(*headers(data), data, lengths)
        self._count(batch, now_ns)
        for row in np.flatnonzero(batch.kinds <= Kind.CONTROL).tolist():
            self._take(data[row, : lengths[row]].tobytes(), now_ns)

    # -- one client's way -----------------------------------------------------------------------

    def prepare(self, client: C, cookie: bytes = NO_COOKIE) -> None:
        """Makes its HELLO."""
        client.repeat_ns = HELLO_REPEAT_NS
        client.opening = Opening(
            client.index,
            self._link.key,
            client.key,
            agent="spaces-bench",
            entropy=os.urandom,
            cookie=cookie,
        )

    def greet(self, client: C, now_ns: int) -> None:
        """Says the HELLO that was prepared."""
        assert client.opening is not None
        self._by_index[client.index] = client
        self._send(client, client.opening.hello.pack())
        self._wake_at(client, now_ns + client.repeat_ns)
        client.repeat_ns = min(2 * client.repeat_ns, MAX_HELLO_REPEAT_NS)

    def ask(self, client: C, kind: type[frames.Request], now_ns: int, **fields: Any) -> None:
        """Sends a request; the reply comes to _replied()."""
        assert client.connection is not None
        client.last_id += 1
        client.connection.send(frames.encode(kind(id=client.last_id, **fields)))
        self._flush(client, now_ns)

    def _take(self, data: bytes, now_ns: int) -> None:
        """A datagram that is no media."""
        kind = data[0]
        at = 8 if kind == Kind.CONTROL else 4
        client = self._by_index.get(int.from_bytes(data[at : at + INDEX_BYTES]))
        if client is None:
            return
        if kind == Kind.CONTROL:
            if client.connection is not None:
                events = client.connection.receive(data, b"", now_ns)
                self._happened(client, events or (), now_ns)
        elif client.opening is None:
            pass  # one more answer to a HELLO that was repeated
        elif kind == Kind.WELCOME:
            self._connect(client, client.opening, data, now_ns)
        elif kind == Kind.COOKIE:
            self._challenged(client, unpack_cookie(data)[1], now_ns)
        elif kind == Kind.REFUSED:
            self._forget(client)
            self._ended(client, "the server refuses the session")

    def _connect(self, client: C, opening: Opening, data: bytes, now_ns: int) -> None:
        try:
            keys, server_index = opening.answered(Welcome.unpack(data))
        except NoiseError:
            # It answers a HELLO before this one, which had no cookie; the handshake is dead now.
            self.prepare(client)
            self.greet(client, now_ns)
            return
        client.connection = Connection(
            keys,
            remote_index=server_index,
            address=b"",
            now_ns=now_ns,
            entropy=os.urandom,
            keep_alive=True,
        )
        client.opening = None
        client.connection.ping(now_ns)  # proves the address
        self._welcomed(client, now_ns)
        self._flush(client, now_ns)

    def _happened(self, client: C, events: Sequence[Event], now_ns: int) -> None:
        for event in events:
            match event:
                case Message(data):
                    frame = frames.decode(data)
                    if isinstance(frame, frames.Reply):
                        self._replied(client, frame, now_ns)
                case Closed(text=text):
                    self._ended(client, text)
                case _:
                    pass
        self._flush(client, now_ns)

    def _timer(self, client: C, now_ns: int) -> None:
        if client.connection is None:
            self.greet(client, now_ns)
            return
        if client.acts_ns and now_ns >= client.acts_ns:
            client.acts_ns = 0
            self._act(client, now_ns)
        self._happened(client, client.connection.tick(now_ns), now_ns)

    def _flush(self, client: C, now_ns: int) -> None:
        connection = client.connection
        assert connection is not None
        for datagram in connection.transmit(now_ns):
            self._send(client, datagram)
        if connection.over(now_ns):
            self._forget(client)
        else:
            deadline_ns = connection.deadline_ns
            self._wake_at(client, min(deadline_ns, client.acts_ns or deadline_ns))

    def _forget(self, client: C) -> None:
        self._by_index.pop(client.index, None)
        client.wakes_ns = 0

    def _send(self, client: C, datagram: bytes) -> None:
        # What the kernel does not take is lost, as anything may be: the connection repeats it.
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            client.socket.send(datagram)

    def _wake_at(self, client: C, when_ns: int) -> None:
        """Sets its one timer; when it was due before no longer counts."""
        if when_ns != client.wakes_ns:
            client.wakes_ns = when_ns
            heapq.heappush(self._timers, (when_ns, next(self._timers_made), client))

    # -- what they do -----------------------------------------------------------------------------

    def _count(self, batch: Batch, now_ns: int) -> None:
        """What has come: media is not looked at anywhere else."""

    def _challenged(self, client: C, cookie: bytes, now_ns: int) -> None:
        """The server asks for this cookie."""
        self.prepare(client, cookie)
        self.greet(client, now_ns)

    def _welcomed(self, client: C, now_ns: int) -> None:
        """There is a session."""

    def _replied(self, client: C, reply: frames.Reply, now_ns: int) -> None:
        """To something that it has asked."""

    def _act(self, client: C, now_ns: int) -> None:
        """It is acts_ns."""

    def _ended(self, client: C, text: str) -> None:
        """The server wants no session with it, or ended it, or is not heard any more."""
