"""The library over a real socket: every request a method, lists that come in pages, notices that
count as seen, and sessions that come back.  The server is a real endpoint; its answers are written
here."""

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from protocol import evidence, frames
from protocol.connection import CloseCode, Message
from protocol.frames import Frame, Member, Request, Settings
from protocol.link import Link
from protocol.noise import public_key
from protocol.roles import Role
from spaces_client import client as c
from spaces_client.live import LiveSpace, SpacesError, connect, host, session
from spaces_server.endpoint import Endpoint

SERVER_KEY = bytes(range(32))
OUR_KEY = bytes(range(1, 33))
PATIENCE_S = 20.0

ME = Member(id=7, name="Bo", handle="bo", role=Role.HOST, seat=0)
STATE = frames.Snapshot(number=0, title="t", settings=Settings(), members=[ME], listeners=3)
ACCOUNT = frames.Account(handle="bo", name="Bo")
SPACE = frames.SpaceInfo(id="s", title="t", host="bo", host_name="Bo", state=frames.SpaceState.LIVE)
REPLIES: dict[str, Callable[[int], Frame]] = {
    "ok": lambda re: frames.Ok(re=re),
    "joined": lambda re: frames.Joined(re=re, space="s", you=ME, snapshot=STATE, reactions=["👏"]),
    "state": lambda re: frames.State(re=re, space="s", you=ME, snapshot=STATE),
    "updates": lambda re: frames.Updates(re=re, space="s", first=1, updates=[], hash=0),
    "roster_page": lambda re: frames.RosterPage(re=re, members=[ME], more=False),
    "said": lambda re: frames.Said(re=re, line=5),
    "account": lambda re: frames.AccountReply(re=re, account=ACCOUNT, server=frames.Access.OPEN),
    "device_code": lambda re: frames.DeviceCode(re=re, code="code", until=9),
    "devices": lambda re: frames.Devices(re=re, devices=[]),
    "person": lambda re: frames.PersonReply(re=re, person=frames.Person(handle="b", name="B")),
    "people": lambda re: frames.People(re=re, people=[]),
    "waiting": lambda re: frames.WaitingReply(re=re, waiting=[]),
    "accounts": lambda re: frames.Accounts(re=re, accounts=[ACCOUNT]),
    "spaces": lambda re: frames.Spaces(re=re, spaces=[SPACE]),
    "space": lambda re: frames.SpaceReply(re=re, space=SPACE),
    "invited": lambda re: frames.Invited(re=re, invite="tok"),
    "invites": lambda re: frames.Invites(re=re, invites=[]),
    "sent": lambda re: frames.Sent(re=re, message=8),
    "messages": lambda re: frames.Messages(re=re, messages=[]),
    "posted": lambda re: frames.Posted(re=re, post=6),
    "posts": lambda re: frames.Posts(re=re, posts=[]),
    "note": lambda re: frames.Note(re=re, data=b"note", more=False),
    "reported": lambda re: frames.Reported(re=re, report=4),
    "reports": lambda re: frames.Reports(re=re, reports=[]),
}


class Desk(asyncio.DatagramProtocol):
    """A server that answers every request with the reply that its description names, or as
    `answers` says."""

    def __init__(self) -> None:
        self.endpoint = Endpoint(SERVER_KEY, os.urandom)
        self.asked: list[Request] = []
        self.answers: dict[type[Request], Callable[[Any], Frame]] = {}
        self.keeps_silent: set[type[Request]] = set()
        self.heard = asyncio.Event()  # set with every request
        self.gone = asyncio.Event()
        self._addresses: dict[bytes, Any] = {}

    def connection_made(self, transport: Any) -> None:
        self.transport: asyncio.DatagramTransport = transport
        name = transport.get_extra_info("sockname")
        self.link = Link("127.0.0.1", name[1], public_key(SERVER_KEY), "s", "tok")

    def connection_lost(self, _error: Exception | None) -> None:
        self.gone.set()

    def datagram_received(self, data: bytes, address: Any) -> None:
        name = repr(address).encode()
        self._addresses[name] = address
        now_ns = time.monotonic_ns()
        received = self.endpoint.receive(data, name, now_ns) or self.endpoint.work(now_ns)
        if received is not None:
            one, events, _ = received
            for event in events:
                if isinstance(event, Message):
                    request = frames.decode(event.data)
                    assert isinstance(request, Request)
                    self.asked.append(request)
                    if type(request) not in self.keeps_silent:
                        one.connection.send(frames.encode(self._answer(request)))
                    self.heard.set()
        self.flush()

    def _answer(self, request: Request) -> Frame:
        if answer := self.answers.get(type(request)):
            return answer(request)
        tag = re.findall(r"Reply:\s+`(\w+)`", type(request).__doc__ or "")[-1]
        return REPLIES[tag](request.id)

    def flush(self) -> None:
        for one in self.endpoint.sessions.values():
            self.endpoint.flush(one, time.monotonic_ns())
        sent, self.endpoint.outbox = self.endpoint.outbox, []
        for data, name in sent:
            self.transport.sendto(data, self._addresses[name])

    def tell(self, frame: Frame) -> None:
        list(self.endpoint.sessions.values())[-1].connection.send(frames.encode(frame))
        self.flush()

    def close(self, code: int, text: str) -> None:
        for one in self.endpoint.sessions.values():
            one.connection.close(code, text, time.monotonic_ns())
        self.flush()

    async def asks(self, kind: type[Request], count: int = 1) -> Any:
        """The count-th request of this kind, once it has come."""
        async with asyncio.timeout(PATIENCE_S):
            while len(found := [r for r in self.asked if isinstance(r, kind)]) < count:
                self.heard.clear()
                await self.heard.wait()
        return found[count - 1]


@contextlib.asynccontextmanager
async def open_desk(port: int = 0) -> AsyncIterator[Desk]:
    loop = asyncio.get_running_loop()
    transport, desk = await loop.create_datagram_endpoint(Desk, local_addr=("127.0.0.1", port))
    try:
        yield desk
    finally:
        transport.close()
        await desk.gone.wait()


async def drained(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


# -- every request is a method ----------------------------------------------------------------

Method = Callable[[LiveSpace], Awaitable[Any]]
R = frames
CALLS: list[tuple[Method, Request]] = [
    (lambda me: me.open("x"), R.Open(id=0, title="x")),
    (lambda me: me.open(space="s"), R.Open(id=0, space="s")),
    (
        lambda me: me.join("s", invite="i", name="n"),
        R.Join(id=0, space="s", invite="i", name="n", packet_ms=60),
    ),
    (lambda me: me.leave(), R.Leave(id=0)),
    (lambda me: me.raise_hand(), R.RaiseHand(id=0)),
    (lambda me: me.lower_hand(), R.LowerHand(id=0)),
    (lambda me: me.lower_hand(3), R.LowerHand(id=0, member=3)),
    (lambda me: me.step_up(), R.StepUp(id=0)),
    (lambda me: me.bring_up(3), R.BringUp(id=0, member=3)),
    (lambda me: me.offer(3), R.Offer(id=0, member=3)),
    (lambda me: me.accept(), R.Accept(id=0)),
    (lambda me: me.decline(), R.Decline(id=0)),
    (lambda me: me.take_down(3), R.TakeDown(id=0, member=3)),
    (lambda me: me.appoint(3), R.Appoint(id=0, member=3)),
    (lambda me: me.dismiss(), R.Dismiss(id=0)),
    (lambda me: me.hand_over(3), R.HandOver(id=0, member=3)),
    (lambda me: me.mute(3), R.Mute(id=0, member=3)),
    (lambda me: me.mute_all(), R.MuteAll(id=0)),
    (lambda me: me.unmute(), R.Unmute(id=0)),
    (lambda me: me.let_unmute(3), R.LetUnmute(id=0, member=3)),
    (lambda me: me.remove(3), R.Remove(id=0, member=3)),
    (lambda me: me.set_volume(3, 50), R.SetVolume(id=0, member=3, percent=50)),
    (lambda me: me.configure(chat=False), R.Configure(id=0, chat=False)),
    (lambda me: me.configure(title="u", slow_s=9), R.Configure(id=0, title="u", slow_s=9)),
    (lambda me: me.chat("hi"), R.Chat(id=0, text="hi")),
    (lambda me: me.delete_line(4), R.DeleteLine(id=0, line=4)),
    (lambda me: me.react("👏"), R.React(id=0, emoji="👏")),
    (lambda me: me.close(), R.Close(id=0)),
    (lambda me: drained(me.roster()), R.Roster(id=0)),
    (lambda me: me.register("bo", "Bo"), R.Register(id=0, handle="bo", name="Bo")),
    (lambda me: me.who_am_i(), R.WhoAmI(id=0)),
    (lambda me: me.rename("Bob"), R.Rename(id=0, name="Bob")),
    (lambda me: me.device_code(), R.MakeDeviceCode(id=0)),
    (lambda me: me.add_device("c", "phone"), R.AddDevice(id=0, code="c", label="phone")),
    (lambda me: me.devices(), R.ListDevices(id=0)),
    (lambda me: me.remove_device(2), R.RemoveDevice(id=0, device=2)),
    (lambda me: me.claim_server("c"), R.ClaimServer(id=0, code="c")),
    (lambda me: me.find("al"), R.Find(id=0, person="al")),
    (lambda me: me.follow("al"), R.Follow(id=0, person="al")),
    (lambda me: me.unfollow("al"), R.Unfollow(id=0, person="al")),
    (lambda me: drained(me.followers("al")), R.Followers(id=0, person="al")),
    (lambda me: drained(me.following()), R.Following(id=0)),
    (lambda me: me.block("al"), R.Block(id=0, person="al")),
    (lambda me: me.unblock("al"), R.Unblock(id=0, person="al")),
    (lambda me: drained(me.blocked()), R.Blocked(id=0)),
    (lambda me: me.ask_access("please"), R.AskAccess(id=0, note="please")),
    (lambda me: drained(me.waiting_list()), R.WaitingList(id=0)),
    (lambda me: me.grant("al"), R.Grant(id=0, person="al")),
    (lambda me: me.revoke("al"), R.Revoke(id=0, person="al")),
    (lambda me: me.set_access(R.Access.LIMITED), R.SetAccess(id=0, access=R.Access.LIMITED)),
    (lambda me: me.appoint_moderator("al"), R.AppointModerator(id=0, person="al")),
    (lambda me: me.dismiss_moderator("al"), R.DismissModerator(id=0, person="al")),
    (
        lambda me: me.ban("al", "spam", with_invited=True),
        R.Ban(id=0, person="al", reason="spam", with_invited=True),
    ),
    (lambda me: me.unban("al"), R.Unban(id=0, person="al")),
    (lambda me: drained(me.accounts(banned=True)), R.ListAccounts(id=0, banned=True)),
    (lambda me: me.seen(3), R.Seen(id=0, notice=3)),
    (lambda me: drained(me.spaces()), R.ListSpaces(id=0)),
    (lambda me: drained(me.upcoming()), R.ListUpcoming(id=0)),
    (lambda me: me.get_space("s"), R.GetSpace(id=0, space="s")),
    (lambda me: me.schedule("x", 99), R.Schedule(id=0, title="x", starts=99)),
    (lambda me: me.cancel("s"), R.CancelSpace(id=0, space="s")),
    (lambda me: me.remind("s", on=False), R.Remind(id=0, space="s", on=False)),
    (
        lambda me: me.make_invite(Role.LISTENER, lifetime_s=60, max_uses=2),
        R.MakeInvite(id=0, role=Role.LISTENER, lifetime_s=60, max_uses=2),
    ),
    (lambda me: me.invites(), R.ListInvites(id=0)),
    (lambda me: me.revoke_invite("tok"), R.RevokeInvite(id=0, invite="tok")),
    (
        lambda me: me.invite_person("al", Role.SPEAKER, "come"),
        R.InvitePerson(id=0, person="al", role=Role.SPEAKER, text="come"),
    ),
    (lambda me: me.send_message("al", "hi"), R.SendMessage(id=0, person="al", text="hi")),
    (lambda me: drained(me.messages("al")), R.ListMessages(id=0, person="al")),
    (lambda me: me.post("hi", space="s"), R.Post(id=0, text="hi", space="s")),
    (lambda me: me.post(note=b"abc"), R.NotePart(id=0, first=True, data=b"abc")),
    (lambda me: me.delete_post(6), R.DeletePost(id=0, post=6)),
    (lambda me: drained(me.home()), R.Home(id=0)),
    (lambda me: drained(me.public_posts()), R.PublicPosts(id=0)),
    (lambda me: me.note(6), R.GetNote(id=0, post=6)),
    (
        lambda me: me.report(R.Category.SPAM, "look", member=3),
        R.Report(id=0, category=R.Category.SPAM, note="look", member=3),
    ),
    (lambda me: drained(me.reports(closed=True)), R.ListReports(id=0, closed=True)),
    (
        lambda me: me.act(4, R.Outcome.BAN, "enough", with_invited=True),
        R.Act(id=0, report=4, outcome=R.Outcome.BAN, note="enough", with_invited=True),
    ),
    (lambda me: me.close_space("s", "no"), R.CloseSpace(id=0, space="s", reason="no")),
]


async def test_every_request_is_a_method() -> None:
    by_itself = {R.CatchUp, R.Look, R.AskClock}  # the client asks for them by itself
    apart = {R.GetEvidence}
    assert {type(request) for _, request in CALLS} | by_itself | apart == set(frames.REQUESTS)
    async with open_desk() as desk, session(desk.link) as me:
        for call, expected in CALLS:
            desk.asked.clear()
            await call(me)
            got = frames.encode(desk.asked[0])
            wanted = frames.encode(type(expected)(**{**_fields(expected), "id": desk.asked[0].id}))
            assert got == wanted, desk.asked[0]


def _fields(request: Request) -> dict[str, Any]:
    return {name: getattr(request, name) for name in request.__struct_fields__}


async def test_what_comes_back() -> None:
    async with open_desk() as desk, session(desk.link) as me:
        assert (await me.register("bo", "Bo")).account == ACCOUNT
        assert await me.get_space("s") == SPACE
        assert await me.send_message("al", "hi") == 8
        assert await me.post("hi") == 6
        assert (await me.report(R.Category.SPAM, space="s")).report == 4
        await me.open("t")
        assert (me.title, me.me, me.stage, me.listeners) == ("t", ME, [ME], 3)
        assert (me.settings, me.reactions, me.evidence_kept) == (Settings(), ("👏",), False)
        assert await me.chat("hi") == 5
        assert await drained(me.roster()) == [ME]
        link = desk.link
        assert me.link == Link(link.host, link.port, link.key, "s")
        assert await me.make_invite() == Link(link.host, link.port, link.key, "s", "tok")
        assert await me.invite_person("al") == Link(link.host, link.port, link.key, "s", "tok")


async def test_in_and_out_by_a_link() -> None:
    async with open_desk() as desk:
        async with connect(str(desk.link), name="Bo", despite_blocked=True) as space:
            assert space.me == ME
        (join,) = desk.asked
        assert isinstance(join, R.Join)
        assert (join.space, join.invite, join.name) == ("s", "tok", "Bo")
        assert join.despite_blocked
        async with host(desk.link, title="u", settings=Settings(slow_s=5)) as space:
            assert space.me == ME
        opened = await desk.asks(R.Open)
        assert (opened.title, opened.settings) == ("u", Settings(slow_s=5))


async def test_a_refusal_says_why_and_when_to_try_again() -> None:
    async with open_desk() as desk, session(desk.link) as me:
        desk.answers[R.Post] = lambda request: R.Error(
            re=request.id, code="rate_limited", text="too many", retry_ms=1_500
        )
        with pytest.raises(SpacesError, match="too many") as refusal:
            await me.post("hi")
        assert (refusal.value.code, refusal.value.retry_ms) == ("rate_limited", 1_500)
        desk.answers[R.WhoAmI] = lambda request: R.Ok(re=request.id)
        with pytest.raises(SpacesError, match="answered 'ok'"):
            await me.who_am_i()


# -- what comes in parts ----------------------------------------------------------------------


async def test_pages_are_asked_for_as_they_are_needed() -> None:
    people = [R.Person(handle=f"p{n}", name="P") for n in range(250)]

    def page(request: R.Followers) -> Frame:
        some = people[request.after : request.after + 100]
        following = request.after + 100
        return R.People(re=request.id, people=some, next=following if following < 250 else 0)

    async with open_desk() as desk, session(desk.link) as me:
        desk.answers[R.Followers] = page
        assert await drained(me.followers("al")) == people
        assert len(desk.asked) == 3
        desk.asked.clear()
        assert await anext(me.followers("al")) == people[0]
        assert len(desk.asked) == 1, "nobody asked for more"


async def test_the_newest_first_goes_backwards() -> None:
    def page(request: R.Home) -> Frame:
        start = request.before or 43
        numbers = range(start - 1, max(0, start - 21), -1)
        posts = [R.PostInfo(id=n, author="al", name="Al", at=n) for n in numbers]
        return R.Posts(re=request.id, posts=posts, next=posts[-1].id if posts[-1].id > 1 else 0)

    async with open_desk() as desk, session(desk.link) as me:
        desk.answers[R.Home] = page
        assert [post.id for post in await drained(me.home())] == list(range(42, 0, -1))


async def test_a_roster_of_many_and_one_that_makes_no_sense() -> None:
    everyone = [Member(id=n, name="M") for n in range(1, 251)]

    def page(request: R.Roster) -> Frame:
        some = everyone[request.after : request.after + 100]
        return R.RosterPage(re=request.id, members=some, more=bool(some) and some[-1].id < 250)

    async with open_desk() as desk, session(desk.link) as me:
        desk.answers[R.Roster] = page
        assert await drained(me.roster()) == everyone
        desk.answers[R.Roster] = lambda request: R.RosterPage(re=request.id, members=[], more=True)
        assert await drained(me.roster()) == []


async def test_a_voice_note_goes_and_comes_in_parts() -> None:
    note = os.urandom(40_000)
    size = frames.MAX_CHUNK_BYTES

    def part(request: R.GetNote) -> Frame:
        at = request.part * size
        return R.Note(re=request.id, data=note[at : at + size], more=at + size < len(note))

    async with open_desk() as desk, session(desk.link) as me:
        await me.post("listen", note=note)
        parts = [r for r in desk.asked if isinstance(r, R.NotePart)]
        assert b"".join(part.data for part in parts) == note
        assert [part.first for part in parts] == [True, False, False]
        post = desk.asked[-1]
        assert isinstance(post, R.Post)
        assert post.note
        desk.answers[R.GetNote] = part
        assert await me.note(6) == note
        desk.answers[R.GetNote] = lambda request: R.Note(re=request.id, data=b"x", more=True)
        with pytest.raises(SpacesError, match="more than belongs"):
            await me.note(6)


async def test_evidence_is_opened_with_one_s_own_key() -> None:
    recording = [(n * 960, os.urandom(60)) for n in range(500)]
    device = public_key(OUR_KEY)
    sealed = evidence.seal(recording, [device], os.urandom)
    size = frames.MAX_CHUNK_BYTES

    def part(request: R.GetEvidence) -> Frame:
        at = request.part * size
        return R.Evidence(
            re=request.id,
            sender_key=sealed.keys[device].sender_key,
            sealed_key=sealed.keys[device].sealed_key,
            data=sealed.data[at : at + size],
            more=at + size < len(sealed.data),
        )

    async with open_desk() as desk:
        async with session(desk.link, key=OUR_KEY) as me:
            desk.answers[R.GetEvidence] = part
            assert await me.evidence(4) == recording
            assert len(desk.asked) > 1
        async with session(desk.link, key=bytes(range(2, 34))) as other:
            with pytest.raises(SpacesError, match="cannot be opened"):
                await other.evidence(4)


# -- notices ----------------------------------------------------------------------------------


async def test_a_kept_notice_counts_as_seen_once_it_was_dealt_with() -> None:
    async with open_desk() as desk, session(desk.link) as me:
        await me.who_am_i()  # so that the server knows the session
        message = R.MessageInfo(id=1, sender="bo", recipient="ada", at=1, text="hello")
        desk.tell(R.MessageNotice(message=message))
        desk.tell(R.Warned(notice=3, text="be kind"))
        desk.tell(R.Unread(notice=4))
        events = me.events()
        got: list[c.Notified] = []
        async with asyncio.timeout(PATIENCE_S):
            while len(got) < 3:
                event = await anext(events)
                got += [event] if isinstance(event, c.Notified) else []
                assert len(got) == 3 or R.Seen not in map(type, desk.asked)
        assert [type(event.frame) for event in got] == [R.MessageNotice, R.Warned, R.Unread]
        assert (await desk.asks(R.Seen)).notice == 3
        await me.who_am_i()
        assert [type(r) for r in desk.asked].count(R.Seen) == 1, "the newest may yet be missed"


# -- sessions that come back ------------------------------------------------------------------


async def until(space: LiveSpace, kind: type[c.ClientEvent]) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        async for event in space.events():
            if isinstance(event, kind):
                return event
    raise AssertionError(f"no {kind}")


async def test_a_server_that_goes_and_comes_is_found_again() -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with open_desk() as first:
            desk = first
            space = await stack.enter_async_context(connect(desk.link, name="Bo"))
            desk.keeps_silent = {R.RaiseHand}
            asked = asyncio.ensure_future(space.raise_hand())
            await desk.asks(R.RaiseHand)
            desk.close(CloseCode.SHUTDOWN, "back soon")
            assert (await until(space, c.Reconnecting)).text == "back soon"
            with pytest.raises(SpacesError, match="the connection was lost; try again"):
                await asked
            with pytest.raises(SpacesError, match="try again"):
                await space.who_am_i()
            assert (space.trouble, space.over) == ("back soon", None)
        second = await stack.enter_async_context(open_desk(desk.link.port))
        await until(space, c.Reconnected)
        join = await second.asks(R.Join)
        assert (join.space, join.invite, join.name) == ("s", "tok", "Bo")
        assert space.trouble is None
        assert await space.chat("here again") == 5


async def test_a_server_that_is_killed_is_missed_at_once_where_the_machine_says_so() -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with open_desk() as desk:
            space = await stack.enter_async_context(connect(desk.link))
        tries = asyncio.ensure_future(speak(space))  # as anybody on stage does
        assert "nothing listens" in (await until(space, c.Reconnecting)).text
        tries.cancel()
        await stack.enter_async_context(open_desk(desk.link.port))
        await until(space, c.Reconnected)


async def speak(space: LiveSpace) -> None:
    while True:
        space.client.address_changed(time.monotonic_ns())
        space._flush()
        await asyncio.sleep(0.02)


async def test_who_is_expelled_stays_away() -> None:
    async with open_desk() as desk, connect(desk.link) as space:
        desk.close(CloseCode.EXPELLED, "you are banned")
        event = await until(space, c.Disconnected)
        assert (event.text, event.code) == ("you are banned", CloseCode.EXPELLED)
        with pytest.raises(SpacesError, match="you are banned"):
            await space.chat("but")


async def test_one_can_leave_while_there_is_no_server() -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with open_desk() as desk:
            space = await stack.enter_async_context(connect(desk.link))
            desk.close(CloseCode.SHUTDOWN, "bye")
            await until(space, c.Reconnecting)
        tasks = asyncio.all_tasks()
        async with asyncio.timeout(PATIENCE_S):
            await stack.aclose()
        assert asyncio.all_tasks() <= tasks
        assert [type(event) async for event in space.events()][-1] is c.Disconnected


async def test_a_host_that_cannot_be_found() -> None:
    nowhere = Link("no-such-host.invalid", 5004, public_key(SERVER_KEY), "s")
    with pytest.raises(SpacesError, match=r"no-such-host\.invalid cannot be reached"):
        async with connect(nowhere):
            pass
