"""The whole server in one piece, with real clients and no network between them."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import frames
from protocol.connection import IDLE_TIMEOUT_NS, KEEPALIVE_NS, MS, CloseCode, Connection
from protocol.frames import ErrorCode
from protocol.link import Link
from protocol.noise import public_key
from protocol.opus import Encoder
from protocol.packets import AudioFlag, DownlinkAudio, Kind, UplinkAudio
from protocol.reliable import ChannelFull
from protocol.roles import Role
from spaces_client.client import Client, ClientEvent, Disconnected, Ended, Heard, Phase, Replied
from spaces_server.node import Limits, Node
from spaces_server.space import Space

SERVER = b"server".ljust(28, b".")
TICK_NS = 20 * MS
FRAME = 960


@dataclass(eq=False)
class Guest:
    """A client, and what it was told and heard."""

    client: Client
    address: bytes
    key: bytes
    deaf: bool = False  # nothing that is sent to it arrives
    gone: bool = False  # nothing that it sends arrives either
    events: list[ClientEvent] = field(default_factory=list)
    heard: list[DownlinkAudio] = field(default_factory=list)
    spoken: int = 0  # frames
    encoder: Encoder = field(default_factory=lambda: Encoder(complexity=0))

    @property
    def id(self) -> int:
        assert self.client.view.me is not None
        return self.client.view.me.id

    @property
    def connection(self) -> Connection:
        assert self.client._connection is not None
        return self.client._connection

    def replies(self) -> list[frames.Frame]:
        return [e.frame for e in self.events if isinstance(e, Replied)]

    def disconnected(self) -> list[int]:
        return [e.code for e in self.events if isinstance(e, Disconnected)]

    def audio(self) -> bytes:
        """The plaintext of the next packet of a voice, whether or not one may speak."""
        at = (self.spoken * FRAME + np.arange(FRAME)) / 48_000
        sound = (0.2 * np.sin(2 * np.pi * 440 * at)).astype(np.float32)
        flags = 0 if self.spoken else AudioFlag.FIRST
        self.spoken += 1
        opus = self.encoder.encode(sound)
        return UplinkAudio(self.spoken * FRAME, flags, opus).pack()


class Hall:
    """A server and its guests.  `settle` carries datagrams until there are no more."""

    def __init__(self, **limits: Any) -> None:
        self.now_ns = 1_000 * MS
        self.log: list[str] = []
        self.node = Node(
            os.urandom(32),
            entropy=os.urandom,
            limits=Limits(**{"complexity": 0, "cookies_above": 10_000} | limits),
            log=self.log.append,
        )
        self.guests: list[Guest] = []
        self.ticks = 0
        self.link = Link("server", 5004, public_key(self.node.endpoint.private_key))

    def guest(self, key: bytes | None = None) -> Guest:
        """One who is connected, and in no space."""
        key = key or os.urandom(32)
        client = Client(
            self.link,
            key,
            entropy=os.urandom,
            now_ns=self.now_ns,
            address=SERVER,
            complexity=0,
        )
        guest = Guest(client, (b"guest %d" % len(self.guests)).ljust(28, b"."), key)
        self.guests.append(guest)
        self.settle()
        assert guest.client.phase is Phase.CONNECTED
        return guest

    def send(self, guest: Guest, datagram: bytes) -> None:
        if not guest.gone:
            self.node.receive_datagram(datagram, guest.address, self.now_ns)

    def settle(self) -> None:
        for _ in range(100):
            busy = False
            for guest in self.guests:
                for datagram in guest.client.transmit(self.now_ns):
                    self.send(guest, datagram)
            for datagram, address in self.node.drain(self.now_ns):
                self.deliver(datagram, address)
                busy = True
            if not busy:
                return
        raise AssertionError("they talk to each other for ever")

    def deliver(self, datagram: bytes, address: bytes) -> None:
        for guest in self.guests:
            if guest.address == address and not guest.deaf:
                for event in guest.client.receive(datagram, self.now_ns):
                    if isinstance(event, Heard):
                        guest.heard.append(event.audio)
                    else:
                        guest.events.append(event)

    def tick(self, count: int = 1, *speakers: Guest) -> None:
        """Lets 20 ms pass, count times, in which these send audio."""
        for _ in range(count):
            for speaker in speakers:
                packet = speaker.connection.send_media(Kind.AUDIO, speaker.audio())
                self.send(speaker, packet)
            self.now_ns += TICK_NS
            self.ticks += 1
            batch = self.node.tick(self.ticks * FRAME, self.now_ns)
            if batch is not None:
                for row, length, address in zip(
                    batch.arena, batch.lengths, batch.addresses, strict=True
                ):
                    self.deliver(row[:length].tobytes(), address.tobytes())
            for guest in self.guests:
                if not guest.gone and self.now_ns >= guest.client.deadline_ns:
                    guest.events += guest.client.tick(self.now_ns)
            self.settle()

    def ask(self, guest: Guest, kind: type[frames.Request], **fields: Any) -> frames.Frame:
        """-> the one reply."""
        request_id = guest.client.request(kind, **fields)
        self.settle()
        (reply,) = [e for e in guest.events if isinstance(e, Replied) and e.id == request_id]
        return reply.frame

    def does(self, guest: Guest, kind: type[frames.Request], **fields: Any) -> None:
        assert isinstance(self.ask(guest, kind, **fields), frames.Ok)

    def refuses(self, code: ErrorCode, guest: Guest, kind: type[frames.Request], **f: Any) -> None:
        reply = self.ask(guest, kind, **f)
        assert isinstance(reply, frames.Error)
        assert reply.code == code
        assert reply.text

    def says(self, guest: Guest, message: bytes) -> frames.Frame:
        """-> the one reply to a message of any bytes."""
        before = len(guest.events)
        guest.connection.send(message)
        self.settle()
        (reply,) = [e.frame for e in guest.events[before:] if isinstance(e, Replied)]
        return reply

    # -- a space, quickly

    def space(self, speakers: int = 1, listeners: int = 0) -> list[Guest]:
        """The first is the host."""
        host = self.guest()
        reply = self.ask(host, frames.Open, title="title", name="host")
        assert isinstance(reply, frames.Joined)
        invited = self.ask(host, frames.Invite)
        assert isinstance(invited, frames.Invited)
        others = [self.guest() for _ in range(speakers - 1 + listeners)]
        for number, guest in enumerate(others, 1):
            token = {"invite": invited.invite} if number < speakers else {}
            self.join(guest, reply.space, **token)
        return [host, *others]

    def join(self, guest: Guest, space: str, **fields: Any) -> None:
        reply = self.ask(guest, frames.Join, space=space, name="guest", **fields)
        assert isinstance(reply, frames.Joined)
        assert reply.you.id == guest.id

    def the_space(self) -> Space:
        (space,) = self.node.spaces.values()
        return space

    def agree(self, *guests: Guest) -> None:
        snapshot = self.the_space().snapshot()
        for guest in guests:
            view = guest.client.view
            assert view.number == snapshot.number
            assert view.members == {m.id: m for m in snapshot.members}
            assert view.listeners == snapshot.listeners
            assert view.me == self.the_space().view(guest.id)


# -- answers --------------------------------------------------------------------------------------


def packed(**fields: Any) -> bytes:
    data: bytes = msgpack.packb(fields)
    return data


@pytest.mark.parametrize(
    ("message", "re", "code"),
    [
        (b"", 0, ErrorCode.MALFORMED),
        (b"\xc1", 0, ErrorCode.MALFORMED),
        (b"\x93\x01\x02\x03", 0, ErrorCode.MALFORMED),
        (packed(type="look"), 0, ErrorCode.MALFORMED),
        (packed(type="mute", id=5, member="somebody"), 5, ErrorCode.MALFORMED),
        (packed(type="bring_up", id=6), 6, ErrorCode.MALFORMED),
        (packed(type="look", id=2**32), 0, ErrorCode.MALFORMED),
        (packed(type="ok", re=3), 0, ErrorCode.MALFORMED),
        (packed(type="ended", text="really"), 0, ErrorCode.MALFORMED),
        (packed(type="dance", id=7), 7, ErrorCode.UNKNOWN_TYPE),
        (packed(id=8), 8, ErrorCode.UNKNOWN_TYPE),
    ],
)
def test_frames_that_are_none(message: bytes, re: int, code: ErrorCode) -> None:
    hall = Hall()
    for guest in (hall.guest(), hall.space()[0]):
        reply = hall.says(guest, message)
        assert isinstance(reply, frames.Error)
        assert (reply.re, reply.code) == (re, code)
        assert reply.text
        hall.agree()
        assert isinstance(hall.says(guest, packed(type="look", id=9)), frames.State | frames.Error)


def test_requests_that_are_refused() -> None:
    hall = Hall(max_spaces=1, max_members=3)
    host, listener = hall.space(1, 1)
    stranger = hall.guest()
    name = host.client.view.id
    before = hall.the_space().snapshot()
    hall.refuses(ErrorCode.NOT_ALLOWED, listener, frames.Close)
    hall.refuses(ErrorCode.NOT_ALLOWED, listener, frames.Mute, member=host.id)
    hall.refuses(ErrorCode.NO_HAND, host, frames.BringUp, member=listener.id)
    hall.refuses(ErrorCode.NO_SUCH_MEMBER, host, frames.TakeDown, member=99)
    hall.refuses(ErrorCode.ALREADY_JOINED, listener, frames.Join, space=name, name="x")
    hall.refuses(ErrorCode.ALREADY_JOINED, listener, frames.Open, title="t", name="x")
    hall.refuses(ErrorCode.NOT_JOINED, stranger, frames.RaiseHand)
    hall.refuses(ErrorCode.NO_SUCH_SPACE, stranger, frames.Join, space="nowhere", name="x")
    hall.refuses(ErrorCode.BAD_INVITE, stranger, frames.Join, space=name, name="x", invite="no")
    hall.refuses(ErrorCode.BAD_TEXT, stranger, frames.Join, space=name, name="\x1b[2J")
    hall.refuses(ErrorCode.SERVER_FULL, stranger, frames.Open, title="t", name="x")
    assert hall.the_space().snapshot() == before
    hall.join(stranger, name)
    late = hall.guest()
    hall.refuses(ErrorCode.SPACE_FULL, late, frames.Join, space=name, name="x")


def test_a_space_with_a_bad_title_is_not_opened() -> None:
    hall = Hall()
    guest = hall.guest()
    hall.refuses(ErrorCode.BAD_TEXT, guest, frames.Open, title="\x07", name="fine")
    hall.refuses(ErrorCode.BAD_TEXT, guest, frames.Open, title="fine", name="\x07")
    assert hall.node.spaces == {}


FIELDS = st.dictionaries(
    st.sampled_from(["id", "member", "after", "space", "name", "title", "invite", "more"]),
    st.one_of(st.integers(-1, 6), st.text(max_size=5), st.none(), st.lists(st.booleans())),
)
KINDS = st.one_of(
    st.sampled_from([frames.tag(kind) for kind in frames.REQUESTS if kind is not frames.Leave]),
    st.text(max_size=4),
    st.integers(0, 9),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(KINDS, FIELDS, st.integers(0, 3)), max_size=12))
def test_every_frame_gets_one_answer(messages: list[tuple[Any, dict[str, Any], int]]) -> None:
    hall = Hall()
    people = hall.space(2, 2)
    for kind, fields, who in messages:
        reply = hall.says(people[who], packed(**fields, type=kind))
        assert isinstance(reply, frames.Reply)
        valid = type(fields.get("id")) is int and fields["id"] >= 0
        assert reply.re == (fields["id"] if valid else 0)
    hall.tick(10)
    assert hall.says(people[0], packed(type="look", id=99))


# -- audio ----------------------------------------------------------------------------------------


def test_those_on_stage_are_heard() -> None:
    hall = Hall()
    host, speaker, listener = hall.space(2, 1)
    hall.tick(20, host, speaker)
    seats = [{a.seat for a in g.heard[-1].audible} for g in (host, speaker, listener)]
    assert seats == [{1}, {0}, {0, 1}]
    assert len(listener.heard) >= 18
    assert hall.node.dropped == {}


def silent(hall: Hall, speaker: Guest, why: str) -> None:
    """What they send is not mixed, and is counted under `why`."""
    for guest in hall.guests:
        guest.heard.clear()
    encodes = hall.node.mixer.stats.encodes
    dropped = hall.node.dropped[why]
    hall.tick(10, speaker)
    assert hall.node.mixer.stats.encodes == encodes
    assert all(guest.heard == [] for guest in hall.guests)
    assert hall.node.dropped[why] == dropped + 10


def test_listeners_are_not_heard() -> None:
    hall = Hall()
    _, listener, _ = hall.space(1, 2)
    silent(hall, listener, "audio of one who may not speak")


def test_the_muted_are_not_heard_until_they_unmute() -> None:
    hall = Hall()
    host, speaker, listener = hall.space(2, 1)
    hall.tick(5, speaker)
    hall.does(host, frames.Mute, member=speaker.id)
    hall.tick(1)  # fades
    silent(hall, speaker, "audio of one who may not speak")
    hall.does(speaker, frames.Unmute)
    hall.tick(5, speaker)
    assert listener.heard


def test_those_taken_down_are_not_heard() -> None:
    hall = Hall()
    host, speaker, _ = hall.space(2, 1)
    hall.tick(5, speaker)
    hall.does(host, frames.TakeDown, member=speaker.id)
    hall.tick(1)
    silent(hall, speaker, "audio of one who may not speak")


def test_those_in_no_space_are_not_heard() -> None:
    hall = Hall()
    hall.space(1, 1)
    silent(hall, hall.guest(), "audio outside a space")


def test_audio_that_is_none() -> None:
    hall = Hall()
    host, listener = hall.space(1, 1)
    for kind, plaintext in (
        (Kind.AUDIO, b""),
        (Kind.AUDIO, b"\0\0\0\0\xff opus"),
        (Kind.FEED, host.audio()),
        (Kind.AUDIO, b"\0\0\0\0\0"),  # no Opus packet
        (Kind.AUDIO, b"\0\0\0\0\0\xff\xff\xff"),
    ):
        hall.send(host, host.connection.send_media(kind, plaintext))
    assert hall.node.dropped == {"malformed audio": 2, "audio outside a space": 1}
    hall.tick(3)
    assert listener.heard == []
    hall.tick(5, host)
    assert listener.heard


# -- the feed -------------------------------------------------------------------------------------


def test_everybody_is_told() -> None:
    hall = Hall()
    people = host, speaker, listener, other = hall.space(2, 2)
    hall.does(listener, frames.RaiseHand)
    hall.tick(6)
    hall.agree(*people)
    assert [m.id for m in host.client.view.hands] == [listener.id]
    hall.does(host, frames.BringUp, member=listener.id)
    hall.does(host, frames.Appoint, member=speaker.id)
    hall.does(other, frames.Leave)
    hall.tick(6)
    hall.agree(host, speaker, listener)
    assert [m.role for m in host.client.view.stage] == [Role.HOST, Role.CO_HOST, Role.SPEAKER]


def test_what_was_missed_is_caught_up_on() -> None:
    hall = Hall()
    people = host, speaker, listener = hall.space(2, 1)
    hall.tick(6)
    listener.deaf = True
    hall.does(speaker, frames.Mute)
    hall.tick(6)
    listener.deaf = False
    assert listener.client.view.number < hall.the_space().feed.number
    hall.tick(260)  # a keep-alive, whose answer tells the number
    hall.agree(*people)
    hall.does(host, frames.Unmute)


def test_what_is_too_old_is_looked_at_anew() -> None:
    hall = Hall()
    people = host, speaker, listener = hall.space(2, 1)
    hall.tick(6)
    listener.deaf = True
    for _ in range(frames.MAX_FEED_CATCH_UP // 2 + 1):
        hall.does(speaker, frames.Mute)
        hall.does(speaker, frames.Unmute)
        hall.tick(6)
    listener.deaf = False
    hall.does(host, frames.Mute)
    hall.tick(60)
    hall.agree(*people)


# -- coming back, getting lost, ending ------------------------------------------------------------


def test_the_same_person_again() -> None:
    hall = Hall()
    host, first, listener = hall.space(2, 1)
    hall.tick(5, first)
    seat = first.client.view.at_seat(1)
    assert seat is not None
    second = hall.guest(first.key)
    hall.join(second, host.client.view.id)
    assert first.disconnected() == [CloseCode.REPLACED]
    assert second.client.view.me is not None
    assert second.client.view.me.role is Role.SPEAKER
    assert len(hall.the_space()) == 3
    hall.tick(10)
    hall.agree(host, second, listener)
    listener.heard.clear()
    first.heard.clear()
    hall.tick(10, second, host)
    assert len(listener.heard) >= 8
    assert {a.seat for a in listener.heard[-1].audible} == {0, second.client.view.me.seat}
    assert first.heard == []


def test_who_was_replaced_does_nothing_more() -> None:
    """Its last request is on its way when the server closes its session."""
    hall = Hall()
    host, first = hall.space(1, 1)
    name = host.client.view.id
    second = hall.guest(first.key)
    first.client.request(frames.Join, space=name, name="once more")
    (late,) = first.client.transmit(hall.now_ns)
    first.deaf = True
    hall.join(second, name)
    hall.send(first, late)
    hall.settle()
    assert second.disconnected() == []
    assert len(hall.the_space()) == 2
    hall.tick(300)
    assert len(hall.the_space()) == 2
    assert len(hall.node.endpoint.sessions) == 2
    hall.agree(host, second)


def test_one_who_closes_has_left() -> None:
    hall = Hall()
    host, speaker, listener = hall.space(2, 1)
    speaker.client.close(hall.now_ns)
    hall.settle()
    assert len(hall.the_space()) == 2
    hall.tick(6)
    hall.agree(host, listener)
    hall.tick(5, host)
    assert listener.heard


def test_one_who_is_lost_has_left() -> None:
    hall = Hall()
    host, speaker, listener = hall.space(2, 1)
    speaker.gone = speaker.deaf = True
    hall.tick((IDLE_TIMEOUT_NS - KEEPALIVE_NS) // TICK_NS - 10)  # it may have pinged just before
    assert len(hall.the_space()) == 3
    hall.tick(KEEPALIVE_NS // TICK_NS + 20)
    assert len(hall.the_space()) == 2
    hall.agree(host, listener)
    assert any("lost" in line for line in hall.log)
    assert len(hall.node.egress) == 2
    hall.tick(200)
    assert len(hall.node.endpoint.sessions) == 2


def test_one_who_takes_nothing_has_left() -> None:
    hall = Hall()
    host, slow, listener = hall.space(2, 1)
    hall.tick(5)  # all is acknowledged
    session = next(
        s for s in hall.node.endpoint.sessions.values() if s.connection.address == slow.address
    )
    for size in (1_000, 1):
        while session.connection.can_send(size):
            session.connection.send(bytes(size))
    with pytest.raises(ChannelFull):
        session.connection.send(b"x")
    slow.client.request(frames.Look)
    for datagram in slow.client.transmit(hall.now_ns):
        hall.send(slow, datagram)
    hall.tick()
    assert slow.disconnected() == [CloseCode.TOO_SLOW]
    assert len(hall.the_space()) == 2
    assert len(hall.node.egress) == 2
    hall.tick(6)
    hall.agree(host, listener)


def test_a_co_host_takes_over_from_a_lost_host() -> None:
    hall = Hall()
    host, speaker, listener = hall.space(2, 1)
    hall.does(host, frames.Appoint, member=speaker.id)
    host.client.close(hall.now_ns)
    hall.tick(6)
    assert hall.the_space().view(speaker.id).role is Role.HOST
    hall.agree(speaker, listener)


def ends(hall: Hall, how: Callable[[Guest], None]) -> None:
    host, speaker, listener = hall.space(2, 1)
    hall.tick(5, host, speaker)
    how(host)
    hall.settle()
    assert hall.node.spaces == {}
    for guest in (speaker, listener):
        assert sum(isinstance(e, Ended) for e in guest.events) == 1
        assert guest.client.view.me is None
    assert len(hall.node.egress) == 0
    listener.heard.clear()
    encodes = hall.node.mixer.stats.encodes
    hall.tick(5, speaker)
    assert listener.heard == []
    assert hall.node.mixer.stats.encodes == encodes
    hall.refuses(ErrorCode.NOT_JOINED, listener, frames.RaiseHand)
    reply = hall.ask(speaker, frames.Open, title="another", name="host")
    assert isinstance(reply, frames.Joined)
    hall.join(listener, reply.space)
    hall.tick(5, speaker)
    assert listener.heard


def test_closing_a_space_tells_all() -> None:
    hall = Hall()
    ends(hall, lambda host: hall.does(host, frames.Close))


def test_the_host_s_leaving_ends_the_space() -> None:
    hall = Hall()
    ends(hall, lambda host: hall.does(host, frames.Leave))


def test_the_host_s_loss_ends_the_space() -> None:
    hall = Hall()
    ends(hall, lambda host: host.client.close(hall.now_ns))


def test_asking_for_what_is_missing_stops_when_the_space_is_gone() -> None:
    """The request for updates is on its way when the space ends: it is refused, and that is it."""
    hall = Hall()
    host, listener = hall.space(1, 1)
    hall.tick(6)
    listener.client.view.newest += 1  # it believes that it has missed one
    listener.client.tick(hall.now_ns)
    (late,) = listener.client.transmit(hall.now_ns)
    hall.does(host, frames.Close)
    asked = listener.client._last_id
    hall.send(listener, late)
    hall.settle()
    hall.tick(100)
    assert listener.client._last_id == asked


def test_two_spaces_hear_nothing_of_each_other() -> None:
    hall = Hall()
    ours, theirs = hall.space(1, 1), hall.space(1, 1)
    hall.tick(10, ours[0])
    assert ours[1].heard
    assert theirs[1].heard == theirs[0].heard == []
    hall.does(theirs[0], frames.Close)
    assert list(hall.node.spaces) == [ours[0].client.view.id]
    hall.tick(10, ours[0])
    assert len(ours[1].heard) >= 18


def test_a_member_at_another_address_goes_on() -> None:
    hall = Hall()
    host, listener = hall.space(1, 1)
    hall.tick(5, host)
    before = len(listener.heard)
    listener.address = b"elsewhere".ljust(28, b".")
    listener.client.address_changed(hall.now_ns)
    hall.settle()
    hall.tick(10, host)
    assert len(listener.heard) - before == 10


def test_shutting_down_tells_all() -> None:
    hall = Hall()
    people = [*hall.space(2, 2), hall.guest()]
    hall.node.shut_down(hall.now_ns)
    hall.settle()
    assert [guest.disconnected() for guest in people] == [[CloseCode.SHUTDOWN]] * 5
    hall.tick(100)
    assert not hall.node.endpoint.talking


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=20), st.integers(0, 255))
def test_line_noise_harms_nobody(noise: list[bytes], kind: int) -> None:
    hall = Hall()
    host, listener = hall.space(1, 1)
    for data in noise:
        hall.send(listener, data)
        hall.send(listener, bytes([kind]) + data)
    hall.tick(3, host)
    assert len(listener.heard) >= 2
    assert isinstance(hall.ask(listener, frames.Look), frames.State)
