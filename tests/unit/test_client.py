"""The client without its shell: what it makes of the server's frames, and how it comes back when a
session is lost.  At the other end is a real endpoint; its answers are written here."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from protocol import frames
from protocol.clock import samples_at
from protocol.connection import MS, CloseCode, Message, State
from protocol.frames import ErrorCode, Frame, Member, Request, Settings, Snapshot, encode_update
from protocol.link import Link
from protocol.noise import public_key
from protocol.packets import AudioFlag, DownlinkAudio, Kind
from protocol.roles import Role
from protocol.state_hash import StateHash
from spaces_client import client as c
from spaces_client.client import Client, Phase
from spaces_client.delay import EXCHANGES
from spaces_server.endpoint import Endpoint, Session

SERVER_KEY = bytes(range(32))
LINK = Link("server", 5004, public_key(SERVER_KEY), "room", "token")
HOME = b"home"
S = 1_000  # ms
ADA = Member(id=1, name="Ada", handle="ada", role=Role.HOST, seat=0)
ME = Member(id=7, name="Bo", handle="bo", role=Role.SPEAKER, seat=1)
BACK = Member(id=9, name="Bo", handle="bo", role=Role.SPEAKER, seat=1)


def error(request: Request, code: ErrorCode, retry_ms: int = 0) -> frames.Error:
    return frames.Error(re=request.id, code=code, text=f"no: {code}", retry_ms=retry_ms)


class Hall:
    """A client, its server, and time.  What one sends, the other has at once, unless the server
    is not `up`."""

    def __init__(self, link: Link = LINK) -> None:
        self.rng = random.Random(1)
        self.now_ns = 1_000 * MS
        self.up = True
        self.endpoint = self._endpoint()
        self.members = [ADA, ME]
        self.updates: list[dict[str, Any]] = []
        self.me = ME
        self.asked: list[Request] = []
        self.refuse: Callable[[Request], Frame | None] = lambda _: None  # before anything else
        self.hellos_ns: list[int] = []
        self.events: list[c.ClientEvent] = []
        self.client = Client(
            link, self.rng.randbytes(32), entropy=self.rng.randbytes, now_ns=self.now_ns
        )

    def _endpoint(self, key: bytes = SERVER_KEY, max_sessions: int = 9) -> Endpoint:
        return Endpoint(key, self.rng.randbytes, max_sessions=max_sessions)

    def restart(self, **options: Any) -> None:
        """The server forgets all sessions."""
        self.endpoint = self._endpoint(**options)
        self.up = True

    # -- the server ---------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        return Snapshot(
            number=len(self.updates), title="t", settings=Settings(), members=self.members,
            listeners=0,
        )  # fmt: skip

    @property
    def hash(self) -> int:
        return StateHash.of(self.snapshot()).value

    @property
    def session(self) -> Session:
        return list(self.endpoint.sessions.values())[-1]

    def answer(self, request: Request) -> Frame:
        if refusal := self.refuse(request):
            return refusal
        match request:
            case frames.Join() | frames.Open():
                return frames.Joined(
                    re=request.id, space="room", you=self.me, snapshot=self.snapshot(),
                    reactions=["👏"], evidence=True,
                )  # fmt: skip
            case frames.CatchUp(after=after):
                news = self.updates[after:]
                return frames.Updates(
                    re=request.id, space="room", first=after + 1, updates=news, hash=self.hash
                )
            case frames.Look():
                return frames.State(
                    re=request.id, space="room", you=self.me, snapshot=self.snapshot()
                )
            case frames.AskClock():
                return frames.Clocks(re=request.id, now=samples_at(self.now_ns), voices=[])
        return frames.Ok(re=request.id)

    def tell(self, frame: Frame) -> None:
        self.session.connection.send(frames.encode(frame))
        self.pump()

    def feed(self, *updates: frames.Update, lost: bool = False, state_hash: int = -1) -> None:
        """state_hash: another than the right one."""
        first = len(self.updates) + 1
        news = [encode_update(update) for update in updates]
        self.updates += news
        batch = frames.FeedBatch(
            space="room",
            first=first,
            updates=news,
            hash=self.hash if state_hash < 0 else state_hash,
        )
        data = self.session.connection.send_media(Kind.FEED, frames.encode(batch))
        if not lost:
            self.take(data)
            self.pump()

    def close(self, code: int, text: str = "") -> None:
        self.session.connection.close(code, text, self.now_ns)
        self.pump()

    # -- between the two ----------------------------------------------------------------------

    def take(self, data: bytes) -> None:
        self.events += self.client.receive(data, self.now_ns)

    def pump(self) -> None:
        """Back and forth until nobody has anything to say."""
        for _ in range(100):
            sent = self.client.transmit(self.now_ns)
            for data in sent:
                if data[0] == Kind.HELLO:
                    self.hellos_ns.append(self.now_ns)
                if self.up:
                    self._to_server(data)
            for session in self.endpoint.sessions.values():
                self.endpoint.flush(session, self.now_ns)
            received, self.endpoint.outbox = self.endpoint.outbox, []
            for data, _ in received:
                if self.up:
                    self.take(data)
            if not sent and not received:
                return
        raise AssertionError("an endless exchange")

    def _to_server(self, data: bytes) -> None:
        now_ns = self.now_ns
        received = self.endpoint.receive(data, HOME, now_ns) or self.endpoint.work(now_ns)
        if received is None:
            return
        session, events, _ = received
        for event in events:
            if isinstance(event, Message):
                request = frames.decode(event.data)
                assert isinstance(request, Request)
                self.asked.append(request)
                session.connection.send(frames.encode(self.answer(request)))

    def run(self, ms: int) -> None:
        end_ns = self.now_ns + ms * MS
        while True:
            self.pump()
            due_ns = max(self.now_ns + MS, min(self.client.deadline_ns, end_ns))
            self.now_ns = min(due_ns, end_ns)
            self.endpoint.tick(self.now_ns)
            if self.now_ns >= self.client.deadline_ns:
                self.events += self.client.tick(self.now_ns)
            if self.now_ns == end_ns:
                self.pump()
                return

    # -- what the tests look at ---------------------------------------------------------------

    def ask(self, kind: type[Request], **fields: Any) -> int:
        request_id = self.client.request(kind, **fields)
        self.pump()
        return request_id

    def asked_for(self, kind: type[Request]) -> list[Request]:
        return [request for request in self.asked if isinstance(request, kind)]

    def seen(self) -> list[c.ClientEvent]:
        """What has happened since the last call."""
        events, self.events = self.events, []
        return events


def connected(link: Link = LINK) -> Hall:
    hall = Hall(link)
    hall.pump()
    assert hall.seen() == [c.Connected()]
    return hall


def joined() -> Hall:
    hall = connected()
    hall.ask(frames.Join, space="room", invite="token", name="Bo")
    (reply,) = hall.seen()
    assert isinstance(reply, c.Replied)
    assert isinstance(reply.frame, frames.Joined)
    hall.asked.clear()
    return hall


def lost() -> Hall:
    """In a space, until the server went down."""
    hall = joined()
    hall.up = False
    hall.client.refused(hall.now_ns)
    hall.events += hall.client.refused(hall.now_ns)
    (event,) = hall.seen()
    assert isinstance(event, c.Reconnecting)
    hall.hellos_ns.clear()
    return hall


# -- what the server tells --------------------------------------------------------------------


def test_who_joins_sees_the_space() -> None:
    hall = joined()
    view = hall.client.view
    assert (view.id, view.me, view.stage) == ("room", ME, [ADA, ME])
    assert (view.reactions, view.evidence) == (("👏",), True)


def test_the_feed_becomes_events_the_state_first() -> None:
    hall = joined()
    line = frames.ChatUpdate(line=3, member=1, name="Ada", handle="ada", text="hi")
    shown = [frames.Reaction(member=1, emoji="👏")]
    hand = Member(id=8, name="Cy", handle="cy", hand=5)
    hall.members.append(hand)
    hall.feed(
        line,
        frames.ReactionsUpdate(counts={"👏": 3}, stage=shown),
        frames.LineGoneUpdate(line=2),
        frames.MemberUpdate(member=hand),
    )
    assert hall.seen() == [c.Changed(), c.Chat(line), c.Reacted({"👏": 3}, shown), c.LineGone(2)]
    assert hall.client.view.hands == [hand]
    assert hall.client.view.agreed
    hall.feed(line)
    assert hall.seen() == [c.Chat(line)], "chat alone changes nothing of the state"


def test_one_s_own_state() -> None:
    hall = joined()
    assert hall.client.may_speak
    held = Member(id=7, name="Bo", handle="bo", role=Role.SPEAKER, seat=1, muted=True, held=True)
    hall.tell(frames.You(space="room", you=held))
    assert hall.seen() == [c.Changed()]
    assert hall.client.view.me == held
    assert not hall.client.may_speak


MESSAGE = frames.MessageInfo(id=4, sender="ada", recipient="bo", at=9, text="hey")
NOTICES: list[frames.Notice] = [
    frames.MessageNotice(message=MESSAGE),
    frames.Unread(notice=1),
    frames.Started(notice=2, space="room", title="t", host="ada"),
    frames.OutcomeNotice(notice=3, report=1, outcome=frames.Outcome.WARN, text="done"),
    frames.Warned(notice=4, text="be kind"),
    frames.AccessGranted(notice=5, by="ada"),
    frames.Offered(space="room", by=1),
    frames.Declined(space="room", member=8),
    frames.BlockedOnStage(space="room", member=1),
]


def test_notices_become_events() -> None:
    hall = joined()
    for notice in NOTICES:
        hall.tell(notice)
    assert hall.seen() == [c.Notified(notice) for notice in NOTICES]
    others = {frames.You, frames.Removed, frames.Ended}
    assert {type(notice) for notice in NOTICES} | others == set(frames.NOTICES)
    assert hall.asked == [], "nothing counts as seen before somebody has seen it"
    hall.client.seen(3)
    hall.pump()
    assert [r.notice for r in hall.asked if isinstance(r, frames.Seen)] == [3]
    assert hall.seen() == [], "that the server has heard it is no news"


@pytest.mark.parametrize("kind", [frames.Removed, frames.Ended])
def test_out_of_the_space(kind: type[frames.Removed | frames.Ended]) -> None:
    hall = joined()
    hall.tell(kind(space="another", text="that was it"))
    assert hall.seen() == [], "it was about a space that one has left"
    hall.tell(kind(space="room", text="that is it"))
    expected = c.Removed if kind is frames.Removed else c.Ended
    assert hall.seen() == [expected("that is it")]
    assert hall.client.view.me is None
    hall.feed(frames.ListenersUpdate(count=3))
    assert hall.seen() == [], "what of the feed is still on its way is of no interest"
    hall.close(CloseCode.SHUTDOWN)
    hall.run(1 * S)
    assert hall.asked_for(frames.Join) == [], "out is out"


def test_who_has_left_is_not_brought_back() -> None:
    hall = joined()
    hall.ask(frames.Leave)
    hall.close(CloseCode.SHUTDOWN)
    hall.run(1 * S)
    assert hall.seen()[-1] == c.Reconnected()
    assert hall.asked_for(frames.Join) == []


def test_missing_updates_are_asked_for_and_told_as_if_never_missed() -> None:
    hall = joined()
    hall.run(1 * S)
    line = frames.ChatUpdate(line=1, member=1, name="Ada", handle="ada", text="hi")
    hall.feed(line, lost=True)
    hall.feed(frames.ListenersUpdate(count=0))
    assert hall.seen() == [c.Changed(), c.Chat(line)]
    assert [type(request) for request in hall.asked] == [frames.CatchUp]
    assert not hall.client.view.behind


def test_updates_that_are_gone_are_made_up_for_by_a_snapshot() -> None:
    hall = joined()
    hall.run(1 * S)
    hall.refuse = lambda request: (
        error(request, ErrorCode.TOO_OLD) if isinstance(request, frames.CatchUp) else None
    )
    hall.feed(frames.ListenersUpdate(count=1), lost=True)
    hall.members.append(Member(id=8, name="Cy", handle="cy", hand=5))
    hall.feed(frames.MemberUpdate(member=hall.members[-1]))
    assert hall.seen() == [c.Changed()]
    assert hall.client.view.hands == hall.members[-1:]
    assert hall.client.repairs == 0


def test_who_is_refused_what_is_missing_asks_when_there_is_news_again() -> None:
    hall = joined()
    hall.run(1 * S)
    hall.refuse = lambda request: (
        error(request, ErrorCode.RATE_LIMITED) if isinstance(request, frames.CatchUp) else None
    )
    hall.feed(frames.ListenersUpdate(count=1), lost=True)
    hall.feed(frames.ListenersUpdate(count=2))
    hall.run(4 * S)
    assert len(hall.asked_for(frames.CatchUp)) == 1
    hall.refuse = lambda request: None
    hall.feed(frames.ListenersUpdate(count=3))
    hall.run(1 * S)
    assert len(hall.asked_for(frames.CatchUp)) == 2
    assert not hall.client.view.behind


def test_a_state_that_is_another_than_the_server_s_is_repaired() -> None:
    hall = joined()
    hall.run(2 * S)
    hall.asked.clear()
    hall.members.append(Member(id=8, name="Cy", handle="cy", hand=5))  # of which the feed is silent
    hall.feed(frames.ListenersUpdate(count=0))
    assert hall.client.view.hands == hall.members[-1:]
    assert [type(request) for request in hall.asked] == [frames.Look]
    assert hall.client.repairs == 1
    assert hall.seen() == [c.Changed(), c.Changed()]
    hall.run(5 * S)
    assert hall.client.repairs == 1


def test_repairs_that_do_not_help_are_tried_more_and_more_seldom() -> None:
    """Else ten thousand clients with one mistake would each ask once a second for ever."""
    hall = joined()
    looks: list[int] = []
    for second in range(200):
        hall.feed(frames.ListenersUpdate(count=0), state_hash=hall.hash ^ 1)
        hall.feed(frames.ListenersUpdate(count=0), state_hash=hall.hash ^ 1)
        hall.run(1 * S)
        looks += [second] * (len(hall.asked_for(frames.Look)) - len(looks))
    assert 5 <= hall.client.repairs == len(looks) <= 10
    hall.feed(frames.ListenersUpdate(count=0))
    hall.run(2 * S)
    before = hall.client.repairs
    hall.feed(frames.ListenersUpdate(count=0), state_hash=hall.hash ^ 1)
    hall.run(2 * S)
    assert hall.client.repairs == before + 1, "a hash that agrees ends the series"


# -- the server's clock -----------------------------------------------------------------------


def test_whoever_measures_asks_for_the_clock_often_at_first() -> None:
    hall = joined()
    hall.run(5 * S)
    assert hall.asked == []
    hall.client.clocks.measuring = True
    hall.run(2 * S)
    first = len(hall.asked_for(frames.AskClock))
    assert first in (EXCHANGES, EXCHANGES + 1)
    hall.run(20 * S)
    assert len(hall.asked_for(frames.AskClock)) - first in (4, 5)
    assert hall.seen() == []
    assert hall.client.clocks.server.known == EXCHANGES


def test_a_server_without_a_clock_is_asked_once() -> None:
    hall = joined()
    hall.refuse = lambda request: frames.Error(re=request.id, code="unknown_type", text="?")
    hall.client.clocks.measuring = True
    hall.run(20 * S)
    assert len(hall.asked_for(frames.AskClock)) == 1
    assert hall.client.clocks.server.offset is None
    assert hall.seen() == []


# -- a session that is lost -------------------------------------------------------------------


def came_back(hall: Hall) -> None:
    """The client has found its place again, and knows it."""
    assert hall.client.phase is Phase.CONNECTED
    assert hall.client.trouble is None
    assert hall.client.view.me == BACK
    (join,) = hall.asked_for(frames.Join)
    assert isinstance(join, frames.Join)
    assert (join.space, join.invite, join.name) == ("room", "token", "Bo")
    assert join.despite_blocked, "whoever is on stage, they have been told of before"
    assert hall.seen() == [c.Reconnected(), c.Changed()]


def test_a_server_that_is_started_anew_finds_its_people_in_their_places() -> None:
    hall = joined()
    first = hall.session.connection
    hall.close(CloseCode.SHUTDOWN, "back in a moment")
    assert hall.seen() == [c.Reconnecting("back in a moment")]
    assert first.state is State.CLOSED, "the server need not wait for the answer to its CLOSE"
    assert not hall.client.may_speak
    assert hall.client.view.title == "t", "what was there can still be looked at"
    assert hall.client.talk(np.ones(960, np.float32)) is None
    hall.restart()
    hall.me, hall.members = BACK, [ADA, BACK]
    hall.run(250)
    came_back(hall)
    assert hall.client.may_speak


def test_a_server_that_was_killed_is_missed_within_fifteen_seconds() -> None:
    hall = joined()
    hall.run(2 * S)
    hall.up = False
    killed_ns = hall.now_ns
    while hall.client.trouble is None:
        hall.run(100)
    assert 10 * S * MS <= hall.now_ns - killed_ns <= 15 * S * MS
    assert len(hall.seen()) == 1
    hall.restart()
    hall.me, hall.members = BACK, [ADA, BACK]
    hall.run(1 * S)
    came_back(hall)


def test_a_server_that_answers_is_not_taken_for_lost() -> None:
    hall = joined()
    hall.run(120 * S)
    assert hall.seen() == []
    assert hall.client.attempt == 1


def test_one_answer_that_nothing_listens_is_not_believed() -> None:
    hall = joined()
    for _ in range(5):
        assert hall.client.refused(hall.now_ns) == []
        hall.tell(
            frames.BlockedOnStage(space="room", member=1)
        )  # anything that only the server can have sent
    hall.client.refused(hall.now_ns)
    (event,) = hall.client.refused(hall.now_ns)
    assert isinstance(event, c.Reconnecting)
    assert "nothing listens at server:5004" in event.text
    assert hall.client.refused(hall.now_ns) == [], "said once"


def test_attempts_go_on_for_ever_and_get_rarer() -> None:
    hall = lost()
    starts = []
    for _ in range(12):
        attempt = hall.client.attempt
        while hall.client.attempt == attempt:
            hall.run(10)
        starts.append(hall.now_ns / (S * MS))
        assert hall.client.unreachable("no network", hall.now_ns) == []
    waits = np.diff(starts)
    assert waits[0] <= 0.52
    assert waits.max() <= 5.02
    assert waits[-1] >= 2.4
    assert len(set(np.round(waits[5:], 1))) > 1, "those who were lost together come one by one"
    hall.run(3_600 * S)
    assert hall.client.phase in (Phase.WAITING, Phase.CONNECTING)
    assert hall.seen() == [], "that it is lost was said"
    hall.restart()
    hall.me, hall.members = BACK, [ADA, BACK]
    hall.run(6 * S)
    came_back(hall)


def test_a_session_that_held_makes_the_next_wait_short_again() -> None:
    hall = lost()
    hall.run(60 * S)
    hall.restart()
    hall.run(16 * S)
    assert hall.client.trouble is None
    hall.close(CloseCode.SHUTDOWN)
    hall.run(250)
    assert hall.client.trouble is None


def test_a_server_that_shuts_down_again_and_again_is_not_besieged() -> None:
    hall = joined()
    for _ in range(20):
        while hall.client.trouble is not None:
            hall.run(50)
        hall.close(CloseCode.SHUTDOWN)
    assert hall.now_ns >= 30 * S * MS


def test_the_first_attempt_is_the_only_one() -> None:
    hall = Hall()
    hall.up = False
    hall.run(4_900)
    assert len(hall.hellos_ns) > 5
    assert hall.seen() == []
    hall.run(10 * S)
    (event,) = hall.seen()
    assert isinstance(event, c.Disconnected)
    assert "no answer from server:5004" in event.text
    assert hall.client.finished(hall.now_ns)
    hellos = len(hall.hellos_ns)
    hall.restart()
    hall.events += hall.client.refused(hall.now_ns)
    hall.run(60 * S)
    assert len(hall.hellos_ns) == hellos
    assert hall.seen() == []


def test_at_the_first_attempt_nobody_may_listen() -> None:
    hall = Hall()
    hall.client.refused(hall.now_ns)
    (event,) = hall.client.refused(hall.now_ns)
    assert isinstance(event, c.Disconnected)


@pytest.mark.parametrize(
    "code",
    [CloseCode.LEAVING, CloseCode.PROTOCOL, CloseCode.TIMEOUT, CloseCode.REPLACED,
     CloseCode.UNREACHABLE, CloseCode.EXPELLED, 999],
)  # fmt: skip
def test_who_is_sent_away_does_not_come_back(code: int) -> None:
    hall = joined()
    hall.close(code, "go")
    assert hall.seen() == [c.Disconnected("go", code)]
    hellos = len(hall.hellos_ns)
    hall.run(60 * S)
    assert len(hall.hellos_ns) == hellos
    assert hall.client.finished(hall.now_ns)


def test_who_is_too_slow_comes_back() -> None:
    hall = joined()
    hall.close(CloseCode.TOO_SLOW)
    assert [type(event) for event in hall.seen()] == [c.Reconnecting]


def test_whoever_leaves_does_not_come_back() -> None:
    hall = lost()
    hall.client.close(hall.now_ns)
    assert hall.client.finished(hall.now_ns)
    hall.restart()
    hall.run(20 * S)
    assert hall.hellos_ns == []
    assert hall.seen() == []


def test_without_a_space_only_the_session_comes_back() -> None:
    hall = connected()
    hall.close(CloseCode.SHUTDOWN)
    hall.restart()
    hall.run(250)
    assert [type(event) for event in hall.seen()] == [c.Reconnecting, c.Reconnected]
    assert hall.asked == []
    assert hall.ask(frames.WhoAmI)


def test_the_host_of_a_space_joins_it_again() -> None:
    hall = connected()
    hall.ask(frames.Open, title="t")
    hall.close(CloseCode.SHUTDOWN)
    hall.restart()
    hall.run(250)
    (join,) = hall.asked_for(frames.Join)
    assert isinstance(join, frames.Join)
    assert (join.space, join.invite) == ("room", frames.Join(id=0, space="room").invite)


def refusing(code: ErrorCode, retry_ms: int = 0, times: int = 1_000) -> Callable[..., Frame | None]:
    left = [times]

    def refuse(request: Request) -> Frame | None:
        if not isinstance(request, frames.Join) or not left[0]:
            return None
        left[0] -= 1
        return error(request, code, retry_ms)

    return refuse


@pytest.mark.parametrize(
    "code", [ErrorCode.SPACE_ENDED, ErrorCode.REMOVED, ErrorCode.NO_SUCH_SPACE, ErrorCode.NO_ACCESS]
)
def test_a_space_that_lets_one_in_no_more_has_ended(code: ErrorCode) -> None:
    hall = lost()
    hall.restart()
    hall.refuse = refusing(code)
    hall.run(1 * S)
    assert hall.seen() == [c.Reconnected(), c.Ended(f"no: {code}")]
    assert hall.client.view.me is None
    assert len(hall.asked_for(frames.Join)) == 1
    reply = hall.ask(frames.WhoAmI)
    assert hall.seen() == [c.Replied(reply, frames.Ok(re=reply))], "the session stands"
    hall.close(CloseCode.SHUTDOWN)
    hall.restart()
    hall.run(1 * S)
    assert len(hall.asked_for(frames.Join)) == 1


def test_who_is_to_wait_waits() -> None:
    hall = lost()
    hall.restart()
    hall.me, hall.members = BACK, [ADA, BACK]
    hall.refuse = refusing(ErrorCode.RATE_LIMITED, retry_ms=7_000, times=1)
    hall.run(1 * S)
    assert len(hall.asked_for(frames.Join)) == 1
    hall.run(5 * S)
    assert len(hall.asked_for(frames.Join)) == 1
    assert hall.seen() == []
    hall.run(2 * S)
    assert hall.seen() == [c.Reconnected(), c.Changed()]


@pytest.mark.parametrize("code", [ErrorCode.INVITE_USED_UP, ErrorCode.STAGE_FULL])
def test_an_invite_that_is_worth_nothing_any_more_is_left_away(code: ErrorCode) -> None:
    hall = lost()
    hall.restart()
    hall.refuse = refusing(code, times=1)
    hall.run(1 * S)
    with_it, without = hall.asked_for(frames.Join)
    assert isinstance(with_it, frames.Join)
    assert isinstance(without, frames.Join)
    assert (with_it.invite, without.invite) == ("token", frames.Join(id=0, space="room").invite)
    assert hall.seen() == [c.Reconnected(), c.Changed()]


def test_and_if_that_does_not_help_either_it_is_over() -> None:
    hall = lost()
    hall.restart()
    hall.refuse = refusing(ErrorCode.BAD_INVITE)
    hall.run(1 * S)
    assert len(hall.asked_for(frames.Join)) == 2
    assert hall.seen() == [c.Reconnected(), c.Ended("no: bad_invite")]


def test_a_session_lost_before_the_place_is_found_again() -> None:
    hall = lost()
    hall.restart()
    hall.refuse = refusing(ErrorCode.UNAVAILABLE)
    hall.run(1 * S)
    assert hall.client.phase is Phase.CONNECTED
    hall.close(CloseCode.SHUTDOWN)
    assert hall.seen() == [], "it was lost all the time"
    hall.restart()
    hall.me, hall.members = BACK, [ADA, BACK]
    hall.refuse = lambda _: None
    hall.asked.clear()
    hall.run(10 * S)
    came_back(hall)


def test_a_server_that_is_another_by_now() -> None:
    hall = lost()
    hall.restart(key=bytes(32))
    hall.run(1 * S)
    (event,) = hall.seen()
    assert isinstance(event, c.Disconnected)
    assert "another key" in event.text


def test_a_server_that_is_full_for_the_moment() -> None:
    hall = lost()
    hall.restart(max_sessions=0)
    hall.run(10 * S)
    assert hall.seen() == []
    hall.restart()
    hall.run(6 * S)
    assert hall.seen() == [c.Reconnected(), c.Changed()]


def test_what_is_counted_and_heard_begins_anew_with_the_session() -> None:
    hall = joined()
    audio = DownlinkAudio(timestamp=10**9, flags=0, audible=(), opus=b"\xf8\xff\xfe")
    for _ in range(5):
        hall.session.connection.send_media(Kind.AUDIO, audio.pack())  # lost on the way
    hall.take(hall.session.connection.send_media(Kind.AUDIO, audio.pack()))
    assert (hall.client.received.packets, hall.client.received.first) == (1, 5)
    playout = hall.client.playout
    hall.close(CloseCode.SHUTDOWN)
    hall.restart()
    hall.run(1 * S)
    assert hall.client.received.packets == 0
    assert hall.client.playout is not playout, "another server's time has nothing to do with it"


def mix(timestamp: int, flags: int = 0) -> bytes:
    return DownlinkAudio(timestamp, flags, (), b"\xf8\xff\xfe").pack()


def crowd(*packets: bytes) -> bytes:
    return b"".join(len(packet).to_bytes(2) + packet for packet in packets)


def test_packets_of_a_crowd_are_taken_one_by_one() -> None:
    hall = joined()
    packets = [mix(960, AudioFlag.FIRST), mix(1_920), mix(2_880)]
    hall.take(hall.session.connection.send_media(Kind.CROWD, crowd(*packets)))
    heard = [event.audio for event in hall.seen() if isinstance(event, c.Heard)]
    assert heard == [DownlinkAudio.unpack(packet) for packet in packets]
    assert hall.client.playout.stats.accepted == 3
    assert (hall.client.received.packets, hall.client.received.malformed) == (1, 0)
    hall.run(c.PACKET_MS * MS)
    hall.take(
        hall.session.connection.send_media(
            Kind.CROWD, crowd(mix(3_840), mix(4_800, AudioFlag.LAST))
        )
    )
    hall.run(1 * S)
    assert hall.client.playout.stats.accepted == 5
    assert hall.client._probes == 0, "a crowd's pauses are none, and LAST is the last"


@pytest.mark.parametrize(
    ("plaintext", "taken"),
    [
        (b"", 0),
        (b"\0", 0),
        (crowd(b""), 0),
        (crowd(mix(960))[:-1], 0),
        (crowd(mix(960), mix(1_920))[:-1], 1),
        (crowd(mix(960), mix(1_920, 4), mix(2_880)), 1),
        (crowd(mix(960), mix(1_920), mix(2_880), mix(3_840)), 3),
        (crowd(mix(960), mix(1_920)) + b"\0", 2),
    ],
)
def test_the_rest_of_a_malformed_crowd_is_dropped_and_counted(plaintext: bytes, taken: int) -> None:
    hall = joined()
    hall.take(hall.session.connection.send_media(Kind.CROWD, plaintext))
    assert sum(isinstance(event, c.Heard) for event in hall.seen()) == taken
    assert hall.client.playout.stats.accepted == taken
    assert (hall.client.received.packets, hall.client.received.malformed) == (1, 1)


def test_a_crowd_outside_of_a_space_is_dropped() -> None:
    hall = connected()
    hall.take(hall.session.connection.send_media(Kind.CROWD, crowd(mix(960), mix(1_920))))
    assert hall.seen() == []
    assert hall.client.playout.stats.accepted == 0


def test_every_join_says_what_is_taken_in_one_datagram() -> None:
    hall = joined()
    hall.ask(frames.Leave)
    hall.ask(frames.Join, space="room")
    hall.close(CloseCode.SHUTDOWN)
    hall.restart()
    hall.run(1 * S)
    joins = hall.asked_for(frames.Join)
    assert len(joins) == 2, "one asked for, one to come back"
    for join in joins:
        assert isinstance(join, frames.Join)
        assert join.packet_ms == c.PACKET_MS == 60


def test_requests_need_a_session() -> None:
    hall = lost()
    with pytest.raises(RuntimeError):
        hall.client.request(frames.WhoAmI)
    hall.client.seen(1)
    hall.restart()
    hall.run(1 * S)
    assert hall.asked_for(frames.Seen) == [], "it will come again, and be seen again"


def test_whatever_comes_in_nothing_is_raised() -> None:
    rng = random.Random(5)
    halls = [Hall(), connected(), joined(), lost()]
    for hall in halls:
        for size in [0, 1, 2, 8, 9, 16, 40, 1_200] * 20:
            data = bytes([rng.choice(list(Kind))])[:size] + rng.randbytes(max(0, size - 1))
            assert hall.client.receive(data, hall.now_ns) == []
    hall = halls[2]
    for junk in (b"", b"\x80", b"\xc1", frames.encode(frames.Ok(re=5))):
        hall.take(hall.session.connection.send_media(Kind.FEED, junk))
        hall.session.connection.send(junk)
        hall.pump()
    hall.run(1 * S)
    assert {type(event) for event in hall.seen()} <= {c.Replied}
    assert hall.client.phase is Phase.CONNECTED
