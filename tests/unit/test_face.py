"""What the face prints and shows of a space; the space is a real one, without a server behind."""

import asyncio
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from protocol import frames
from protocol.connection import CloseCode
from protocol.frames import Member, MessageInfo, Settings, Snapshot, Visibility, encode_update
from protocol.link import Link
from protocol.roles import Role
from spaces_client import face as face_module
from spaces_client.events import (
    Changed,
    Chat,
    ClientEvent,
    Disconnected,
    Ended,
    LineGone,
    Notified,
    Reacted,
    Reconnected,
    Reconnecting,
    Removed,
)
from spaces_client.face import Face
from spaces_client.live import LiveSpace, SpacesError

LINK = Link("127.0.0.1", 5004, bytes(31) + b"\x09", "room")
ADA = Member(id=1, name="Ada", handle="ada", role=Role.HOST, seat=0)
BO = Member(id=2, name="Bo", handle="bo", role=Role.SPEAKER, seat=1)
CY = Member(id=3, name="Cy", handle="cy")
EVIL = "e\x1b[31mv\u202eil\n"


class Room:
    """A space, the face of it, and what the face printed."""

    def __init__(
        self, *members: Member, me: Member = ADA, height: int = 24, evidence: bool = False
    ) -> None:
        self.space = LiveSpace(LINK, bytes(32), bitrate=32_000, complexity=0)
        self.view = self.space.client.view
        self.view.id, self.view.evidence = "room", evidence
        self.view.take(
            me,
            Snapshot(
                number=0, title="Tea", settings=Settings(), members=[me, *members], listeners=2
            ),
        )
        self._screen = io.StringIO()
        self.console = Console(file=self._screen, width=100, height=height)
        self.face = Face(self.space, self.console)

    def update(self, *updates: frames.Update) -> None:
        """From the feed."""
        self.view.apply(self.view.number + 1, [encode_update(u) for u in updates], 0)

    async def tell(self, *events: ClientEvent) -> list[str]:
        """-> the lines that the face prints about them."""
        seen = self._screen.tell()
        for event in events:
            self.space._post(event)
        self.space._post(Ended("done"))
        await self.face.run()
        return self._screen.getvalue()[seen:].splitlines()

    def picture(self) -> list[str]:
        with self.console.capture() as capture:
            self.console.print(self.face._picture())
        return capture.get().splitlines()


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """-> where to write what a person types."""
    there, here = os.pipe()
    with os.fdopen(there) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield here
        os.close(here)


# -- what is printed -----------------------------------------------------------------------------


async def test_what_changes_on_stage_is_said() -> None:
    room = Room(BO)
    room.update(
        frames.MemberUpdate(member=Member(id=3, name="Cy", handle="cy", hand=100)),
        frames.MemberUpdate(
            member=Member(id=2, name="Bo", handle="bo", role=Role.CO_HOST, seat=1, muted=True)
        ),
    )
    assert await room.tell(Changed()) == [
        "Bo (2) is co-host now",
        "Bo (2) is muted",
        "Cy (3) raises a hand; /up 3 lets them speak",
    ]


async def test_a_listener_gets_no_hint_to_bring_people_up() -> None:
    room = Room(BO, me=CY)
    room.update(frames.MemberUpdate(member=Member(id=9, name="Di", handle="di", hand=100)))
    room.update(frames.GoneUpdate(id=2))
    assert await room.tell(Changed()) == ["Di (9) raises a hand", "Bo (2) is off the stage"]


async def test_what_happens_to_oneself() -> None:
    room = Room(ADA, me=BO)
    held = Member(id=2, name="Bo", handle="bo", role=Role.SPEAKER, seat=1, muted=True, held=True)
    free = Member(id=2, name="Bo", handle="bo", role=Role.SPEAKER, seat=1, muted=True)
    room.update(frames.MemberUpdate(member=held))
    room.face._tell_changes()
    room.update(frames.MemberUpdate(member=free))
    room.face._tell_changes()
    room.update(frames.MemberUpdate(member=BO))
    room.face._tell_changes()
    room.update(frames.MemberUpdate(member=Member(id=2, name="Bo", handle="bo")))
    assert await room.tell(Changed()) == ["you are off the stage"]
    assert room._screen.getvalue().splitlines()[:3] == [
        "you are muted by a moderator; /unmute works when they let you",
        "you are free to unmute again",
        "you are unmuted",
    ]


async def test_new_settings_are_said() -> None:
    room = Room()
    settings = Settings(visibility=Visibility.LINK, chat=False)
    room.update(frames.SettingsUpdate(title="Coffee", settings=settings))
    assert await room.tell(Changed()) == [
        "the title is: Coffee",
        "who finds this space: link",
        "the chat: off",
    ]


async def test_chat_and_reactions_without_a_terminal() -> None:
    room = Room(BO)
    line = frames.ChatUpdate(line=7, member=2, name="Bo", handle="bo", text="hello")
    reacted = Reacted({"🔥": 1, "👏": 12}, [frames.Reaction(member=2, emoji="🔥")])
    assert await room.tell(Chat(line), LineGone(7), reacted) == [
        "[7] Bo @bo: hello",
        "line 7 was taken back",
        "👏 ×12  🔥 ×1  (Bo (2) 🔥)",
    ]


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (frames.Offered(space="s", by=2), "Bo (2) invites you to speak: /accept or /decline"),
        (frames.Declined(space="s", member=8), "number 8 declines to speak"),
        (frames.BlockedOnStage(space="s", member=2), "Bo (2), whom you blocked, is on stage"),
        (
            frames.MessageNotice(
                message=MessageInfo(id=1, sender="bo", recipient="ada", at=1, text="a\nb")
            ),
            "@bo writes: a / b",
        ),
        (
            frames.MessageNotice(
                message=MessageInfo(
                    id=1, sender="bo", recipient="ada", at=1, space="den", invite="t"
                )
            ),
            "@bo invites you: spaces join 'spaces://127.0.0.1:5004/den?key=",
        ),
        (frames.Unread(notice=1), "you have new messages: spaces messages"),
        (
            frames.Started(notice=1, space="-x", title="Tea", host="bo"),
            "“Tea” of @bo has started: spaces join -- -x",
        ),
        (frames.AccessGranted(notice=1, by="bo"), "you have access to this server now; @bo gave"),
        (
            frames.OutcomeNotice(notice=1, report=3, outcome=frames.Outcome.WARN, text="thanks"),
            "your report 3: thanks",
        ),
        (frames.Warned(notice=1, text="be kind"), "be kind"),
    ],
)
async def test_notices(frame: frames.Notice, says: str) -> None:
    (line, *_) = await Room(BO).tell(Notified(frame))
    assert line.startswith(says)


async def test_what_is_recorded_is_said_on_joining() -> None:
    room = Room(evidence=True)
    assert "what they said in the last 30 s goes with the report" in room._screen.getvalue()
    assert Room()._screen.getvalue() == ""


async def test_a_connection_that_is_lost_and_made_anew() -> None:
    room = Room(BO)
    again = Member(id=7, name="Ada", handle="ada", role=Role.HOST, seat=0)

    async def come_back() -> list[str]:
        room.view.take(
            again,
            Snapshot(number=9, title="Tea", settings=Settings(), members=[again, BO], listeners=0),
        )
        return await room.tell(Reconnecting("gone"), Reconnected(), Changed())

    assert await come_back() == [
        "the connection is lost (gone); trying again …",
        "connected again; people may have new numbers: /who",
    ]  # and nothing of having left and come on stage


async def test_a_server_that_keeps_evidence_from_now_on_says_so_once() -> None:
    room = Room()
    room.view.evidence = True
    said = await room.tell(Reconnecting("gone"), Reconnected(), Reconnected())
    assert len([line for line in said if "sealed for the moderators" in line]) == 1
    assert "sealed" not in "".join(await Room(evidence=True).tell(Reconnected()))


async def test_how_it_ends() -> None:
    for event, why in (
        (Ended("the host closed it"), "the space is over: the host closed it"),
        (Removed("a moderator did"), "you are out of the space: a moderator did"),
    ):
        room = Room()
        room.space._post(event)
        assert await room.face.run() == why
    room = Room()
    room.space._post(Disconnected("elsewhere", CloseCode.REPLACED))
    with pytest.raises(SpacesError, match="use --identity"):
        await room.face.run()


async def test_nothing_of_others_reaches_the_terminal_unless_it_can_be_shown() -> None:
    evil = Member(id=2, name=EVIL, handle="\x9b1m", role=Role.SPEAKER, seat=1, hand=1)
    room = Room(evil)
    said = frames.ChatUpdate(line=1, member=2, name=EVIL, handle="x\x07", text=EVIL)
    message = MessageInfo(id=1, sender=EVIL, recipient="ada", at=1, text=EVIL)
    room.update(
        frames.SettingsUpdate(title=EVIL, settings=Settings()),
        frames.MemberUpdate(member=Member(id=3, name=EVIL, handle=EVIL, hand=5)),
        said,
    )
    stage = [frames.Reaction(member=2, emoji=EVIL)]
    room.face._react({EVIL: 1}, stage)
    picture = "\n".join(room.picture())
    lines = await room.tell(
        Changed(),
        Chat(said),
        Reacted({EVIL: 3}, stage),
        Notified(frames.Offered(space="s", by=2)),
        Notified(frames.Warned(notice=1, text=EVIL)),
        Notified(frames.MessageNotice(message=message)),
        Notified(frames.Started(notice=1, space="x", title=EVIL, host=EVIL)),
        Reconnecting(EVIL),
    )
    printed = "\n".join([picture, *lines])
    assert "e\ufffd[31mv\ufffdil" in printed
    assert not {"\x1b", "\u202e", "\x9b", "\x07"} & set(printed)


# -- the picture ---------------------------------------------------------------------------------


async def test_the_picture() -> None:
    room = Room(
        BO,
        Member(id=4, name="Gus", handle="gus", role=Role.SPEAKER, seat=2, muted=True, held=True),
    )
    for number in (5, 6):
        room.update(
            frames.MemberUpdate(member=Member(id=number, name=f"N{number}", handle="n", hand=10))
        )
    room.update(frames.ChatUpdate(line=1, member=2, name="Bo", handle="bo", text="hello"))
    room.face._react({"🔥": 2}, [frames.Reaction(member=2, emoji="🔥")])
    room.face._react({"🔥": 1, "👏": 1}, [])
    rows = room.picture()
    assert rows[0] == "Tea"
    assert rows[1].split() == ["1", "Ada", "@ada", "host", "(you)"]
    assert rows[2].split() == ["2", "Bo", "@bo", "speaker", "🔥"]
    assert rows[3].split() == ["4", "Gus", "@gus", "speaker", "held"]
    assert rows[4].startswith("     5  N5 @n  ✋ ")
    assert rows[6:-1] == ["[1] Bo @bo: hello", "  🔥 ×3  👏 ×1", "  2 people listen"]
    assert rows[-1] in (">   /help", "> █ /help")


async def test_a_reaction_is_shown_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face_module, "REACTION_S", 0.0)
    room = Room(BO)
    room.face._react({"🔥": 1}, [frames.Reaction(member=2, emoji="🔥")])
    assert "🔥" not in "".join(room.picture())


async def test_a_line_that_was_taken_back_is_shown_no_more() -> None:
    room = Room(BO)
    room.update(frames.ChatUpdate(line=1, member=2, name="Bo", handle="bo", text="rude"))
    assert "rude" in "".join(room.picture())
    room.update(frames.LineGoneUpdate(line=1))
    assert "rude" not in "".join(room.picture())


@pytest.mark.parametrize("height", [3, 5, 8, 12, 24, 50])
async def test_the_picture_fits_whatever_happens(height: int) -> None:
    stage = [
        Member(id=n, name="n" * 40, handle="h" * 30, role=Role.SPEAKER, seat=n)
        for n in range(2, 14)
    ]
    hands = [Member(id=n, name="李" * 40, handle="h", hand=n) for n in range(20, 60)]
    room = Room(*stage, *hands, height=height)
    for line in range(30):
        text = "long " * 56
        room.update(frames.ChatUpdate(line=line, member=2, name="Bo", handle="bo", text=text))
    room.face._typed = "x" * 300
    rows = room.picture()
    assert len(rows) <= height - 1
    assert rows[-1].startswith("> xxx")  # one sees what one types


# -- what is typed -------------------------------------------------------------------------------


async def test_what_is_typed_is_obeyed(typed: int) -> None:
    room = Room()
    running = asyncio.ensure_future(room.face.run())
    os.write(typed, "/nonse\x1b[Ansé\n/up x\x15/re\x7feact\n/quit\n".encode())
    assert await running == ""
    said = room._screen.getvalue()
    assert "there is no command /nonsensé; /help shows them" in said
    assert "reactions: " in said


async def test_the_end_of_what_is_typed_is_not_the_end_of_listening(typed: int) -> None:
    room = Room()
    running: asyncio.Future[Any] = asyncio.ensure_future(room.face.run())
    os.write(typed, b"/link\n")
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), typed)  # closes the pipe
    room.space._post(Chat(frames.ChatUpdate(line=1, member=1, name="B", handle="b", text="hi")))
    while "[1] B @b: hi" not in room._screen.getvalue():
        await asyncio.sleep(0)
    assert not running.done()
    room.space._post(Ended("now"))
    assert await running == "the space is over: now"
