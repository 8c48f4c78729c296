"""A seeded network: latency, jitter, bursty loss, reordering, duplication, narrow links with a
queue, and routers that give a client another address.

Nothing is delivered here: `send` says when what arrives where, and the world's clock does it.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

MS = 1_000_000
MAX_QUEUE_NS = 1_000 * MS  # before a narrow link; what would wait longer is lost
IP_UDP_BYTES = 28

Deliver = Callable[[int, bytes, bytes, bytes], None]  # (at_ns, source, destination, data)


@dataclass(frozen=True, slots=True)
class Path:
    """What a network does to datagrams, each way.  Loss is Gilbert-Elliott: in the good state
    nothing is lost, in the bad one everything; `loss` is the share in the long run and
    `burst_packets` the mean length of a bad time."""

    latency_ms: float = 20.0
    jitter_ms: float = 5.0
    loss: float = 0.0
    burst_packets: float = 1.5
    reorder: float = 0.0
    reorder_ms: float = 30.0
    duplicate: float = 0.0


CLEAN = Path(jitter_ms=0.5)
ROUGH = Path(loss=0.10, reorder=0.05, duplicate=0.03)


@dataclass(slots=True)
class Network:
    """Addresses are 28 bytes, as the server's.  A client's own address is translated by its
    router to a public one, which `rebind` changes; what comes to the old one is lost."""

    rng: random.Random
    path: Path
    deliver: Deliver
    server: bytes
    sent: int = 0
    lost: int = 0
    _cut: set[bytes] = field(default_factory=set)
    _bad: set[bytes] = field(default_factory=set)
    _public: dict[bytes, bytes] = field(default_factory=dict)
    _private: dict[bytes, bytes] = field(default_factory=dict)
    _last_public: int = 0
    _bits_per_s: dict[bytes, int] = field(default_factory=dict)
    _free_ns: dict[bytes, int] = field(default_factory=dict)  # when a narrow link has sent all

    def rebind(self, client: bytes) -> None:
        old = self._public.pop(client, None)
        if old is not None:
            del self._private[old]
        self._last_public += 1
        public = b"public %d" % self._last_public
        self._public[client] = public.ljust(28, b".")
        self._private[self._public[client]] = client

    def known_as(self, client: bytes) -> bytes:
        """The address that others see what it sends come from."""
        return self._public.get(client, client)

    def lose_all(self, client: bytes) -> None:
        """From now on nothing of this client's goes through, either way."""
        self._cut.add(client)

    def lose_nothing(self, client: bytes) -> None:
        """No more than of others' is lost again."""
        self._cut.discard(client)

    def narrow(self, client: bytes, bits_per_s: int | None) -> None:
        """From now on no more than this goes to the client, or comes from it; None: no limit."""
        for link in (client + b">", client + b"<"):
            self._bits_per_s.pop(link, None)
            if bits_per_s is not None:
                self._bits_per_s[link] = bits_per_s

    def _queue_ns(self, link: bytes, now_ns: int, data: bytes) -> int | None:
        """How long it waits before a narrow link and takes on it; None: there is no room."""
        bits_per_s = self._bits_per_s.get(link)
        if bits_per_s is None:
            return 0
        free_ns = max(now_ns, self._free_ns.get(link, 0))
        if free_ns - now_ns > MAX_QUEUE_NS:
            return None
        free_ns += (len(data) + IP_UDP_BYTES) * 8 * 1_000 * MS // bits_per_s
        self._free_ns[link] = free_ns
        return free_ns - now_ns

    def send(self, now_ns: int, source: bytes, destination: bytes, data: bytes) -> None:
        self.sent += 1
        if source != self.server:
            if source not in self._public:
                self.rebind(source)
            link, shown, to = source + b">", self._public[source], destination
        else:
            link, shown = destination + b"<", source
            client = self._private.get(destination)
            if client is None:
                self.lost += 1
                return
            to = client
        if {source, to} & self._cut or self._loses(link):
            self.lost += 1
            return
        link = to + b"<" if source == self.server else source + b">"
        queue_ns = self._queue_ns(link, now_ns, data)
        if queue_ns is None:
            self.lost += 1
            return
        copies = 2 if self.rng.random() < self.path.duplicate else 1
        for _ in range(copies):
            self.deliver(now_ns + queue_ns + self._delay_ns(), shown, to, data)

    def _loses(self, link: bytes) -> bool:
        """One step of the two-state chain of this direction of this link."""
        path = self.path
        if path.loss == 0:
            return False
        to_good = 1 / path.burst_packets
        to_bad = path.loss / (1 - path.loss) * to_good
        if link in self._bad:
            if self.rng.random() < to_good:
                self._bad.discard(link)
        elif self.rng.random() < to_bad:
            self._bad.add(link)
        return link in self._bad

    def _delay_ns(self) -> int:
        path = self.path
        delay_ms = path.latency_ms + min(self.rng.expovariate(1.0), 4.0) * path.jitter_ms
        if self.rng.random() < path.reorder:
            delay_ms += path.reorder_ms
        return int(delay_ms * MS)
