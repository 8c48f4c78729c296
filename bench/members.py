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

import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench.clients import Batch, Client, Clients
from bench.polled import ROUND_NS, rest
from bench.process import ProcessError, pinned
from bench.server import MeasuredServer
from protocol import frames
from protocol.connection import MS, CloseCode
from protocol.link import Link
from protocol.noise import public_key
from protocol.packets import Kind
from protocol.text import skeleton
from spaces_server.records import AccountRecord, Commit, DeviceRecord, Put
from spaces_server.store.database import Database

HANDS_AT_ONCE = 50
STARTUP_S = 20.0
JOIN_RATE_AT_FIRST = 250  # a second, until all are in


class _Member(Client):
    """One simulated client.  space: where it is.  asked: what has not been answered, by id, and
    when it was asked."""

    __slots__ = ("asked", "begun_ns", "gone", "space")

    def __init__(self, clients: Clients["_Member"], number: int, key: bytes, now_ns: int) -> None:
        super().__init__(number, clients.socket_for(number), key)
        self.begun_ns = now_ns
        self.space = ""
        self.gone = False
        self.asked: dict[int, tuple[str, int]] = {}


class Members(Clients[_Member]):
    """All clients.  latencies: seconds, by request.  feeds: datagrams of news that came."""

    def __init__(self, link: Link, keys: list[bytes]) -> None:
        super().__init__(link)
        self.space = ""  # which newcomers join; none while it is empty
        self.latencies: dict[str, list[float]] = {}
        self.errors: Counter[str] = Counter()
        self.feeds = 0
        self.lateness_ms: list[float] = []
        self.joined: list[_Member] = []
        self._keys = iter(enumerate(keys))

    @property
    def unanswered(self) -> int:
        """How many requests of those who are still there."""
        return sum(len(member.asked) for member in self._by_index.values() if not member.gone)

    def run(self, seconds: float, script: Iterator[int] | None = None) -> None:
        """Lets time pass; script: does something, and yields when it wants to go on (ns)."""
        until_ns = time.monotonic_ns() + int(seconds * 1e9)
        due_ns = next(script, until_ns) if script is not None else until_ns
        while (now_ns := time.monotonic_ns()) < until_ns:
            self.turn()
            if script is not None and now_ns >= due_ns:
                self.lateness_ms.append((now_ns - due_ns) / MS)
                due_ns = next(script, until_ns)
            rest(min(now_ns + ROUND_NS, due_ns))

    # -- one member ---------------------------------------------------------------------------

    def begin(self, now_ns: int) -> _Member:
        """A newcomer's HELLO; the rest of the way to `joined` follows by itself."""
        number, key = next(self._keys)
        member = _Member(self, number, key, now_ns)
        self.prepare(member)
        self.greet(member, now_ns)
        return member

    def ask(self, client: _Member, kind: type[frames.Request], now_ns: int, **fields: Any) -> None:
        since_ns = client.begun_ns if kind is frames.Join else now_ns
        client.asked[client.last_id + 1] = (frames.tag(kind), since_ns)
        super().ask(client, kind, now_ns, **fields)

    def leave(self, member: _Member, now_ns: int) -> None:
        assert member.connection is not None
        member.gone = True
        member.connection.close(CloseCode.LEAVING, "", now_ns)
        self._flush(member, now_ns)

    def _count(self, batch: Batch, now_ns: int) -> None:
        self.feeds += int(np.count_nonzero(batch.kinds == Kind.FEED))

    def _welcomed(self, member: _Member, now_ns: int) -> None:
        if self.space:
            self.ask(member, frames.Join, now_ns, space=self.space)

    def _replied(self, member: _Member, reply: frames.Reply, now_ns: int) -> None:
        if reply.re not in member.asked:
            return
        what, since_ns = member.asked.pop(reply.re)
        if isinstance(reply, frames.Error):
            self.errors[f"{what}: {reply.code}"] += 1
            return
        self.latencies.setdefault(what, []).append((now_ns - since_ns) / 1e9)
        if isinstance(reply, frames.Joined):
            member.space = reply.space
            self.joined.append(member)

    def _ended(self, member: _Member, text: str) -> None:
        self.errors[text] += 1


def _seed(folder: Path, keys: list[bytes]) -> None:
    """An account with a device for each of these private keys, straight into a new database."""
    database = Database(f"sqlite:///{folder / 'spaces.db'}")
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


def _arrivals(members: Members, rate: float, count: int) -> Iterator[int]:
    start_ns = time.monotonic_ns()
    for n in range(count):
        members.begin(time.monotonic_ns())
        yield start_ns + int((n + 1) / rate * 1e9)


def _evening(members: Members, joins: int, others: int, seconds: int) -> Iterator[int]:
    """Newcomers and leavers, hands and chat, evenly spread."""
    rng = random.Random(1)
    start_ns = time.monotonic_ns()
    raised: list[_Member] = []
    steps = joins + 2 * others
    for n in range(seconds * steps):
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
                members.ask(raised[-1], frames.RaiseHand, now_ns)
            else:
                members.ask(raised.pop(0), frames.LowerHand, now_ns)
        else:
            text = f"line {n} of the evening"
            members.ask(rng.choice(present), frames.Chat, now_ns, text=text)
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
    """-> the figures that are printed; keys are stable.  Raises ProcessError."""
    keys = [os.urandom(32) for _ in range(members + joins * (seconds + 2) + 2)]
    with ExitStack() as stack:
        server = MeasuredServer(
            stack, None, "--no-governor", "--max-people", str(2 * members + 1_000),
            fill=lambda folder: _seed(folder, keys),
        )  # fmt: skip
        crowd = stack.enter_context(closing(Members(server.link, keys)))
        seen = _drive(crowd, members, joins, others, seconds)
        stats = server.stats()
    of_the_server = ("tick_lateness_ms", "ticks_skipped", "most_sessions", "cpu_s", "max_rss_bytes")
    return seen | {"server": {key: stats[key] for key in of_the_server}}


def _drive(crowd: Members, members: int, joins: int, others: int, seconds: int) -> dict[str, Any]:
    crowd.space = _open(crowd)
    if not crowd.space:
        raise click.ClickException(f"the space could not be opened: {dict(crowd.errors)}")
    gathering = _arrivals(crowd, JOIN_RATE_AT_FIRST, members - 1)
    give_up = time.monotonic() + 3 * members / JOIN_RATE_AT_FIRST + 10
    while len(crowd.joined) < members - 1 and time.monotonic() < give_up:
        crowd.run(1.0, gathering)
    crowd.run(2.0)
    gathered = len(crowd.joined)
    gathering_s = _percentiles(crowd.latencies.pop("join"))
    crowd.latencies.clear()
    crowd.lateness_ms.clear()
    crowd.feeds = 0
    crowd.run(seconds, _evening(crowd, joins, others, seconds))
    crowd.run(2.0)
    return {
        "members": gathered,
        "joins_per_second": joins,
        "seconds": seconds,
        "acknowledged": {what: _percentiles(times) for what, times in crowd.latencies.items()},
        "while_gathering": gathering_s,
        "unanswered": crowd.unanswered,
        "errors": dict(crowd.errors),
        "feed_datagrams_per_second": crowd.feeds // seconds,
        "generator_lateness_p99_ms": round(float(np.percentile(crowd.lateness_ms, 99)), 2),
    }


def _open(crowd: Members) -> str:
    """The first member opens the space, as its host, and stays; -> the space."""
    host = crowd.begin(time.monotonic_ns())
    give_up = time.monotonic() + STARTUP_S
    asked = False
    while not host.space and time.monotonic() < give_up:
        crowd.run(0.02)
        if host.connection is not None and not asked:
            asked = True
            crowd.ask(host, frames.Open, time.monotonic_ns(), title="ten thousand")
    crowd.joined.clear()  # the host is none of those who come and go
    return host.space


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
    try:
        # The server runs with real-time priority where it may.  Whoever measures must not wait
        # behind it for a core, or would count that as the server's delay.
        with pinned(None):
            figures = measure(members, joins_per_second, others_per_second, seconds)
    except ProcessError as error:
        raise click.ClickException(str(error)) from error
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
