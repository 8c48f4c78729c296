"""The whole server without its shell: sessions, spaces, mixer and egress, joined.

The way of one packet: the endpoint finds the session and opens it; audio goes to the mix of the
member's space, a frame goes to the space, whose effects are carried out here.

    receive_datagram(data, address, now_ns)     as datagrams come
    tick(timestamp, now_ns) -> Batch | None     every 20 ms: timers, feeds, mixer, egress
    drain() -> [(datagram, address)]            after either: control datagrams

No sockets, clock, randomness or threads: they are handed in.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from protocol import frames
from protocol.connection import (
    CloseCode,
    Closed,
    Connection,
    Event,
    Media,
    Message,
    Pong,
    Roamed,
)
from protocol.frames import ErrorCode, FrameError
from protocol.opus import Encoder
from protocol.packets import Kind, MalformedPacketError, UplinkAudio
from protocol.reliable import ChannelFull
from spaces_server.endpoint import Endpoint, Session
from spaces_server.mixer.egress import Batch, Egress
from spaces_server.mixer.mixer import Mixer, ParallelMap, SpaceMix
from spaces_server.space import (
    Answer,
    Effect,
    Left,
    RefusedError,
    SourceAdded,
    SourceRemoved,
    Space,
    SpaceEnded,
    Tell,
    clean,
    new_token,
)

TOO_SLOW = "you do not take what you are sent"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server takes.  bitrate and complexity: of the mix's encoders (bit/s, 0 to 10)."""

    max_sessions: int = 20_000
    max_spaces: int = 1_000
    max_members: int = 20_000
    stage_size: int = 13
    bitrate: int = 32_000
    complexity: int = 8
    cookies_above: int = 200


@dataclass(slots=True, eq=False)
class _Room:
    """A space and what belongs to it: its mix, and its members' sessions."""

    space: Space
    mix: SpaceMix
    members: dict[int, "_Seat"]


@dataclass(slots=True, eq=False)
class _Seat:
    """A member's place: the session, and its row in the egress."""

    room: _Room
    member: int
    session: Session
    row: int


class Node:
    """log: told, in plain words, what an operator would want to read."""

    def __init__(
        self,
        private_key: bytes,
        *,
        entropy: Callable[[int], bytes],
        parallel_map: ParallelMap[Any, Any] = map,
        limits: Limits = Limits(),
        log: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.dropped: Counter[str] = Counter()  # datagrams that opened but were not taken
        self.endpoint = Endpoint(
            private_key, entropy, limits.max_sessions, cookies_above=limits.cookies_above
        )
        self.egress = Egress()
        self.mixer = Mixer(
            self.egress,
            partial(Encoder, bitrate=limits.bitrate, complexity=limits.complexity),
            parallel_map,
        )
        self._entropy = entropy
        self._limits = limits
        self._log = log
        self._rooms: dict[str, _Room] = {}
        self._seats: dict[int, _Seat] = {}  # session index -> where its member is
        self._telling: dict[_Room, None] = {}  # rooms whose feed has something to say, in order
        self._touched: dict[int, Session] = {}  # sessions that may have something to send
        self._too_slow: list[Session] = []  # closed for it; their members leave at the next tick

    @property
    def spaces(self) -> dict[str, Space]:
        return {name: room.space for name, room in self._rooms.items()}

    # -- in and out -------------------------------------------------------------------------------

    def receive_datagram(self, data: bytes, address: bytes, now_ns: int) -> None:
        received = self.endpoint.receive(data, address, now_ns)
        if received is None:
            return
        session, events, new = received
        for event in events:
            if type(event) is Media:
                self._receive_media(session, event, now_ns)
            else:
                self._receive_event(session, event, now_ns)
        if (
            new
            or not events
            or type(events[0]) is not Media
            or (session.connection.credit_bytes is not None)
        ):
            self._touched[session.index] = session

    def tick(self, timestamp: int, now_ns: int) -> Batch | None:
        """timestamp: the spaces' clock, samples of 48 kHz (u32)."""
        too_slow, self._too_slow = self._too_slow, []
        lost = [(s, Closed(CloseCode.TOO_SLOW, TOO_SLOW, by_peer=False)) for s in too_slow]
        for session, closed in [*lost, *self.endpoint.tick(now_ns)]:
            self._session_closed(session, closed, now_ns)
        for room in [room for room in self._telling if room.space.feed.due(now_ns)]:
            del self._telling[room]
            rows = [seat.row for seat in room.members.values()]
            for batch in room.space.feed.take():
                self.egress.put(Kind.FEED, batch, rows)
        self.mixer.tick(timestamp, now_ns)
        return self.egress.seal()

    def drain(self, now_ns: int) -> list[tuple[bytes, bytes]]:
        """-> the control datagrams that are to be sent, (datagram, address)."""
        touched, self._touched = self._touched, {}
        for session in touched.values():
            self.endpoint.flush(session, now_ns)
        outbox, self.endpoint.outbox = self.endpoint.outbox, []
        return outbox

    def shut_down(self, now_ns: int) -> None:
        """Tells every client that the server stops."""
        for session in self.endpoint.sessions.values():
            session.connection.close(CloseCode.SHUTDOWN, "the server is shutting down", now_ns)
            self._touched[session.index] = session

    # -- events -----------------------------------------------------------------------------------

    def _receive_media(self, session: Session, media: Media, now_ns: int) -> None:
        seat = self._seats.get(session.index)
        if seat is None or media.kind != Kind.AUDIO:
            self.dropped["audio outside a space"] += 1
            return
        try:
            audio = UplinkAudio.unpack(media.plaintext)
        except MalformedPacketError:
            self.dropped["malformed audio"] += 1
            return
        if not self.mixer.receive(seat.room.mix, seat.member, audio, now_ns):
            self.dropped["audio of one who may not speak"] += 1

    def _receive_event(self, session: Session, event: Event, now_ns: int) -> None:
        match event:
            case Message(data):
                self._receive_frame(session, data, now_ns)
            case Roamed():
                seat = self._seats.get(session.index)
                if seat is not None:
                    self.egress.moved(seat.row)
            case Closed():
                self._session_closed(session, event, now_ns)
            case Pong() | Media():
                pass

    def _session_closed(self, session: Session, closed: Closed, now_ns: int) -> None:
        self._touched[session.index] = session
        seat = self._seats.get(session.index)
        if seat is not None:
            self._apply(seat.room, seat.room.space.leave(seat.member, now_ns), None, now_ns)
        if not closed.by_peer:
            self._log(f"a client was lost: {closed.text}")

    # -- frames -----------------------------------------------------------------------------------

    def _receive_frame(self, session: Session, data: bytes, now_ns: int) -> None:
        try:
            frame = frames.decode(data)
        except FrameError as error:
            self._refuse(session, error.request_id, error.code, str(error), now_ns)
            return
        if not isinstance(frame, frames.Request):
            text = "only requests come from a client"
            self._refuse(session, 0, ErrorCode.MALFORMED, text, now_ns)
            return
        try:
            self._handle(session, frame, now_ns)
        except RefusedError as error:
            self._refuse(session, frame.id, error.code, str(error), now_ns)

    def _refuse(
        self, session: Session, request_id: int, code: ErrorCode, text: str, now_ns: int
    ) -> None:
        self._send(session, frames.Error(re=request_id, code=code, text=text), now_ns)

    def _handle(self, session: Session, request: frames.Request, now_ns: int) -> None:
        seat = self._seats.get(session.index)
        match request:
            case frames.Open() | frames.Join() if seat is not None:
                raise RefusedError(ErrorCode.ALREADY_JOINED)
            case frames.Open():
                self._open(session, request, now_ns)
            case frames.Join(space=name, invite=invite):
                room = self._rooms.get(name)
                if room is None:
                    raise RefusedError(ErrorCode.NO_SUCH_SPACE)
                token = invite if isinstance(invite, str) else None
                self._enter(session, room, request.id, request.name, token, now_ns)
            case _ if seat is None:
                raise RefusedError(ErrorCode.NOT_JOINED)
            case _:
                effects = seat.room.space.handle(seat.member, request, now_ns)
                self._apply(seat.room, effects, session, now_ns)

    def _open(self, session: Session, request: frames.Open, now_ns: int) -> None:
        if len(self._rooms) >= self._limits.max_spaces:
            raise RefusedError(ErrorCode.SERVER_FULL)
        title = clean(request.title, frames.MAX_TITLE_CHARS)
        clean(request.name, frames.MAX_NAME_CHARS)
        name = new_token(self._entropy)
        space = Space(name, title, self._entropy, self._limits.stage_size, self._limits.max_members)
        room = _Room(space, self.mixer.open(), {})
        self._rooms[name] = room
        self._log(f"the space {name} was opened")
        self._enter(session, room, request.id, request.name, None, now_ns, host=True)

    def _enter(
        self,
        session: Session,
        room: _Room,
        request_id: int,
        name: str,
        invite: str | None,
        now_ns: int,
        *,
        host: bool = False,
    ) -> None:
        member, effects = room.space.enter(name, session.identity, invite, now_ns, host=host)
        seat = _Seat(room, member, session, self.egress.add(session.connection))
        self._seats[session.index] = seat
        room.members[member] = seat
        room.mix.plan.add_member(member, seat.row)
        session.connection.status = lambda: room.space.feed.number
        joined = frames.Joined(
            re=request_id,
            space=room.space.id,
            you=room.space.view(member),
            snapshot=room.space.snapshot(),
        )
        self._apply(room, [Answer(joined), *effects], session, now_ns)

    # -- effects ----------------------------------------------------------------------------------

    def _apply(
        self, room: _Room, effects: list[Effect], asker: Session | None, now_ns: int
    ) -> None:
        """asker: whom an Answer goes to."""
        for effect in effects:
            match effect:
                case Answer(frame):
                    assert asker is not None, "only a request is answered"
                    self._send(asker, frame, now_ns)
                case Tell(member, frame):
                    seat = room.members.get(member)
                    if seat is not None:
                        self._send(seat.session, frame, now_ns)
                case SourceAdded(member, seat_number):
                    room.mix.add_source(member, seat_number)
                case SourceRemoved(member):
                    room.mix.remove_source(member)
                case Left(member):
                    self._unseat(room, member, asker, now_ns)
                case SpaceEnded(text):
                    self._end(room, text, now_ns)
        if room.space.feed.pending and not room.space.ended:
            self._telling[room] = None

    def _unseat(self, room: _Room, member: int, asker: Session | None, now_ns: int) -> None:
        seat = room.members.pop(member)
        del self._seats[seat.session.index]
        room.mix.plan.remove_member(member)
        self.egress.remove(seat.row)
        connection: Connection = seat.session.connection
        connection.status = lambda: 0
        if asker is not None and asker is not seat.session:
            connection.close(CloseCode.REPLACED, "you joined from elsewhere", now_ns)
            self._touched[seat.session.index] = seat.session

    def _end(self, room: _Room, text: str, now_ns: int) -> None:
        for member in list(room.members):
            self._unseat(room, member, None, now_ns)
        self.mixer.close(room.mix)
        self._telling.pop(room, None)
        del self._rooms[room.space.id]
        self._log(f"the space {room.space.id} has ended: {text}")

    def _send(self, session: Session, frame: frames.Frame, now_ns: int) -> None:
        try:
            session.connection.send(frames.encode(frame))
        except ChannelFull:
            session.connection.close(CloseCode.TOO_SLOW, TOO_SLOW, now_ns)
            self._too_slow.append(session)
        self._touched[session.index] = session
