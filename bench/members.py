"""Ten thousand members in one space: how soon are they answered?

    python -m bench.members --members 10000 --joins-per-second 100 --seconds 20

A real server process with a real database; members over real UDP on loopback, simulated in this
process: each has an account, keys, a handshake, a connection with its keep-alives and
acknowledgements of its own, but no audio and no view of the space, and many share a socket (a
session is found by its index, not by its address).  First all of them join.  Then, for the given
time, `joins-per-second` members leave and as many others make a handshake and join, while others
raise and lower hands and chat.  Measured is the time from a request to its reply, and from the
first datagram of a newcomer to `joined`, as the members see it.
"""

import contextlib
import heapq
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from protocol import frames
from protocol.connection import Connection, Message
from protocol.link import Link
from protocol.noise import Handshake, public_key
from protocol.packets import (
    HELLO_PAYLOAD_BYTES,
    INDEX_BYTES,
    NO_COOKIE,
    VERSION,
    Hello,
    Kind,
    Welcome,
    key_id,
    unpack_cookie,
)
from protocol.sealing import SessionKeys
from protocol.text import skeleton
from spaces_server.net.mmsg import Receiver
from spaces_server.records import AccountRecord, Commit, DeviceRecord, Put
from spaces_server.store.database import Database

MS = 1_000_000
SOCKETS = 8
RECEIVE_BYTES = 32 << 20
CALLS = 4  # of recvmmsg for one socket, before it is the next one's turn
HANDS_AT_ONCE = 50
STARTUP_S = 20.0
JOIN_RATE_AT_FIRST = 250  # a second, until all are in


@dataclass(slots=True, eq=False)
class _Member:
    """One simulated client."""

    key: bytes
    socket: socket.socket
    index: int
    begun_ns: int = 0
    hello: Hello | None = None
    handshake: Handshake | None = None
    connection: Connection | None = None
    space: str = ""
    gone: bool = False
    last_id: int = 0
    asked: dict[int, tuple[str, int]] = field(default_factory=dict)  # id -> what, when
    wakes_ns: int = 0


class Members:
    """All clients, their sockets and timers.  latencies: seconds, by request."""

    def __init__(self, link: Link, keys: list[bytes]) -> None:
        self.space = ""  # which newcomers join; none while it is empty
        self.latencies: dict[str, list[float]] = {}
        self.errors: Counter[str] = Counter()
        self.datagrams: Counter[int] = Counter()
        self.lateness_ms: list[float] = []
        self.joined: list[_Member] = []
        self._link = link
        self._keys = iter(keys)
        self._by_index: dict[int, _Member] = {}
        self._timers: list[tuple[int, int, _Member]] = []
        self._number = 0
        self._sockets = [self._socket() for _ in range(SOCKETS)]
        self._receivers = {s.fileno(): Receiver(s) for s in self._sockets}
        self._poll = select.poll()
        for one in self._sockets:
            self._poll.register(one, select.POLLIN)

    def _socket(self) -> socket.socket:
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        force = getattr(socket, "SO_RCVBUFFORCE", 33)
        try:
            one.setsockopt(socket.SOL_SOCKET, force, RECEIVE_BYTES)
        except PermissionError:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        one.connect((self._link.host, self._link.port))
        one.setblocking(False)
        return one

    def close(self) -> None:
        for one in self._sockets:
            one.close()

    # -- one member ---------------------------------------------------------------------------

    def begin(self, now_ns: int) -> _Member:
        """A newcomer's HELLO; the rest of the way to `joined` follows by itself."""
        index = int.from_bytes(os.urandom(4))
        while index in self._by_index:
            index = int.from_bytes(os.urandom(4))
        self._number += 1
        member = _Member(next(self._keys), self._sockets[self._number % SOCKETS], index, now_ns)
        self._by_index[index] = member
        self._greet(member, NO_COOKIE, now_ns)
        return member

    def _greet(self, member: _Member, cookie: bytes, now_ns: int) -> None:
        bare = Hello(VERSION, member.index, key_id(self._link.key), cookie, b"")
        member.handshake = Handshake(
            initiator=True,
            prologue=bare.prologue,
            entropy=os.urandom,
            static=member.key,
            remote_static=self._link.key,
        )
        greeting = frames.encode_greeting("members", HELLO_PAYLOAD_BYTES)
        noise = member.handshake.write(greeting)
        member.hello = Hello(VERSION, member.index, bare.key_id, cookie, noise)
        member.socket.send(member.hello.pack())
        self._wake_at(member, now_ns + 500 * MS)

    def _welcomed(self, member: _Member, data: bytes, now_ns: int) -> None:
        assert member.handshake is not None
        server_index = member.handshake.read(Welcome.unpack(data).noise)[:INDEX_BYTES]
        send, receive = member.handshake.split()
        member.connection = Connection(
            SessionKeys.derive(send=send.key, receive=receive.key),
            remote_index=int.from_bytes(server_index),
            address=b"",
            now_ns=now_ns,
            entropy=os.urandom,
            keep_alive=True,
        )
        member.handshake = member.hello = None
        member.connection.ping(now_ns)
        if self.space:
            self.ask(member, now_ns, frames.Join, space=self.space)
        else:
            self._flush(member, now_ns)

    def ask(self, member: _Member, now_ns: int, kind: type[frames.Request], **fields: Any) -> None:
        assert member.connection is not None
        member.last_id += 1
        what = frames.tag(kind)
        since_ns = member.begun_ns if kind is frames.Join else now_ns
        member.asked[member.last_id] = (what, since_ns)
        member.connection.send(frames.encode(kind(id=member.last_id, **fields)))
        self._flush(member, now_ns)

    def _flush(self, member: _Member, now_ns: int) -> None:
        assert member.connection is not None
        for datagram in member.connection.transmit(now_ns):
            member.socket.send(datagram)
        self._wake_at(member, member.connection.deadline_ns)

    def _wake_at(self, member: _Member, when_ns: int) -> None:
        if not member.wakes_ns or when_ns < member.wakes_ns:
            member.wakes_ns = when_ns
            self._number += 1
            heapq.heappush(self._timers, (when_ns, self._number, member))

    def leave(self, member: _Member, now_ns: int) -> None:
        assert member.connection is not None
        member.gone = True
        member.connection.close(0, "", now_ns)
        self._flush(member, now_ns)

    # -- all of them ----------------------------------------------------------------------------

    def run(self, until_ns: int, script: Iterator[int] | None = None) -> None:
        """Lets time pass; script: does something, and yields when it wants to go on (ns)."""
        due_ns = next(script, until_ns) if script is not None else until_ns
        while (now_ns := time.monotonic_ns()) < until_ns:
            next_ns = min(due_ns, until_ns, self._timers[0][0] if self._timers else until_ns)
            for descriptor, _ in self._poll.poll(max(0, next_ns - now_ns) / MS):
                self._receive(descriptor)
            now_ns = time.monotonic_ns()
            while self._timers and self._timers[0][0] <= now_ns:
                when_ns, _, member = heapq.heappop(self._timers)
                if when_ns == member.wakes_ns:
                    member.wakes_ns = 0
                    self._timer(member, now_ns)
            if script is not None and now_ns >= due_ns:
                self.lateness_ms.append((now_ns - due_ns) / MS)
                due_ns = next(script, until_ns)

    def _timer(self, member: _Member, now_ns: int) -> None:
        if member.connection is not None:
            member.connection.tick(now_ns)
            if member.connection.over(now_ns):
                self._by_index.pop(member.index, None)
            else:
                self._flush(member, now_ns)
        elif member.hello is not None:
            member.socket.send(member.hello.pack())
            self._wake_at(member, now_ns + 500 * MS)

    def _receive(self, descriptor: int) -> None:
        for _ in range(CALLS):
            try:
                batch, _ = self._receivers[descriptor].receive()
            except BlockingIOError:
                return
            now_ns = time.monotonic_ns()
            for data, _, _ in batch:
                kind = data[0]
                self.datagrams[kind] += 1
                if kind in (Kind.FEED, Kind.AUDIO):
                    continue  # counted; to open forty thousand a second is not this one's task
                at = 8 if kind >= Kind.CONTROL else 4
                member = self._by_index.get(int.from_bytes(data[at : at + 4]))
                if member is not None:
                    self._take(member, data, now_ns)

    def _take(self, member: _Member, data: bytes, now_ns: int) -> None:
        if member.connection is not None:
            if data[0] == Kind.CONTROL:
                for event in member.connection.receive(data, b"", now_ns) or ():
                    if isinstance(event, Message):
                        self._replied(member, frames.decode(event.data), now_ns)
                self._flush(member, now_ns)
        elif data[0] == Kind.WELCOME:
            self._welcomed(member, data, now_ns)
        elif data[0] == Kind.COOKIE:
            self._greet(member, unpack_cookie(data)[1], now_ns)
        else:
            self.errors["refused"] += 1

    def _replied(self, member: _Member, frame: frames.Frame, now_ns: int) -> None:
        if not isinstance(frame, frames.Reply) or frame.re not in member.asked:
            return
        what, since_ns = member.asked.pop(frame.re)
        if isinstance(frame, frames.Error):
            self.errors[f"{what}: {frame.code}"] += 1
            return
        self.latencies.setdefault(what, []).append((now_ns - since_ns) / 1e9)
        if isinstance(frame, frames.Joined):
            member.space = frame.space
            self.joined.append(member)


def _seed(path: Path, count: int) -> list[bytes]:
    """Accounts with a device each, straight into a new database; -> their private keys."""
    keys = [os.urandom(32) for _ in range(count)]
    database = Database(f"sqlite:///{path}")
    database.upgrade()
    changes: list[Put] = []
    for number, key in enumerate(keys, 1):
        handle = f"member_{number}"
        account = AccountRecord(
            id=number, handle=handle, skeleton=skeleton(handle), name=f"Member {number}",
            role="person", access=True, invited_by=0, since_s=1,
        )  # fmt: skip
        device = DeviceRecord(
            key=public_key(key), account=number, number=1, label="bench", added_s=1
        )
        changes += [Put(account), Put(device)]
    database.commit([Commit(1, tuple(changes))])
    database.close()
    return keys


def _arrivals(members: Members, rate: float, count: int) -> Iterator[int]:
    start_ns = time.monotonic_ns()
    for n in range(count):
        members.begin(time.monotonic_ns())
        yield start_ns + int((n + 1) / rate * 1e9)


def _evening(members: Members, joins: float, others: float, until_ns: int) -> Iterator[int]:
    """Newcomers and leavers, hands and chat, evenly spread."""
    rng = random.Random(1)
    start_ns = time.monotonic_ns()
    raised: list[_Member] = []
    steps = int(joins + 2 * others)
    for n in range(int((until_ns - start_ns) / 1e9 * steps)):
        now_ns = time.monotonic_ns()
        turn = n % steps
        present = members.joined
        if turn < joins:
            leaver = present.pop(rng.randrange(len(present)))
            if leaver in raised:
                raised.remove(leaver)
            members.leave(leaver, now_ns)
            members.begin(now_ns)
        elif turn < joins + others:
            if len(raised) < HANDS_AT_ONCE:
                raised.append(rng.choice(present))
                members.ask(raised[-1], now_ns, frames.RaiseHand)
            else:
                members.ask(raised.pop(0), now_ns, frames.LowerHand)
        else:
            text = f"line {n} of the evening"
            members.ask(rng.choice(present), now_ns, frames.Chat, text=text)
        yield start_ns + int((n + 1) / steps * 1e9)


def _percentiles(seconds: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(seconds, [50, 99]) * 1_000
    return {
        "count": len(seconds),
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "max_ms": round(max(seconds) * 1_000, 2),
    }


def measure(members: int, joins: int, others: int, seconds: int) -> dict[str, Any]:
    """-> the figures that are printed; keys are stable."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        keys = _seed(data / "spaces.db", members + joins * (seconds + 2) + 2)
        stats = data / "stats.json"
        with subprocess.Popen(
            [
                sys.executable, "-m", "spaces_server", "run", "--port", "0", "--data", folder,
                "--public-host", "127.0.0.1", "--max-people", str(2 * members + 1_000),
                "--no-rate-limits", "--no-governor", "--no-qr", "--stats", str(stats),
            ],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        ) as server:  # fmt: skip
            try:
                assert server.stdout is not None
                link = Link.parse(server.stdout.readline().strip())
                with contextlib.closing(Members(link, keys)) as crowd:
                    seen = _drive(crowd, members, joins, others, seconds)
                return seen | {"server": _stop(server, stats)}
            finally:
                if server.poll() is None:
                    server.kill()


def _drive(crowd: Members, members: int, joins: int, others: int, seconds: int) -> dict[str, Any]:
    crowd.space = _open(crowd)
    if not crowd.space:
        raise click.ClickException(f"the space could not be opened: {dict(crowd.errors)}")
    start_ns = time.monotonic_ns()
    gathering = _arrivals(crowd, JOIN_RATE_AT_FIRST, members - 1)
    patience_ns = int(3 * members / JOIN_RATE_AT_FIRST * 1e9) + 10_000 * MS
    while len(crowd.joined) < members - 1 and time.monotonic_ns() - start_ns < patience_ns:
        crowd.run(time.monotonic_ns() + 1_000 * MS, gathering)
    crowd.run(time.monotonic_ns() + 2_000 * MS)
    gathered = len(crowd.joined)
    gathering_s = _percentiles(crowd.latencies.pop("join"))
    crowd.latencies.clear()
    crowd.lateness_ms.clear()
    crowd.datagrams.clear()
    until_ns = time.monotonic_ns() + seconds * 1_000 * MS
    crowd.run(until_ns, _evening(crowd, joins, others, until_ns))
    crowd.run(time.monotonic_ns() + 2_000 * MS)
    missing = sum(len(m.asked) for m in crowd._by_index.values() if not m.gone)
    return {
        "members": gathered,
        "joins_per_second": joins,
        "seconds": seconds,
        "acknowledged": {what: _percentiles(times) for what, times in crowd.latencies.items()},
        "while_gathering": gathering_s,
        "unanswered": missing,
        "errors": dict(crowd.errors),
        "feed_datagrams_per_second": crowd.datagrams[Kind.FEED] // seconds,
        "generator_lateness_p99_ms": round(float(np.percentile(crowd.lateness_ms, 99)), 2),
    }


def _open(crowd: Members) -> str:
    """The first member opens the space, as its host, and stays; -> the space."""
    crowd.space = ""  # to join comes later
    host = crowd.begin(time.monotonic_ns())
    give_up_ns = time.monotonic_ns() + int(STARTUP_S * 1e9)
    asked = False
    while not host.space and time.monotonic_ns() < give_up_ns:
        crowd.run(time.monotonic_ns() + 20 * MS)
        if host.connection is not None and not asked:
            asked = True
            crowd.ask(host, time.monotonic_ns(), frames.Open, title="ten thousand")
    crowd.joined.clear()  # the host is none of those who come and go
    return host.space


def _stop(server: "subprocess.Popen[str]", stats: Path) -> dict[str, Any]:
    server.send_signal(signal.SIGTERM)
    server.wait(20)
    seen: dict[str, Any] = json.loads(stats.read_text())
    keys = ("tick_lateness_ms", "ticks_skipped", "most_sessions", "cpu_s", "max_rss_bytes")
    return {key: seen[key] for key in keys}


@click.command()
@click.option("--members", default=10_000, show_default=True, type=click.IntRange(10))
@click.option("--joins-per-second", default=100, show_default=True, type=click.IntRange(1))
@click.option(
    "--others-per-second",
    default=10,
    show_default=True,
    type=click.IntRange(1),
    help="Hands raised or lowered a second, and as many lines of chat.",
)
@click.option("--seconds", default=20, show_default=True, type=click.IntRange(2))
def main(members: int, joins_per_second: int, others_per_second: int, seconds: int) -> None:
    """Fill one space with members and measure how soon they are answered; prints JSON."""
    # The server runs with real-time priority where it may.  Whoever measures must not wait behind
    # it for a core, or would count that as the server's delay.
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    print(json.dumps(measure(members, joins_per_second, others_per_second, seconds), indent=2))


if __name__ == "__main__":
    main()
