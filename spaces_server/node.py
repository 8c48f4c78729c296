"""The whole server without its shell: sessions, policy, mixer and egress, joined.

The way of one packet: the endpoint finds the session and opens it; audio goes to the mix of the
member's space, a frame goes to the house, whose effects are carried out here.

    receive_datagram(data, address, now_ns)     as datagrams are read
    receive_stored(reply, now_ns)               as the store's replies come
    work(now_ns)                                while something is `waiting`, and there is time
    tick(timestamp, now_ns, due_ns) -> [Batch]  every 20 ms: timers, feeds, mixer, egress
    half_tick(timestamp, due_ns) -> [Batch]     in the middle between two, where `stride` is 1
    drain(now_ns) -> [(datagram, address)]      after each of these: control datagrams
    to_store() -> [Commit | Fetch]              likewise: for the store, in order

No sockets, clock, randomness, threads or SQL: they are handed in.
"""

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from protocol import frames
from protocol.clock import samples_at
from protocol.connection import (
    CloseCode,
    Closed,
    Event,
    Media,
    Message,
    Pong,
    Reported,
    Roamed,
    no_news,
)
from protocol.frames import ERROR_TEXTS, ErrorCode, FrameError
from protocol.opus import Encoder
from protocol.packets import Kind, MalformedPacketError, UplinkAudio
from protocol.profile import profile_of
from protocol.reception import Reception
from protocol.redundancy import Redundancy
from protocol.reliable import ChannelFull
from spaces_server.endpoint import Endpoint, Received, Session
from spaces_server.governor import Governor, Tick
from spaces_server.ledger import Ledger
from spaces_server.mixer.crowd import Crowd
from spaces_server.mixer.egress import Batch, Egress
from spaces_server.mixer.mixer import Mixer, ParallelMap, SpaceMix
from spaces_server.policy.effects import (
    Answer,
    Ask,
    Asker,
    CloseSessions,
    Effect,
    Entered,
    GainSet,
    Left,
    Moment,
    RefusedError,
    Registered,
    Save,
    SourceAdded,
    SourceRemoved,
    SpaceEnded,
    Staged,
    Tell,
    TellAccount,
)
from spaces_server.policy.house import IN_A_SPACE, House, HouseRules, Place, Placed
from spaces_server.policy.space import Space
from spaces_server.recorder import Recorder
from spaces_server.records import Change, Loaded, Rows, StoreReply, StoreRequest

# Replies that say that something is so from now on.  (Of a message to somebody who blocked the
# sender nothing is stored; it is answered like any other.)
LASTING = (frames.Ok, frames.Reported, frames.Sent)
TOO_SLOW = "you do not take what you are sent"
FEED_A_TICK = 250  # datagrams of feeds, where that is enough to send them within FEED_TICKS
FEED_TICKS = 40  # 800 ms: what ten thousand are told is gathered for longer (policy/feed.py)
RECORDER_NS = 10 * 1_000_000_000  # between two looks for recordings that have grown old
REFUSED_NS = 60 * 1_000_000_000  # between two lines in the log about those who are not let in


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server carries.  bitrate and complexity: of the mix's encoders (bit/s, 0 to 10).
    crowd_above and crowd_packet_ms: how many listeners are a crowd, and how much they get in one
    datagram (mixer/crowd.py).  governed: whether something gives way when that is too much."""

    max_sessions: int = 20_000
    bitrate: int = 32_000
    complexity: int = 8
    cookies_above: int = 1_000
    crowd_above: int = 1_000
    crowd_packet_ms: int = 60
    governed: bool = True


@dataclass(slots=True, eq=False)
class _Room:
    """What belongs to a space beside its policy: its mix, and its members' sessions.  told: the
    number of the newest update of its feed that has been sent to everyone; whoever has not got
    that one has missed it."""

    id: str
    mix: SpaceMix
    recorder: Recorder
    told: int = 0
    members: dict[int, "_Seat"] = field(default_factory=dict)
    due_ns: int | None = None  # the earliest time that stands in the heap for it

    def status(self) -> int:
        """What the answers to its members' pings say."""
        return self.told


@dataclass(slots=True, eq=False)
class _Seat:
    """A member's place: the session, and its row in the egress.  redundancy: since they have
    reported losses, or a queue."""

    room: _Room
    member: int
    session: Session
    row: int
    redundancy: Redundancy | None = None


@dataclass(slots=True)
class _Telling:
    """A batch of a feed on its way.  seats: of those who have not been sent it.  told: what the
    space will have told when they have; 0 if more is to follow for that."""

    room: _Room
    batch: bytes
    seats: list[_Seat]
    told: int = 0


@dataclass(slots=True)
class _Turn:
    """One request, or one event, while its effects are carried out.  What it saves becomes one
    commit; its answer waits for that.  entered: the place that the asker took by it."""

    asker: Session | None = None
    request_id: int = 0
    changes: list[Change] = field(default_factory=list)
    answer: frames.Frame | None = None
    entered: _Seat | None = None


class Node:
    """log: told, in plain words, what an operator would want to read.  utc_offset_ns: what makes
    the wall's time of `now_ns`; the shell keeps it true."""

    def __init__(
        self,
        private_key: bytes,
        *,
        entropy: Callable[[int], bytes],
        parallel_map: ParallelMap[Any, Any] = map,
        limits: Limits = Limits(),
        rules: HouseRules = HouseRules(),
        loaded: Loaded = Loaded(),
        operator_key: bytes = b"",
        host_of: Callable[[bytes], bytes] = bytes,
        now_ns: int = 0,
        utc_offset_ns: int = 0,
        log: Callable[[str], None] = lambda _: None,
    ) -> None:
        """operator_key: the public key that has an owner's rights.  host_of: what of an address
        stands for whoever is behind it, for limits."""
        self.governor: Governor | None = None  # None: nothing takes time here, or nobody minds
        self.dropped: Counter[str] = Counter()  # datagrams that opened but were not taken
        self.utc_offset_ns = utc_offset_ns
        self.endpoint = Endpoint(
            private_key, entropy, limits.max_sessions, cookies_above=limits.cookies_above
        )
        self.egress = Egress()
        self.mixer = Mixer(
            self.egress,
            partial(Encoder, bitrate=limits.bitrate, complexity=limits.complexity),
            parallel_map,
            Crowd(limits.crowd_above, limits.crowd_packet_ms),
        )
        self.house = House(
            loaded,
            self._moment(now_ns),
            entropy=entropy,
            rules=rules,
            present=self._present,
            recording=self._recording,
            crowded=self._crowded,
        )
        self.ledger = Ledger()
        self._operator_key = operator_key
        self._host_of = host_of
        self._records = rules.space.evidence
        self._log = log
        self._now_ns = now_ns
        self._rooms: dict[str, _Room] = {}
        self._due: list[tuple[int, str]] = []  # when which space wants its tick
        self._feed: deque[_Telling] = deque()  # still to be sent
        self._feed_share = FEED_A_TICK  # datagrams of it that a tick sends
        self._seats: dict[int, _Seat] = {}  # session index -> where its member is
        self._sessions: dict[bytes, list[Session]] = {}  # by key
        self._touched: dict[int, Session] = {}  # sessions that may have something to send
        self._too_slow: list[Session] = []  # closed for it; their members leave at the next tick
        self._recorders_ns = now_ns
        self._decoded = self._encoded = self._sealed = 0  # until the last tick
        self._refused_ns = now_ns - REFUSED_NS
        for name in self.house.spaces:
            self._watch(self._room(name), now_ns)

    @property
    def spaces(self) -> dict[str, Space]:
        return self.house.spaces

    def _moment(self, now_ns: int) -> Moment:
        return Moment(now_ns, max(0, now_ns + self.utc_offset_ns) // 1_000_000_000)

    # -- in and out -------------------------------------------------------------------------------

    def receive_datagram(
        self, data: bytes, address: bytes, now_ns: int, waited_ns: int = 0
    ) -> None:
        """waited_ns: for how long it had been there before it was read; the jitter buffers, which
        learn from when packets come, want to know."""
        received = self.endpoint.receive(data, address, now_ns)
        if received is not None:
            self._take(received, now_ns, waited_ns)

    def _take(self, received: Received, now_ns: int, waited_ns: int = 0) -> None:
        session, events, new = received
        if new:
            self._session_begins(session, now_ns)
        for event in events:
            if session.gone:
                break
            if type(event) is Media:
                self._receive_media(session, event, now_ns - waited_ns)
            else:
                self._receive_event(session, event, now_ns)
        if (
            new
            or not events
            or type(events[0]) is not Media
            or session.connection.credit_bytes is not None
            or session.connection.reporting
        ):
            self._touched[session.index] = session

    @property
    def waiting(self) -> int:
        """How often `work` has something to do."""
        return self.endpoint.waiting

    def work(self, now_ns: int) -> None:
        """One control datagram or one handshake: what can wait for audio that is due."""
        received = self.endpoint.work(now_ns)
        if received is not None:
            self._take(received, now_ns)

    def receive_stored(self, reply: StoreReply, now_ns: int) -> None:
        self._now_ns = now_ns
        self.ledger.receive(reply)

    def to_store(self) -> list[StoreRequest]:
        return self.ledger.take()

    def tick(self, timestamp: int, now_ns: int, due_ns: int) -> Iterator[Batch]:
        """timestamp: the spaces' clock, samples of 48 kHz (u32).  due_ns: this tick's time, even if
        it runs later.  -> what is to be sent, sealed as it is taken; all of it must be."""
        self.egress.begin()
        too_slow, self._too_slow = self._too_slow, []
        lost = [(s, Closed(CloseCode.TOO_SLOW, TOO_SLOW, by_peer=False)) for s in too_slow]
        for session, closed in [*lost, *self.endpoint.tick(now_ns)]:
            self._session_ends(session, closed, now_ns)
        while self._due and self._due[0][0] <= now_ns:
            timer_ns, name = heapq.heappop(self._due)
            room = self._rooms.get(name)
            if room is not None and room.due_ns == timer_ns:
                self._tick_space(room, now_ns)
        self._carry_out(self.house.chores(self._moment(now_ns)), _Turn(), now_ns)
        if now_ns >= self._recorders_ns:
            self._recorders_ns = now_ns + RECORDER_NS
            for room in self._rooms.values():
                room.recorder.forget(now_ns)
        if self._feed:
            self._send_feed()
        self.mixer.tick(timestamp, due_ns)
        return self.egress.seal()

    def half_tick(self, timestamp: int, due_ns: int) -> Iterator[Batch]:
        """As `tick`, for spaces with frames of 10 ms, and for nothing but their sound."""
        self.egress.begin()
        self.mixer.tick(timestamp, due_ns, half=True)
        return self.egress.seal()

    def stride(self) -> int:
        """1 while half ticks have something to do, otherwise 2."""
        return 1 if self.mixer.hurried else 2

    def ticked(self, took_ns: int, encoding_ns: int, busy_ns: int, now_ns: int) -> None:
        """What the tick took, all sent (governor.Tick), and a half tick before it."""
        decoded, sealed = self.mixer.stats.decodes, self.egress.sealed
        decodes, self._decoded = decoded - self._decoded, decoded
        encoded = self.mixer.stats.encodes
        encodes, self._encoded = encoded - self._encoded, encoded
        datagrams, self._sealed = sealed - self._sealed, sealed
        if self.governor is None:
            return
        tick = Tick(took_ns, encoding_ns, busy_ns, encodes, decodes, datagrams)
        news = self.governor.ticked(tick, now_ns)
        if news:
            self.mixer.complexity = self.governor.complexity
            self._log(news)

    def _crowded(self, name: str) -> bool:
        if self.governor is None:
            return False
        room = self._rooms.get(name)
        datagrams = 0 if room is None else room.mix.datagrams_a_tick
        crowded = self.governor.crowded(datagrams + 1)
        if crowded and self._now_ns - self._refused_ns >= REFUSED_NS:
            self._refused_ns = self._now_ns
            what = "no space may be opened" if room is None else f"the space {name} may not grow"
            self._log(
                f"{what}: a tick of it sends {datagrams} datagrams and can send "
                f"{self.governor.capacity}, and ticks take {self.governor.load:.0%} of their time"
            )
        return crowded

    def due_ns(self, now_ns: int) -> int:
        """When `tick` has something to do next, unless something comes in before; chores, which
        nobody waits for, are left out."""
        if self.mixer.awake or self._feed or self._too_slow:
            return now_ns
        due_ns = self.endpoint.due_ns
        return min(due_ns, self._due[0][0]) if self._due else due_ns

    def _tick_space(self, room: _Room, now_ns: int) -> None:
        room.due_ns = None
        self._carry_out(self.house.tick(room.id, self._moment(now_ns)), _Turn(), now_ns)
        space = self.house.spaces.get(room.id)
        if space is None:
            return
        seats = room.members
        batches = space.batches(now_ns)
        for number, (batch, members) in enumerate(batches, 1):
            chosen = list(seats.values()) if members is None else [seats[m] for m in members]
            told = space.feed.sent if number == len(batches) else 0
            self._feed.append(_Telling(room, batch, chosen, told))
        backlog = sum(len(telling.seats) for telling in self._feed)
        self._feed_share = max(FEED_A_TICK, -(-backlog // FEED_TICKS))
        self._watch(room, now_ns)

    def _send_feed(self) -> None:
        """Puts this tick's share of the feeds into the egress.  Ten thousand copies of one chat
        line take longer to send than a tick may: they are spread over several, and the audio goes
        out in time."""
        share = self._feed_share
        while self._feed and share > 0:
            telling = self._feed[0]
            room = telling.room
            seats, telling.seats = telling.seats[:share], telling.seats[share:]
            share -= len(seats)
            # Who has left meanwhile may have been followed by somebody else in the same row.
            rows = [seat.row for seat in seats if room.members.get(seat.member) is seat]
            self.egress.put(Kind.FEED, telling.batch, rows)
            if not telling.seats:
                self._feed.popleft()
                room.told = telling.told or room.told

    def _watch(self, room: _Room, now_ns: int) -> None:
        """Sees to it that `tick` comes back to the space in time."""
        space = self.house.spaces.get(room.id)
        due_ns = None if space is None else space.due_ns
        if due_ns is not None and (room.due_ns is None or due_ns < room.due_ns):
            room.due_ns = max(due_ns, now_ns + 1)  # a later tick's, in any case
            heapq.heappush(self._due, (room.due_ns, room.id))

    def drain(self, now_ns: int) -> list[tuple[bytes, bytes]]:
        """-> the control datagrams that are to be sent, (datagram, address)."""
        touched, self._touched = self._touched, {}
        for session in touched.values():
            self.endpoint.flush(session, now_ns)
        outbox, self.endpoint.outbox = self.endpoint.outbox, []
        return outbox

    def owner_code(self, now_ns: int) -> str | None:
        """A new code for whoever is to own the server; None if somebody does."""
        made = self.house.people.owner_code(self._moment(now_ns))
        if made is None:
            return None
        code, effects = made
        self._carry_out([("", effect) for effect in effects], _Turn(), now_ns)
        return code

    def shut_down(self, now_ns: int) -> None:
        """Tells every client that the server stops."""
        for session in self.endpoint.sessions.values():
            session.connection.close(CloseCode.SHUTDOWN, "the server is shutting down", now_ns)
            self._touched[session.index] = session

    # -- sessions ---------------------------------------------------------------------------------

    def _session_begins(self, session: Session, now_ns: int) -> None:
        self._sessions.setdefault(session.identity, []).append(session)
        account = self._asker(session).account
        if account is not None:
            self._tell_kept(session, account.id, now_ns)

    def _tell_kept(self, session: Session, account: int, now_ns: int) -> None:
        for notice in self.house.people.kept(account):
            self._send(session, notice, now_ns)

    def _session_ends(self, session: Session, closed: Closed, now_ns: int) -> None:
        self._touched[session.index] = session
        seat = self._seats.get(session.index)
        if seat is not None:
            leave = self.house.leave if closed.by_peer else self.house.lost
            place = Place(seat.room.id, seat.member)
            self._carry_out(leave(place, self._moment(now_ns)), _Turn(), now_ns)
        self._forget_session(session)
        if not closed.by_peer:
            self._log(f"a client was lost: {closed.text}")

    def _forget_session(self, session: Session) -> None:
        if session.gone:
            return
        session.gone = True
        sessions = self._sessions[session.identity]
        sessions.remove(session)
        if not sessions:
            del self._sessions[session.identity]

    def _sessions_of(self, account: int) -> Iterable[Session]:
        for device in self.house.people.devices_of(account):
            yield from list(self._sessions.get(device.key, ()))

    def _present(self, account: int) -> bool:
        return any(True for _ in self._sessions_of(account))

    def _asker(self, session: Session) -> Asker:
        key = session.identity
        host = self._host_of(session.connection.address)
        return self.house.people.asker(key, host, operator=key == self._operator_key)

    # -- events -----------------------------------------------------------------------------------

    def _receive_media(self, session: Session, media: Media, came_ns: int) -> None:
        seat = self._seats.get(session.index)
        if seat is None or media.kind != Kind.AUDIO:
            self.dropped["audio outside a space"] += 1
            return
        try:
            audio = UplinkAudio.unpack(media.plaintext)
        except MalformedPacketError:
            self.dropped["malformed audio"] += 1
            return
        if self._records and seat.room.recorder.full(seat.member, came_ns):
            self.dropped["audio faster than it can be played"] += 1
        elif not self.mixer.receive(seat.room.mix, seat.member, audio, came_ns):
            self.dropped["audio of one who may not speak"] += 1
        else:
            seat.session.connection.media_was_late(seat.room.mix.sources[seat.member].late_ns)
            if self._records:
                seat.room.recorder.take(seat.member, audio.timestamp, audio.opus, came_ns)

    def _receive_event(self, session: Session, event: Event, now_ns: int) -> None:
        match event:
            case Message(data):
                self._receive_frame(session, data, now_ns)
            case Roamed():
                seat = self._seats.get(session.index)
                if seat is not None:
                    self.egress.moved(seat.row)
            case Closed():
                self._session_ends(session, event, now_ns)
            case Reported(reception):
                self._receive_report(session, reception)
            case Pong() | Media():
                pass

    def _receive_report(self, session: Session, reception: Reception) -> None:
        """Who loses much gets earlier frames again, who has a narrow path gets less."""
        seat = self._seats.get(session.index)
        if seat is None:
            return
        if seat.redundancy is None:
            seat.redundancy = Redundancy(seat.room.mix.profile.frame_samples)
        before = seat.redundancy.remedy
        seat.redundancy.report(reception)
        remedy = seat.redundancy.remedy
        if remedy != before:
            seat.room.mix.plan.set_remedy(seat.member, remedy)

    def _recording(self, place: Place) -> list[tuple[int, bytes]]:
        return self._rooms[place.space].recorder.recording(place.member, self._now_ns)

    # -- frames -----------------------------------------------------------------------------------

    def _receive_frame(self, session: Session, data: bytes, now_ns: int) -> None:
        self._now_ns = now_ns
        try:
            frame = frames.decode(data)
        except FrameError as error:
            refusal = frames.Error(re=error.request_id, code=error.code, text=str(error))
            self._send(session, refusal, now_ns)
            return
        if not isinstance(frame, frames.Request):
            text = "only requests come from a client"
            refusal = frames.Error(re=0, code=ErrorCode.MALFORMED, text=text)
            self._send(session, refusal, now_ns)
            return
        try:
            placed = self._decide(session, frame, now_ns)
        except RefusedError as error:
            self._refuse(session, frame.id, error, now_ns)
        else:
            self._carry_out(placed, _Turn(session, frame.id), now_ns)

    def _decide(self, session: Session, request: frames.Request, now_ns: int) -> list[Placed]:
        # Within a space, what is asked must work at once even if it cannot be stored for a while:
        # a moderator who mutes somebody does not wait for a disk.  Only its answer waits.
        waits = type(request) in IN_A_SPACE
        ledger = self.ledger
        if ledger.full or (not waits and (ledger.crowded or ledger.stuck(now_ns))):
            text = "the server cannot store anything now; try again later"
            raise RefusedError(ErrorCode.UNAVAILABLE, text)
        seat = self._seats.get(session.index)
        place = None if seat is None else Place(seat.room.id, seat.member)
        return self.house.handle(self._asker(session), place, request, self._moment(now_ns))

    def _refuse(self, session: Session, request_id: int, error: RefusedError, now_ns: int) -> None:
        frame = frames.Error(
            re=request_id, code=error.code, text=str(error), retry_ms=error.retry_ms
        )
        self._send(session, frame, now_ns)

    # -- effects ----------------------------------------------------------------------------------

    def _carry_out(self, placed: list[Placed], turn: _Turn, now_ns: int) -> None:
        self._apply(placed, turn, now_ns)
        self._settle(turn, now_ns)

    def _apply(self, placed: list[Placed], turn: _Turn, now_ns: int) -> None:
        for name, effect in placed:
            match effect:
                case Answer(frames.Clocks() as clocks):
                    turn.answer = self._with_spare(turn, clocks)
                case Answer(frame):
                    turn.answer = frame
                case Save(changes):
                    turn.changes += changes
                case Ask(query, then):
                    assert turn.asker is not None, "only a request asks the store"
                    done = partial(self._found, turn.asker, turn.request_id, then)
                    self.ledger.fetch(query, now_ns, done)
                case TellAccount(account, frame):
                    for session in self._sessions_of(account):
                        self._send(session, frame, now_ns)
                case Registered(account):
                    if turn.asker is not None:
                        self._tell_kept(turn.asker, account, now_ns)
                case CloseSessions(key, text):
                    self._close_sessions(key, text, turn, now_ns)
                case Entered(member, packet_ms):
                    self._seat(self._room(name), member, packet_ms, turn, now_ns)
                case Staged(member, on_stage):
                    self._rooms[name].mix.plan.set_on_stage(member, on_stage)
                case Tell(member, frame):
                    seat = self._rooms[name].members.get(member)
                    if seat is not None:
                        self._send(seat.session, frame, now_ns)
                case SourceAdded(member, seat_number):
                    self._rooms[name].mix.add_source(member, seat_number)
                case SourceRemoved(member):
                    self._rooms[name].mix.remove_source(member)
                case GainSet(hearer, source, gain):
                    self._rooms[name].mix.plan.set_gain(hearer, source, gain)
                case Left(member):
                    self._unseat(self._rooms[name], member, turn, now_ns)
                case SpaceEnded():
                    self._end(self._rooms[name], now_ns)
                case _:
                    raise TypeError(f"{effect} is for the house to expand")
        for name in dict.fromkeys(name for name, _ in placed):
            if name in self._rooms:
                self._watch(self._rooms[name], now_ns)

    def _with_spare(self, turn: _Turn, clocks: frames.Clocks) -> frames.Clocks:
        """With what the mixer alone knows of the asker's audio."""
        seat = None if turn.asker is None else self._seats.get(turn.asker.index)
        source = None if seat is None else seat.room.mix.sources.get(seat.member)
        if source is None:
            return clocks
        spare = samples_at(source.spare_ns)
        return frames.Clocks(re=clocks.re, now=clocks.now, voices=clocks.voices, spare=spare)

    def _settle(self, turn: _Turn, now_ns: int) -> None:
        """Stores what the turn saves, and answers when that is durable.  Whoever asks for what is
        so already (a second mute, say) is not answered before what made it so is durable."""
        asker, answer = turn.asker, turn.answer
        if not turn.changes and not (isinstance(answer, LASTING) and self.ledger.waiting):
            if asker is not None and answer is not None:
                self._send(asker, answer, now_ns)
            return

        def durable() -> None:
            if asker is not None and answer is not None:
                late = answer if turn.entered is None else self._joined(turn.entered, answer)
                self._send(asker, late, self._now_ns)

        self.ledger.commit(turn.changes, now_ns, durable)

    def _joined(self, seat: _Seat, answer: frames.Frame) -> frames.Frame:
        """The answer to whoever entered, as things are now that it goes out: what the feed told
        meanwhile is in the snapshot, and who is out again does not believe to be in."""
        assert isinstance(answer, frames.Reply)
        space = self.house.spaces.get(seat.room.id)
        if space is None:
            code = ErrorCode.SPACE_ENDED
            return frames.Error(re=answer.re, code=code, text=ERROR_TEXTS[code])
        if self._seats.get(seat.session.index) is not seat:
            text = "you are out of the space again"
            return frames.Error(re=answer.re, code=ErrorCode.NOT_JOINED, text=text)
        return space.joined(answer.re, seat.member)

    def _found(
        self,
        session: Session,
        request_id: int,
        then: Callable[[Rows], frames.Frame | list[Effect]],
        rows: Rows,
    ) -> None:
        now_ns = self._now_ns
        try:
            found = then(rows)
        except RefusedError as error:
            self._refuse(session, request_id, error, now_ns)
            return
        effects = found if isinstance(found, list) else [Answer(found)]
        self._carry_out([("", e) for e in effects], _Turn(session, request_id), now_ns)

    def _room(self, name: str) -> _Room:
        room = self._rooms.get(name)
        if room is None:
            profile = profile_of(self.house.spaces[name].settings)
            room = self._rooms[name] = _Room(name, self.mixer.open(profile), Recorder())
            self._log(f"the space {name} is open")
        return room

    def _seat(self, room: _Room, member: int, packet_ms: int, turn: _Turn, now_ns: int) -> None:
        session = turn.asker
        assert session is not None, "only who asks can enter"
        seat = _Seat(room, member, session, self.egress.add(session.connection))
        self._seats[session.index] = seat
        room.members[member] = seat
        room.mix.add_member(member, seat.row, packet_ms)
        session.connection.status = room.status
        turn.entered = seat

    def _unseat(self, room: _Room, member: int, turn: _Turn, now_ns: int) -> None:
        seat = room.members.pop(member)
        del self._seats[seat.session.index]
        room.mix.remove_member(member)
        self.egress.remove(seat.row)
        seat.session.connection.status = no_news
        if turn.entered is not None and seat.session is not turn.asker:
            self._close(seat.session, CloseCode.REPLACED, "you joined from elsewhere", now_ns)

    def _close_sessions(self, key: bytes, text: str, turn: _Turn, now_ns: int) -> None:
        for session in list(self._sessions.get(key, ())):
            seat = self._seats.get(session.index)
            if seat is not None:
                place = Place(seat.room.id, seat.member)
                self._apply(self.house.leave(place, self._moment(now_ns)), turn, now_ns)
            self._close(session, CloseCode.EXPELLED, text, now_ns)

    def _close(self, session: Session, code: CloseCode, text: str, now_ns: int) -> None:
        """Ends the session of somebody who is in no space (any more); nothing of theirs is taken
        from here on, not even what the same datagram held."""
        session.connection.close(code, text, now_ns)
        self._forget_session(session)
        self._touched[session.index] = session

    def _end(self, room: _Room, now_ns: int) -> None:
        for member in list(room.members):
            self._unseat(room, member, _Turn(), now_ns)
        self.mixer.close(room.mix)
        del self._rooms[room.id]
        self._log(f"the space {room.id} has ended")

    def _send(self, session: Session, frame: frames.Frame, now_ns: int) -> None:
        try:
            session.connection.send(frames.encode(frame))
        except ChannelFull:
            session.connection.close(CloseCode.TOO_SLOW, TOO_SLOW, now_ns)
            self._too_slow.append(session)
        self._touched[session.index] = session
