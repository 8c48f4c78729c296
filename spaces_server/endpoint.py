"""Sessions: handshakes, cookies under load, and finding a session by its index.

    HELLO ── key id, cookie if under load ──> waiting
    CONTROL ── index ───────────────────────> waiting
    AUDIO ── index ─────────────────────────> Connection
    when there is time: the oldest CONTROL ─> Connection, or if there is none
                        the oldest HELLO ───> Noise IK ──> half-open session, WELCOME
    first sealed datagram that opens ───────> session (the client's address is proven by it)

A handshake takes as long as about a hundred packets of audio, and so can what a control datagram
asks for.  So these wait, once they have passed the cheap checks, until `work` is called, which does
one of them; who calls it sees that audio goes first.  Whoever is in comes before those who want to
come in: what has been begun is brought to its end.

A half-open session holds keys and the WELCOME, so that a HELLO that comes twice is answered with
the same bytes; nothing else is sent for it, and the oldest gives way when there are too many.
"""

import heapq
import hmac
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

from protocol.connection import MS, Closed, Connection, Event, State
from protocol.frames import Greeting, decode_greeting, encode_greeting
from protocol.noise import Handshake, KeyPair, NoiseError
from protocol.packets import (
    COOKIE_BYTES,
    HELLO_EPHEMERAL,
    INDEX_BYTES,
    VERSION,
    Hello,
    Kind,
    MalformedPacketError,
    Refusal,
    Welcome,
    key_id,
    pack_cookie,
    pack_refused,
    unpack_header,
)
from protocol.reliable import RECEIVE_WINDOW_SEGMENTS
from protocol.sealing import SessionKeys
from spaces_server import AGENT

NEVER_NS = 1 << 62
HALF_OPEN_TIMEOUT_NS = 10_000 * MS
MAX_HALF_OPEN = 4_096
# HELLOs, not many more than are worked on before a client says its own again.  What comes on top is
# dropped, before anything is done for it: it will come again.
MAX_HELLOS = 512
# Control datagrams that wait, of all and of one session: twice as many as its window has segments.
MAX_CONTROL = 4_096
MAX_CONTROL_OF_ONE = 2 * RECEIVE_WINDOW_SEGMENTS
COOKIE_LIFETIME_NS = 60_000 * MS
TOGETHER_NS = 4_000 * MS  # far deadlines are met together: each tick that wakes costs
# Sessions whose timers are looked at in one tick; who is left is looked at in the next.  Those who
# came in together have the same deadline: all at once they would make the tick late.
TIMERS_A_TICK = 500
LOAD_WINDOW_NS = 1_000 * MS
COOKIES_ABOVE_HELLOS_PER_S = 1_000  # as many handshakes as one core makes; beyond: show a cookie
GREETING = encode_greeting(AGENT)


@dataclass(slots=True, eq=False)
class Session:
    """A client's connection, and who it is.  identity: its static public key, 32 bytes.  waiting:
    how many of its control datagrams do.  gone: nothing that comes is taken any more."""

    index: int
    identity: bytes
    connection: Connection
    agent: str
    wakes_ns: tuple[int, ...] = ()  # the deadlines that are kept for it, the next one last
    waiting: int = 0
    gone: bool = False


Received = tuple[Session, list[Event], bool]


@dataclass(slots=True)
class _HalfOpen:
    session: Session
    hello_id: bytes
    welcome: bytes
    welcomed_ns: int
    expires_ns: int


@dataclass(slots=True)
class _Cookies:
    """Proof of address without a state: a MAC over the address under a secret that changes."""

    entropy: Callable[[int], bytes]
    secret: bytes = b""
    previous: bytes = b""
    changed_ns: int = -COOKIE_LIFETIME_NS

    def _turn(self, now_ns: int) -> None:
        age_ns = now_ns - self.changed_ns
        if age_ns >= COOKIE_LIFETIME_NS:
            lives_on = self.secret and age_ns < 2 * COOKIE_LIFETIME_NS
            self.previous = self.secret if lives_on else self.entropy(32)
            self.secret = self.entropy(32)
            self.changed_ns = now_ns

    def make(self, address: bytes, now_ns: int) -> bytes:
        self._turn(now_ns)
        return hmac.digest(self.secret, address, "sha256")[:COOKIE_BYTES]

    def valid(self, cookie: bytes, address: bytes, now_ns: int) -> bool:
        self._turn(now_ns)
        return any(
            hmac.compare_digest(cookie, hmac.digest(s, address, "sha256")[:COOKIE_BYTES])
            for s in (self.secret, self.previous)
        )


@dataclass(slots=True)
class Endpoint:
    """private_key: the server's static X25519 key, 32 bytes.  entropy: random bytes.

    Call `work` while there is something `waiting` and time for it.  It and `receive` return what
    one datagram of a session was: (session, its events, whether the session is new), or None.
    Drain `outbox` (datagram, address) after every call that takes `now_ns`.
    """

    private_key: bytes
    entropy: Callable[[int], bytes]
    max_sessions: int = 20_000
    cookies_above: int = COOKIES_ABOVE_HELLOS_PER_S
    sessions: dict[int, Session] = field(default_factory=dict)
    outbox: list[tuple[bytes, bytes]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    _hellos: OrderedDict[bytes, tuple[Hello, bytes]] = field(default_factory=OrderedDict)
    _control: deque[tuple[Session, bytes, bytes]] = field(default_factory=deque)
    _half_open: OrderedDict[int, _HalfOpen] = field(default_factory=OrderedDict)
    _by_hello: dict[bytes, int] = field(default_factory=dict)
    _deadlines: list[int] = field(default_factory=list)  # a heap
    _by_deadline: dict[int, list[int]] = field(default_factory=dict)  # indices of sessions
    _window_start_ns: int = 0
    _window_hellos: int = 0
    _cookies: _Cookies = field(init=False)
    _static: KeyPair = field(init=False)
    _key_id: bytes = field(init=False)

    def __post_init__(self) -> None:
        self._cookies = _Cookies(self.entropy)
        self._static = KeyPair(self.private_key)
        self._key_id = key_id(self._static.public)

    @property
    def talking(self) -> bool:
        """Whether any session is not over yet."""
        return any(s.connection.state is not State.CLOSED for s in self.sessions.values())

    @property
    def waiting(self) -> int:
        """How many control datagrams and handshakes wait for `work`."""
        return len(self._control) + len(self._hellos)

    # -- what comes in ---------------------------------------------------------------------

    def receive(self, data: bytes, address: bytes, now_ns: int) -> Received | None:
        """Takes audio at once; what else there is waits."""
        if not data:
            self.dropped["empty"] += 1
            return None
        kind = data[0]
        if kind < Kind.CONTROL:
            if kind == Kind.HELLO:
                self._receive_hello(data, address, now_ns)
            else:
                self.dropped["unknown kind"] += 1
            return None
        session = self._session(data)
        if session is None:
            return None
        if kind == Kind.CONTROL:
            self._receive_control(session, data, address)
            return None
        return self._open(session, data, address, now_ns)

    def _session(self, data: bytes) -> Session | None:
        try:
            index = unpack_header(data)[2]
        except MalformedPacketError:
            self.dropped["malformed"] += 1
            return None
        session = self.sessions.get(index)
        if session is None:
            half = self._half_open.get(index)
            if half is None:
                self.dropped["no session"] += 1
                return None
            session = half.session
        return session

    def _receive_control(self, session: Session, data: bytes, address: bytes) -> None:
        if session.waiting >= MAX_CONTROL_OF_ONE or len(self._control) >= MAX_CONTROL:
            self.dropped["too much control"] += 1
            return
        session.waiting += 1
        self._control.append((session, data, address))

    def _open(self, session: Session, data: bytes, address: bytes, now_ns: int) -> Received | None:
        events = session.connection.receive(data, address, now_ns)
        if events is None:
            return None
        new = session.index not in self.sessions
        if new:
            self._confirm(session.index, now_ns)
        return session, events, new

    def _confirm(self, index: int, now_ns: int) -> None:
        """The first sealed datagram opened.  It proves the address that the WELCOME went to; if
        it came from another one, the connection has moved there and owes the proof."""
        half = self._half_open.pop(index)
        del self._by_hello[half.hello_id]
        self.sessions[index] = half.session
        half.session.connection.observe_rtt(now_ns - half.welcomed_ns)

    def _receive_hello(self, data: bytes, address: bytes, now_ns: int) -> None:
        # Repeats first, and cheaply: the more people wait, the more of these come.  The ephemeral
        # key is new in every handshake.
        hello_id = data[HELLO_EPHEMERAL] + address
        if hello_id in self._hellos:
            return
        try:
            hello = Hello.unpack(data)
        except MalformedPacketError:
            self.dropped["malformed"] += 1
            return
        if hello.version != VERSION:
            self._refuse(hello, Refusal.VERSION, address)
            return
        if hello.key_id != self._key_id:
            self._refuse(hello, Refusal.WRONG_KEY, address)
            return
        known = self._by_hello.get(hello_id)
        if known is not None:
            self.outbox.append((self._half_open[known].welcome, address))
            return
        if len(self._hellos) >= MAX_HELLOS:
            self.dropped["too many hellos"] += 1
            return
        if self._under_load(now_ns) and not self._cookies.valid(hello.cookie, address, now_ns):
            self.dropped["cookie asked"] += 1
            cookie = self._cookies.make(address, now_ns)
            self.outbox.append((pack_cookie(hello.client_index, cookie), address))
            return
        if len(self.sessions) + len(self._half_open) + len(self._hellos) >= self.max_sessions:
            self._refuse(hello, Refusal.FULL, address)
            return
        self._hellos[hello_id] = hello, address

    def _under_load(self, now_ns: int) -> bool:
        if now_ns - self._window_start_ns >= LOAD_WINDOW_NS:
            self._window_start_ns = now_ns
            self._window_hellos = 0
        self._window_hellos += 1
        places = min(MAX_HALF_OPEN, self.max_sessions - len(self.sessions))
        return self._window_hellos > self.cookies_above or len(self._half_open) > places // 2

    def _refuse(self, hello: Hello, code: Refusal, address: bytes) -> None:
        self.dropped[f"refused: {code.name.lower()}"] += 1
        self.outbox.append((pack_refused(hello.client_index, code), address))

    # -- what has waited -------------------------------------------------------------------

    def work(self, now_ns: int) -> Received | None:
        """Opens one control datagram, or if none waits makes one handshake."""
        if self._control:
            session, data, address = self._control.popleft()
            session.waiting -= 1
            if self._session(data) is session:  # it may have ended meanwhile
                return self._open(session, data, address, now_ns)
        elif self._hellos:
            hello_id, (hello, address) = self._hellos.popitem(last=False)
            self._welcome(hello, hello_id, address, now_ns)
        return None

    def _welcome(self, hello: Hello, hello_id: bytes, address: bytes, now_ns: int) -> None:
        noise = Handshake(
            initiator=False,
            prologue=hello.prologue,
            entropy=self.entropy,
            static=self._static,
        )
        try:
            greeting: Greeting = decode_greeting(noise.read(hello.noise))
            index = self._new_index()
            answer = noise.write(index.to_bytes(INDEX_BYTES) + GREETING)
        except NoiseError:
            self.dropped["forged hello"] += 1
            return
        receive, send = noise.split()
        connection = Connection(
            SessionKeys.derive(send=send.key, receive=receive.key),
            remote_index=hello.client_index,
            address=address,
            now_ns=now_ns,
            entropy=self.entropy,
            keep_alive=False,
        )
        session = Session(index, noise.remote_static, connection, greeting.agent)
        welcome = Welcome(hello.client_index, answer).pack()
        while len(self._half_open) >= MAX_HALF_OPEN:
            self._forget_half_open()
        self._half_open[index] = _HalfOpen(
            session, hello_id, welcome, now_ns, now_ns + HALF_OPEN_TIMEOUT_NS
        )
        self._by_hello[hello_id] = index
        self.outbox.append((welcome, address))

    def _new_index(self) -> int:
        while True:
            index = int.from_bytes(self.entropy(INDEX_BYTES))
            if index not in self.sessions and index not in self._half_open:
                return index

    def _forget_half_open(self) -> None:
        _, half = self._half_open.popitem(last=False)
        del self._by_hello[half.hello_id]

    # -- what goes out ---------------------------------------------------------------------

    def flush(self, session: Session, now_ns: int) -> None:
        """Puts what the session's connection has to send into the outbox, and sees to it that
        `tick` comes back to it in time."""
        connection = session.connection
        for datagram in connection.transmit(now_ns):
            self.outbox.append((datagram, connection.address))
        self._watch(session, connection.deadline_ns, now_ns)

    def _watch(self, session: Session, deadline_ns: int, now_ns: int) -> None:
        if deadline_ns <= now_ns:
            deadline_ns = now_ns + 1  # a later tick's, in any case
        elif deadline_ns - now_ns > TOGETHER_NS:
            deadline_ns = -(-deadline_ns // TOGETHER_NS) * TOGETHER_NS
        wakes_ns = session.wakes_ns
        if not wakes_ns or deadline_ns < wakes_ns[-1]:
            session.wakes_ns = (*wakes_ns, deadline_ns)
            indices = self._by_deadline.get(deadline_ns)
            if indices is None:
                indices = self._by_deadline[deadline_ns] = []
                heapq.heappush(self._deadlines, deadline_ns)
            indices.append(session.index)

    @property
    def due_ns(self) -> int:
        """When `tick` has something to do next; far away if there is nobody."""
        times = [half.expires_ns for half in islice(self._half_open.values(), 1)]
        times += self._deadlines[:1]
        return min(times, default=NEVER_NS)

    def tick(self, now_ns: int) -> list[tuple[Session, Closed]]:
        """Runs timers that are due, TIMERS_A_TICK at most; -> the sessions that are lost by it."""
        while self._half_open and next(iter(self._half_open.values())).expires_ns <= now_ns:
            self._forget_half_open()
        lost: list[tuple[Session, Closed]] = []
        left = TIMERS_A_TICK
        while left and self._deadlines and self._deadlines[0] <= now_ns:
            due_ns = self._deadlines[0]
            waiting = self._by_deadline[due_ns]
            indices = waiting[:left]
            left -= len(indices)
            del waiting[: len(indices)]
            if not waiting:
                heapq.heappop(self._deadlines)
                del self._by_deadline[due_ns]
            for index in indices:
                session = self.sessions.get(index)
                if session is None or session.wakes_ns[-1:] != (due_ns,):
                    continue  # gone; another may have its index by now
                session.wakes_ns = session.wakes_ns[:-1]
                connection = session.connection
                deadline_ns = connection.deadline_ns
                if deadline_ns > now_ns:
                    self._watch(session, deadline_ns, now_ns)  # heard meanwhile, as most are
                    continue
                lost += [(session, e) for e in connection.tick(now_ns) if isinstance(e, Closed)]
                if connection.over(now_ns):
                    del self.sessions[index]
                else:
                    self.flush(session, now_ns)
        return lost
