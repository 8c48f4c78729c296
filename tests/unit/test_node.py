"""The whole server in one piece, with real clients and no network between them."""

import gc
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import frames
from protocol.connection import IDLE_TIMEOUT_NS, KEEPALIVE_NS, CloseCode, Connection
from protocol.frames import ErrorCode
from protocol.packets import Kind
from protocol.reliable import ChannelFull
from protocol.roles import Role
from spaces_client.events import Ended, Notified, Reconnected, Reconnecting, Replied
from spaces_server.endpoint import Session
from spaces_server.ledger import MAX_WAITING
from spaces_server.mixer.mixer import SpaceMix
from spaces_server.node import _Room, _Seat
from spaces_server.policy.feed import Feed
from spaces_server.policy.gathering import Person
from spaces_server.policy.house import HouseRules
from spaces_server.policy.space import Space, SpaceRules
from spaces_server.recorder import Recorder
from spaces_server.records import GetPost
from tests.unit.hall import OUTSIDE, SECOND, TICK_NS, Guest, Hall

GATHERED = 14  # ticks after which the feed has told of everything
GRACE = HouseRules(limited_rates=False, space=SpaceRules(grace_s=10))

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
    rules = HouseRules(limited_rates=False, max_spaces=1, space=SpaceRules(max_members=3))
    hall = Hall(rules)
    host, listener = hall.space(1, 1)
    stranger, person = hall.guest(), hall.person()
    name = host.client.view.id
    before = hall.the_space().snapshot()
    hall.refuses(ErrorCode.NOT_ALLOWED, listener, frames.Close)
    hall.refuses(ErrorCode.NOT_ALLOWED, listener, frames.Mute, member=host.id)
    hall.refuses(ErrorCode.NO_HAND, host, frames.BringUp, member=listener.id)
    hall.refuses(ErrorCode.NO_SUCH_MEMBER, host, frames.TakeDown, member=99)
    hall.refuses(ErrorCode.ALREADY_JOINED, listener, frames.Join, space=name)
    hall.refuses(ErrorCode.ALREADY_JOINED, listener, frames.Open, title="t")
    hall.refuses(ErrorCode.NOT_JOINED, stranger, frames.RaiseHand)
    hall.refuses(ErrorCode.NOT_JOINED, person, frames.InvitePerson, person=host.handle)
    report = {"category": frames.Category.SPAM, "member": host.id}
    hall.refuses(ErrorCode.NOT_JOINED, person, frames.Report, **report)
    hall.refuses(ErrorCode.NO_SUCH_MEMBER, listener, frames.Report, **report | {"member": 99})
    hall.refuses(ErrorCode.NO_SUCH_SPACE, stranger, frames.Join, space="nowhere")
    hall.refuses(ErrorCode.BAD_INVITE, person, frames.Join, space=name, invite="no")
    hall.refuses(ErrorCode.BAD_TEXT, stranger, frames.Join, space=name, name="\x1b[2J")
    hall.refuses(ErrorCode.NO_ACCOUNT, stranger, frames.Open, title="t")
    hall.refuses(ErrorCode.NO_ACCOUNT, stranger, frames.SendMessage, person=host.handle, text="t")
    hall.refuses(ErrorCode.NO_SUCH_POST, stranger, frames.GetNote, post=1)
    hall.refuses(ErrorCode.SERVER_FULL, person, frames.Open, title="t")
    invite = hall.ask(host, frames.MakeInvite).invite
    hall.refuses(ErrorCode.NO_ACCOUNT, stranger, frames.Join, space=name, invite=invite)
    assert hall.the_space().snapshot() == before
    hall.join(stranger, name)
    late = hall.guest()
    hall.refuses(ErrorCode.SPACE_FULL, late, frames.Join, space=name)


def test_a_space_with_a_bad_title_is_not_opened() -> None:
    hall = Hall()
    person = hall.person()
    hall.refuses(ErrorCode.BAD_TEXT, person, frames.Open, title="\x07")
    assert hall.node.spaces == {}
    assert len(hall.node.egress) == 0


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


def test_listeners_are_not_heard() -> None:
    hall = Hall()
    _, listener, _ = hall.space(1, 2)
    hall.silent(listener)


def test_the_muted_are_not_heard_until_they_unmute() -> None:
    hall = Hall()
    host, speaker, listener = hall.space(2, 1)
    hall.tick(5, speaker)
    hall.does(host, frames.Mute, member=speaker.id)
    hall.tick(1)  # fades
    hall.silent(speaker)
    hall.refuses(ErrorCode.MUTED_BY_MODERATOR, speaker, frames.Unmute)
    hall.silent(speaker)
    hall.does(host, frames.LetUnmute, member=speaker.id)
    hall.silent(speaker)
    hall.does(speaker, frames.Unmute)
    hall.tick(5, speaker)
    assert listener.heard


def test_those_taken_down_are_not_heard() -> None:
    hall = Hall()
    host, speaker, _ = hall.space(2, 1)
    hall.tick(5, speaker)
    hall.does(host, frames.TakeDown, member=speaker.id)
    hall.tick(1)
    hall.silent(speaker)


def test_those_in_no_space_are_not_heard() -> None:
    hall = Hall()
    hall.space(1, 1)
    hall.silent(hall.guest(), OUTSIDE)


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
    assert hall.node.dropped == {"malformed audio": 2, OUTSIDE: 1}
    hall.tick(3)
    assert listener.heard == []
    hall.tick(5, host)
    assert listener.heard


# -- the feed -------------------------------------------------------------------------------------


def test_everybody_is_told() -> None:
    hall = Hall()
    people = host, speaker, listener, other = hall.space(2, 2)
    hall.does(listener, frames.RaiseHand)
    hall.tick(GATHERED)
    hall.agree(*people)
    assert [m.id for m in host.client.view.hands] == [listener.id]
    hall.does(host, frames.BringUp, member=listener.id)
    hall.does(host, frames.Appoint, member=speaker.id)
    hall.does(other, frames.Leave)
    hall.tick(GATHERED)
    hall.agree(host, speaker, listener)
    assert [m.role for m in host.client.view.stage] == [Role.HOST, Role.CO_HOST, Role.SPEAKER]


def test_what_was_missed_is_caught_up_on() -> None:
    hall = Hall()
    people = host, speaker, listener = hall.space(2, 1)
    hall.tick(GATHERED)
    listener.deaf = True
    hall.does(speaker, frames.Mute)
    hall.tick(GATHERED)
    listener.deaf = False
    assert listener.client.view.number < hall.the_space().feed.number
    hall.tick(260)  # a keep-alive, whose answer tells the number
    hall.agree(*people)
    hall.does(host, frames.Unmute)


def test_what_is_too_old_is_looked_at_anew() -> None:
    hall = Hall()
    people = host, speaker, listener = hall.space(2, 1)
    hall.tick(GATHERED)
    listener.deaf = True
    for _ in range(frames.MAX_FEED_CATCH_UP // 2 + 1):
        hall.does(speaker, frames.Mute)
        hall.does(speaker, frames.Unmute)
        hall.tick(GATHERED)
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
    hall.tick(GATHERED)
    hall.agree(host, listener)
    hall.tick(5, host)
    assert listener.heard


def test_one_who_is_lost_has_left() -> None:
    hall = Hall(GRACE)
    host, speaker, listener = hall.space(2, 1)
    speaker.gone = speaker.deaf = True
    hall.tick((IDLE_TIMEOUT_NS - KEEPALIVE_NS) // TICK_NS - 10)  # it may have pinged just before
    assert len(hall.the_space()) == 3
    hall.tick(KEEPALIVE_NS // TICK_NS + 10 + GATHERED)
    assert len(hall.the_space()) == 2
    hall.agree(host, listener)
    assert any("lost" in line for line in hall.log)
    assert len(hall.node.egress) == 2
    hall.tick(200)
    assert len(hall.node.endpoint.sessions) == 2


def test_one_who_takes_nothing_is_lost_and_may_come_back() -> None:
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
    (lost,) = [e for e in slow.events if isinstance(e, Reconnecting)]
    assert "do not take" in lost.text
    assert len(hall.the_space()) == 2
    assert len(hall.node.egress) == 2
    hall.tick(SECOND)
    assert any(isinstance(e, Reconnected) for e in slow.events)
    hall.agree(host, listener, slow)
    assert slow.client.view.me is not None
    assert slow.client.view.me.role is Role.SPEAKER


def vanish(hall: Hall, guest: Guest) -> None:
    """The server has given the guest's session up."""
    guest.gone = guest.deaf = True
    hall.tick(IDLE_TIMEOUT_NS // TICK_NS + GATHERED)


def test_a_co_host_takes_over_from_a_host_who_leaves_at_once() -> None:
    hall = Hall()
    host, speaker, listener = hall.space(2, 1)
    hall.does(host, frames.Appoint, member=speaker.id)
    host.client.close(hall.now_ns)
    hall.tick(GATHERED)
    assert hall.the_space().view(speaker.id).role is Role.HOST
    hall.agree(speaker, listener)


def test_a_co_host_takes_over_from_a_lost_host_after_the_grace_time() -> None:
    hall = Hall(GRACE)
    host, speaker, listener = hall.space(2, 1)
    hall.does(host, frames.Appoint, member=speaker.id)
    vanish(hall, host)
    assert hall.the_space().view(speaker.id).role is Role.CO_HOST
    hall.agree(speaker, listener)
    hall.tick(10 * SECOND + GATHERED)
    assert hall.the_space().view(speaker.id).role is Role.HOST
    hall.agree(speaker, listener)


def test_a_lost_host_without_a_co_host_ends_the_space_after_the_grace_time() -> None:
    hall = Hall(GRACE)
    host, _, listener = hall.space(2, 1)
    vanish(hall, host)
    hall.tick(9 * SECOND)
    assert hall.node.spaces
    hall.tick(55)
    assert not hall.node.spaces
    assert sum(isinstance(e, Ended) for e in listener.events) == 1


def test_a_lost_host_who_is_back_in_time_is_host() -> None:
    hall = Hall(GRACE)
    host, speaker, listener = hall.space(2, 1)
    vanish(hall, host)
    host.gone = host.deaf = False
    hall.tick(300)
    assert hall.the_space().view(host.id).role is Role.HOST
    hall.agree(host, speaker, listener)


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
    reply = hall.ask(speaker, frames.Open, title="another")
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
    hall.tick(GATHERED)
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
    for guest in people:
        (lost,) = [e for e in guest.events if isinstance(e, Reconnecting)]
        assert lost.text == "the server is shutting down"
    assert not hall.node.endpoint.talking


def test_shutting_down_ends_no_space() -> None:
    hall = Hall()
    host, speaker, _ = hall.space(2, 1)
    name = host.client.view.id
    hall.node.shut_down(hall.now_ns)
    hall.settle()
    hall.start()
    hall.tick(50)
    assert list(hall.node.spaces) == [name]
    assert [hall.the_space().view(g.id).role for g in (host, speaker)] == [Role.HOST, Role.SPEAKER]


# -- answers and the store ------------------------------------------------------------------------


def test_no_answer_before_it_is_stored_but_every_effect_at_once() -> None:
    hall = Hall()
    host, speaker, listener = hall.space(2, 1)
    hall.tick(5, speaker)
    hall.shelf.held = True
    asked = host.client.request(frames.Mute, member=speaker.id)
    hall.tick(2)  # asked in the first, faded in the second
    hall.silent(speaker)
    hall.tick(GATHERED)
    assert host.reply(asked) is None
    assert speaker.client.view.me is not None
    assert speaker.client.view.me.held
    hall.shelf.held = False
    hall.settle()
    assert isinstance(host.reply(asked), frames.Ok)
    hall.tick(5, host)
    assert listener.heard


def test_what_was_not_stored_was_not_answered_and_is_not_there_after_a_crash() -> None:
    hall = Hall()
    host, first, second = hall.space(3)
    hall.does(host, frames.Mute, member=first.id)
    hall.shelf.held = True
    asked = host.client.request(frames.Mute, member=second.id)
    hall.tick(5)
    assert host.reply(asked) is None
    hall.shelf.held = False
    hall.start()
    hall.tick(BACK)
    space = hall.the_space()
    assert space.view(first.id).muted
    assert not space.view(second.id).muted
    assert host.reply(asked) is None


def test_answers_that_wait_come_in_the_order_of_the_requests() -> None:
    hall = Hall()
    host, speaker, _ = hall.space(2, 1)
    hall.shelf.held = True
    kinds: list[type[frames.Request]] = [
        frames.Mute, frames.LetUnmute, frames.Appoint, frames.Dismiss, frames.Mute,
    ]  # fmt: skip
    asked = [host.client.request(kind, member=speaker.id) for kind in kinds]
    look = host.client.request(frames.Look)
    hall.tick(5)
    assert isinstance(host.reply(look), frames.State), "what saves nothing does not wait"
    assert [host.reply(i) for i in asked] == [None] * 5
    events = len(host.events)
    hall.shelf.held = False
    hall.settle()
    replies = [e.id for e in host.events[events:] if isinstance(e, Replied)]
    assert replies == asked


def test_a_store_that_is_stuck() -> None:
    hall = Hall()
    host, speaker, listener = hall.space(2, 1)
    stranger = hall.person()
    name = host.client.view.id
    hall.shelf.held = True
    first = speaker.client.request(frames.Mute)
    hall.tick(4 * SECOND)
    hall.ask(stranger, frames.WhoAmI)  # not yet
    hall.tick(55)
    hall.refuses(ErrorCode.UNAVAILABLE, stranger, frames.Follow, person=host.handle)
    hall.refuses(ErrorCode.UNAVAILABLE, stranger, frames.Join, space=name)
    hall.refuses(ErrorCode.UNAVAILABLE, stranger, frames.PublicPosts)
    assert isinstance(hall.ask(listener, frames.Chat, text="hello"), frames.Said)
    second = host.client.request(frames.Mute, member=speaker.id)
    hall.tick(GATHERED)
    hall.silent(speaker)
    hall.agree(host, speaker, listener)
    assert speaker.reply(first) is None
    assert host.reply(second) is None
    hall.shelf.held = False
    hall.tick()
    assert isinstance(speaker.reply(first), frames.Ok)
    assert isinstance(host.reply(second), frames.Ok)
    hall.does(stranger, frames.Follow, person=host.handle)
    hall.join(stranger, name)


def test_what_waits_for_the_store_has_a_limit() -> None:
    hall = Hall()
    host, listener = hall.space(1, 1)
    hall.shelf.held = True
    for _ in range(MAX_WAITING):
        hall.node.ledger.commit([], hall.now_ns, None)
    hall.refuses(ErrorCode.UNAVAILABLE, host, frames.MakeInvite)
    hall.refuses(ErrorCode.UNAVAILABLE, listener, frames.RaiseHand)
    hall.shelf.held = False
    hall.settle()
    hall.does(listener, frames.RaiseHand)


def entering(hall: Hall, host: Guest) -> tuple[Guest, int]:
    """Somebody whose answer to `join` waits for the store."""
    guest = hall.person()
    invited = hall.ask(host, frames.MakeInvite)
    hall.shelf.held = True
    space = host.client.view.id
    asked = guest.client.request(frames.Join, space=space, invite=invited.invite)
    hall.tick(GATHERED)
    assert guest.reply(asked) is None
    assert len(hall.the_space()) == 2
    return guest, asked


def test_who_enters_hears_where_things_stand_when_the_answer_goes_out() -> None:
    hall = Hall()
    (host,) = hall.space(1)
    guest, asked = entering(hall, host)
    member = host.client.view.stage[-1].id
    late = host.client.request(frames.Mute, member=member)
    hall.tick(GATHERED)
    hall.shelf.held = False
    hall.settle()
    assert isinstance(host.reply(late), frames.Ok)
    assert isinstance(guest.reply(asked), frames.Joined)
    hall.agree(host, guest)
    assert guest.client.view.me is not None
    assert guest.client.view.me.held


@pytest.mark.parametrize("how", ["removed", "ended", "left"])
def test_who_is_out_again_before_the_answer_does_not_believe_to_be_in(how: str) -> None:
    hall = Hall()
    (host,) = hall.space(1)
    guest, asked = entering(hall, host)
    match how:
        case "removed":
            host.client.request(frames.Remove, member=host.client.view.stage[-1].id)
        case "ended":
            host.client.request(frames.Close)
        case "left":
            guest.client.request(frames.Leave)
    hall.tick(GATHERED)
    hall.shelf.held = False
    hall.settle()
    reply = guest.reply(asked)
    assert isinstance(reply, frames.Error)
    assert reply.code == (ErrorCode.SPACE_ENDED if how == "ended" else ErrorCode.NOT_JOINED)
    assert guest.client.view.me is None
    hall.refuses(ErrorCode.NOT_JOINED, guest, frames.RaiseHand)


# -- a server that starts again -------------------------------------------------------------------

BACK = 900  # ticks after which clients have noticed that a server was killed, and are back


def test_after_a_restart_everybody_finds_role_and_place() -> None:
    hall = Hall()
    host, co_host, held, quiet, listener, removed = people = hall.space(4, 2)
    name = host.client.view.id
    hall.does(host, frames.Appoint, member=co_host.id)
    hall.does(host, frames.Mute, member=held.id)
    hall.does(quiet, frames.Mute)
    hall.does(host, frames.Remove, member=removed.id)
    hall.does(host, frames.Configure, title="another", slow_s=3)
    hall.does(listener, frames.Block, person=quiet.handle)
    invite = hall.ask(host, frames.MakeInvite, role=Role.LISTENER).invite
    hall.does(listener, frames.RaiseHand)
    hall.start()
    assert list(hall.node.spaces) == [name]
    hall.tick(BACK)
    hall.agree(*people[:5])
    for guest in people[:5]:
        assert any(isinstance(e, Reconnected) for e in guest.events)
    space = hall.the_space()
    assert [space.view(g.id).role for g in people[:5]] == [
        Role.HOST, Role.CO_HOST, Role.SPEAKER, Role.SPEAKER, Role.LISTENER,
    ]  # fmt: skip
    assert space.record.title == "another"
    assert space.settings.slow_s == 3
    hall.refuses(ErrorCode.MUTED_BY_MODERATOR, held, frames.Unmute)
    hall.does(quiet, frames.Unmute)
    hall.refuses(ErrorCode.REMOVED, removed, frames.Join, space=name)
    hall.join(hall.person(), name, invite=invite)
    hall.tick(10, quiet, co_host)
    assert {a.seat for a in host.heard[-1].audible} == {
        space.view(g.id).seat for g in (quiet, co_host)
    }
    assert {a.seat for a in listener.heard[-1].audible} == {space.view(co_host.id).seat}


def test_after_a_restart_people_are_who_they_were() -> None:
    hall = Hall()
    owner = hall.operator()
    one, other, banned = hall.person(), hall.person(), hall.person()
    hall.does(one, frames.Follow, person=other.handle)
    hall.does(one, frames.Block, person=banned.handle)
    hall.does(owner, frames.AppointModerator, person=one.handle)
    starts = hall.now_ns // 10**9 + 1_800_000_000 + 3_600
    planned = hall.ask(other, frames.Schedule, title="later", starts=starts).space.id
    hall.does(one, frames.Remind, space=planned)
    hall.does(owner, frames.Ban, person=banned.handle, reason="spam")
    hall.start()
    hall.tick(BACK)
    mine = hall.ask(one, frames.WhoAmI).account
    assert (mine.handle, mine.role) == (one.handle, "moderator")
    assert [p.handle for p in hall.ask(one, frames.Following).people] == [other.handle]
    assert [p.handle for p in hall.ask(one, frames.Blocked).people] == [banned.handle]
    again = hall.guest(banned.key)
    hall.refuses(ErrorCode.BANNED, again, frames.ListSpaces)
    assert hall.ask(one, frames.GetSpace, space=planned).space.reminder
    assert hall.open(other, space=planned) == planned
    assert [type(e.frame) for e in one.events if isinstance(e, Notified)] == [frames.Started]


def test_after_a_restart_to_which_nobody_comes_the_space_ends() -> None:
    hall = Hall(GRACE)
    host, listener = hall.space(1, 1)
    name = host.client.view.id
    for guest in (host, listener):
        guest.gone = guest.deaf = True
    hall.start()
    hall.tick(495)
    assert list(hall.node.spaces) == [name]
    hall.tick(10)
    assert not hall.node.spaces
    hall.start()
    assert not hall.node.spaces
    hall.refuses(ErrorCode.SPACE_ENDED, hall.person(), frames.Join, space=name)


def test_after_a_restart_a_co_host_takes_over_from_a_host_who_does_not_come() -> None:
    rules = HouseRules(limited_rates=False, space=SpaceRules(grace_s=30))
    hall = Hall(rules)
    host, co_host, listener = hall.space(2, 1)
    hall.does(host, frames.Appoint, member=co_host.id)
    host.gone = host.deaf = True
    hall.start()
    hall.tick(BACK)
    assert hall.the_space().view(co_host.id).role is Role.CO_HOST
    hall.tick(30 * SECOND - BACK + GATHERED)
    assert hall.the_space().view(co_host.id).role is Role.HOST
    hall.agree(co_host, listener)


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


# -- what waits for the store, seen by an adversary ------------------------------------------------


def test_a_second_mute_is_not_answered_before_the_first_is_stored() -> None:
    hall = Hall()
    host, speaker = hall.space(2)
    hall.shelf.held = True
    first, second = (host.client.request(frames.Mute, member=speaker.id) for _ in range(2))
    hall.tick(5)
    assert (host.reply(first), host.reply(second)) == (None, None)
    hall.shelf.held = False
    before = len(host.events)
    hall.settle()
    replies = [e for e in host.events[before:] if isinstance(e, Replied)]
    assert [(e.id, type(e.frame)) for e in replies] == [(first, frames.Ok), (second, frames.Ok)]
    hall.start()
    hall.tick(BACK)
    assert hall.the_space().view(speaker.id).muted


def test_a_store_that_is_slow_does_not_tell_who_blocked_whom() -> None:
    hall = Hall()
    sender, blocker, friend = hall.person(), hall.person(), hall.person()
    hall.does(blocker, frames.Block, person=sender.handle)
    hall.shelf.held = True
    asked = [
        sender.client.request(kind, person=whom.handle, **fields)
        for whom in (friend, blocker)
        for kind, fields in (
            (frames.SendMessage, {"text": "hello"}),
            (frames.Follow, {}),
        )
    ]
    hall.tick(5)
    assert [sender.reply(i) for i in asked] == [None] * 4
    hall.shelf.held = False
    hall.settle()
    assert [type(sender.reply(i)) for i in asked] == [frames.Sent, frames.Ok] * 2


def test_who_reads_without_end_leaves_room_for_who_moderates() -> None:
    hall = Hall()
    host, speaker = hall.space(2)
    stranger = hall.person()
    hall.shelf.held = True
    for _ in range(MAX_WAITING // 2):
        hall.node.ledger.fetch(GetPost(1), hall.now_ns, lambda _: None)
    hall.refuses(ErrorCode.UNAVAILABLE, stranger, frames.PublicPosts)
    asked = host.client.request(frames.Mute, member=speaker.id)
    hall.tick(1)
    hall.silent(speaker)
    hall.shelf.held = False
    hall.settle()
    assert isinstance(host.reply(asked), frames.Ok)


@pytest.mark.parametrize("how", ["gone", "banned", "ended"])
def test_what_the_store_finds_for_whoever_is_gone_harms_nobody(how: str) -> None:
    hall = Hall()
    operator, (host, listener) = hall.operator(), hall.space(1, 1)
    hall.shelf.held = True
    asked = [
        listener.client.request(frames.PublicPosts),
        listener.client.request(frames.Rename, name="another"),
    ]
    hall.tick(1)
    match how:
        case "gone":
            listener.client.close(hall.now_ns)
        case "banned":
            operator.client.request(frames.Ban, person=listener.handle)
        case "ended":
            host.client.request(frames.Close)
    hall.tick(1)
    hall.shelf.held = False
    hall.settle()
    hall.tick(GATHERED)
    replied = [listener.reply(i) is not None for i in asked]
    assert replied == [how == "ended"] * 2
    assert isinstance(hall.ask(hall.person(), frames.PublicPosts), frames.Posts)


# -- memory ----------------------------------------------------------------------------------------


def alive(*kinds: type) -> Counter[str]:
    return Counter(type(thing).__name__ for thing in gc.get_objects() if isinstance(thing, kinds))


@pytest.mark.parametrize("how", ["leave", "close", "end", "lost", "refused"])
def test_what_is_over_is_freed_at_once(how: str) -> None:
    """The server freezes what has lived for a while, so the garbage collector would never find a
    circle of references; counting them must be enough."""
    gc.collect()
    kinds = Session, Connection, Person, Space, SpaceMix, Feed, Recorder, _Room, _Seat
    others = alive(*kinds)  # of clients, and of halls before
    gc.disable()
    try:
        hall = Hall()
        host, speaker, listener = people = hall.space(2, 1)
        hall.does(speaker, frames.Mute)
        hall.does(speaker, frames.Unmute)
        hall.does(listener, frames.SetVolume, member=speaker.id, percent=50)
        hall.ask(listener, frames.Chat, text="hello")
        hall.ask(listener, frames.ListMessages)
        hall.refuses(ErrorCode.NO_SUCH_MEMBER, host, frames.Mute, member=99)
        hall.refuses(ErrorCode.NO_SUCH_PERSON, host, frames.Find, person="no one")
        hall.tick(GATHERED, host, speaker)
        clients = len(people)
        counts = alive(*kinds) - others
        assert counts["_Seat"] == counts["Person"] == counts["Session"] == 3
        assert counts["Connection"] == 3 + clients
        match how:
            case "leave":
                for guest in reversed(people):
                    hall.does(guest, frames.Leave)
            case "close":
                for guest in people:
                    guest.client.close(hall.now_ns)
            case "end":
                hall.does(host, frames.Close)
            case "lost":
                for guest in people:
                    vanish(hall, guest)
            case "refused":
                hall.does(host, frames.Remove, member=speaker.id)
                hall.refuses(ErrorCode.REMOVED, speaker, frames.Join, space=host.client.view.id)
                hall.does(host, frames.Close)
        hall.tick(GATHERED)
        if how == "lost":
            hall.tick(60 * SECOND + GATHERED)
        left = alive(*kinds) - others
        over = how in ("close", "lost")
        if over:
            hall.tick(10 * SECOND)  # for as long, a closed session still answers
            left = alive(*kinds) - others
        assert left["Session"] == (0 if over else 3)
        assert [left[k] for k in ("Person", "Space", "SpaceMix", "Feed", "_Room", "_Seat")] == (
            [0] * 6
        )
        assert left["Recorder"] == 0
    finally:
        gc.enable()


def test_what_a_failed_tick_had_put_is_not_sent_with_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever has the row by then would get what was for somebody else."""
    hall = Hall()
    space = hall.open(hall.person())
    leaver, newcomer = hall.guest(), hall.guest()
    hall.join(leaver, space)
    (row,) = {seat.row for seat in hall.node._rooms[space].members.values()} - {0}

    def fail(*_: Any, **__: Any) -> None:
        hall.node.egress.put(Kind.AUDIO, b"for whoever leaves", [row])
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(hall.node.mixer, "tick", fail)
        with pytest.raises(RuntimeError):
            hall.node.tick(0, hall.now_ns, hall.now_ns)
    hall.does(leaver, frames.Leave)
    hall.join(newcomer, space)
    assert row in {seat.row for seat in hall.node._rooms[space].members.values()}
    before = hall.node.egress.sealed
    assert not list(hall.node.half_tick(480, hall.now_ns))
    assert hall.node.egress.sealed == before
