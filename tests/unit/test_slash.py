"""What the slash commands ask of the server, and what they say to a line that cannot be obeyed."""

from collections import deque
from typing import Any

import pytest

from protocol import frames
from protocol.frames import Category, ErrorCode, Member, Settings, Snapshot, Visibility, WhoSpeaks
from protocol.link import Link
from protocol.roles import PERMISSIONS, Role
from spaces_client.live import LiveSpace, SpacesError
from spaces_client.slash import BY_NAME, SLASHES, MisuseError, QuitError, obey

ADA = Member(id=1, name="Ada", handle="ada", role=Role.HOST, seat=0)
BO = Member(id=2, name="Bo", handle="bo", role=Role.SPEAKER, seat=1)
CY = Member(id=3, name="Cy", handle="cy", hand=100)
GUS = Member(id=4, name="Gus", role=Role.GUEST)
DI = Member(id=5, name="Di", handle="di")
EMOJI = ("❤", "😂", "👏", "🔥", "💯", "😮")
LINK = Link("127.0.0.1", 5004, bytes(31) + b"\x09", "room")
INVITE = frames.InviteInfo(
    invite="token", issuer="ada", role=Role.CO_HOST, person="bo", until=1, uses=1, max_uses=2
)


class Told(LiveSpace):
    """A space whose server says yes to everything; `asked` is what it was sent."""

    def __init__(self, me: Member = ADA) -> None:
        super().__init__(LINK, bytes(32), bitrate=32_000, complexity=0)
        self.asked: list[frames.Request] = []
        self.client.view.id = "room"
        self.client.view.reactions = EMOJI
        self.client.view.take(
            me,
            Snapshot(number=1, title="t", settings=Settings(), members=[ADA, BO, CY], listeners=3),
        )

    async def ask(self, kind: type[frames.Request], reply: Any, **fields: Any) -> Any:
        request = frames.decode(frames.encode(kind(id=1, **fields)))  # what the server would read
        assert isinstance(request, frames.Request)
        if not isinstance(request, frames.Roster):
            self.asked.append(request)
        more: dict[Any, dict[str, Any]] = {
            frames.RosterPage: {"members": [ADA, BO, CY, GUS, DI], "more": False},
            frames.Invited: {"invite": "token"},
            frames.Invites: {"invites": [INVITE]},
            frames.Said: {"line": 7},
            frames.Reported: {"report": 9, "evidence": True},
        }
        return reply(re=1, **more.get(reply, {}))


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("hello, all", frames.Chat(id=1, text="hello, all")),
        ("/say /quit is how one leaves", frames.Chat(id=1, text="/quit is how one leaves")),
        ("/delete 12", frames.DeleteLine(id=1, line=12)),
        ("/react 2", frames.React(id=1, emoji="😂")),
        ("/react 🔥", frames.React(id=1, emoji="🔥")),
        ("/hand", frames.RaiseHand(id=1)),
        ("/lower", frames.LowerHand(id=1)),
        ("/lower 3", frames.LowerHand(id=1, member=3)),
        ("/step", frames.StepUp(id=1)),
        ("/accept", frames.Accept(id=1)),
        ("/decline", frames.Decline(id=1)),
        ("/mute", frames.Mute(id=1)),
        ("/MUTE 2", frames.Mute(id=1, member=2)),
        ("/unmute", frames.Unmute(id=1)),
        ("/muteall", frames.MuteAll(id=1)),
        ("/letunmute @bo", frames.LetUnmute(id=1, member=2)),
        ("/up cy", frames.BringUp(id=1, member=3)),
        ("/offer @Di", frames.Offer(id=1, member=5)),
        ("/down 2", frames.TakeDown(id=1, member=2)),
        ("/cohost 2", frames.Appoint(id=1, member=2)),
        ("/dismiss", frames.Dismiss(id=1)),
        ("/handover @bo", frames.HandOver(id=1, member=2)),
        ("/remove 4", frames.Remove(id=1, member=4)),
        ("/invite", frames.MakeInvite(id=1)),
        (
            "/invite co-host 2 10",
            frames.MakeInvite(id=1, role=Role.CO_HOST, lifetime_s=600, max_uses=2),
        ),
        ("/invites", frames.ListInvites(id=1)),
        ("/revoke token", frames.RevokeInvite(id=1, invite="token")),
        (
            "/revoke spaces://127.0.0.1:5004/room?key=x&invite=token",
            frames.RevokeInvite(id=1, invite="token"),
        ),
        ("/ask @Zoe speaker", frames.InvitePerson(id=1, person="Zoe", role=Role.SPEAKER)),
        ("/set title Tea at six", frames.Configure(id=1, title="Tea at six")),
        ("/set visibility link", frames.Configure(id=1, visibility=Visibility.LINK)),
        ("/set who-speaks everyone", frames.Configure(id=1, who_speaks=WhoSpeaks.EVERYONE)),
        ("/set free-unmute on", frames.Configure(id=1, free_unmute=True)),
        ("/set chat off", frames.Configure(id=1, chat=False)),
        ("/set slow 30", frames.Configure(id=1, slow_s=30)),
        ("/end", frames.Close(id=1)),
        (
            "/report 4 self-harm he says so",
            frames.Report(id=1, category=Category.SELF_HARM, note="he says so", member=4),
        ),
        ("/report @di spam", frames.Report(id=1, category=Category.SPAM, member=5)),
        ("/follow 5", frames.Follow(id=1, person="di")),
        ("/block @zoe", frames.Block(id=1, person="zoe")),
        ("/unblock 2", frames.Unblock(id=1, person="bo")),
        ("/volume 2 150%", frames.SetVolume(id=1, member=2, percent=150)),
    ],
)
async def test_what_is_asked(line: str, asked: frames.Request) -> None:
    space = Told()
    await obey(space, line)
    assert space.asked == [asked]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/nonsense", "there is no command /nonsense; /help shows them"),
        ("/", "there is no command /; /help shows them"),
        ("/\x1b[31m", "there is no command /\ufffd[31m; /help shows them"),
        ("/up", "/up N: bring N up to the stage"),
        ("/hand now", "/hand takes nothing"),
        ("/up @nobody", "nobody here is @nobody; /who shows who is"),
        ("/up 3 4", "nobody here is @3 4"),
        ("/up 99999999999", "is not somebody's number"),
        ("/up ²", "nobody here is @²"),
        ("/block 4", "Gus is a guest, without an account"),
        ("/block 9", "nobody here has the number 9"),
        ("/block @" + "x" * 31, "a handle has 1 to 30 characters"),
        ("/volume 2", "/volume N PERCENT: how loud"),
        ("/volume 2 201", "201 is not a volume; it is 0 to 200 %"),
        ("/volume 2 loud", "loud is not a volume"),
        ("/react 7", "there are the reactions 1 to 6"),
        ("/report 2 rude", "rude is none of: harassment, hate"),
        ("/report 2", "/report N CATEGORY [NOTE]"),
        ("/report 2 spam " + "x" * 501, "501 characters are too many; 500 may be sent"),
        ("/invite king", "king is none of: co-host, speaker, listener"),
        ("/ask @zoe host", "host is none of: co-host, speaker, listener"),
        ("/volume @ada 50", "nobody hears themselves here"),
        ("/invite speaker many", "many is not a number of uses"),
        ("/set slow never", "never is not a number of seconds"),
        ("/set chat perhaps", "on or off?"),
        ("/set colour red", "colour is none of: title, visibility"),
        ("/delete it", "it is not the number of a line"),
        ("x" * 281, "281 characters are too many; 280 may be sent"),
    ],
)
async def test_a_line_that_cannot_be_obeyed(line: str, says: str) -> None:
    space = Told()
    with pytest.raises(MisuseError) as error:
        await obey(space, line)
    assert says in str(error.value)
    assert str(error.value).isprintable()
    assert space.asked == []


async def test_what_is_said_about_it() -> None:
    space = Told()
    assert await obey(space, "/hand") == "done"
    assert await obey(space, "hello") == ""  # it is seen in the chat
    assert "1 ❤  2 😂" in await obey(space, "/react")
    assert (await obey(space, "/invite")).startswith("whoever joins with this link may speak: ")
    assert (await obey(space, "/invite")).endswith("&invite=token")
    assert "co-host, by @ada, for @bo, used 1 of 2 times, until" in await obey(space, "/invites")
    assert await obey(space, "/link") == f"link for listeners: {LINK}"
    assert "sealed for the moderators" in await obey(space, "/report 2 spam")
    who = await obey(space, "/who")
    assert who == "here: 1 Ada @ada, 2 Bo @bo, 3 Cy @cy, 4 Gus (guest), 5 Di @di"
    assert await obey(space, "/lines") == "nobody has said anything"
    with pytest.raises(QuitError):
        await obey(space, "/quit")


class Refusing(Told):
    """A space whose server says no."""

    def __init__(self, me: Member, code: ErrorCode) -> None:
        super().__init__(me)
        self.code = code

    async def ask(self, kind: type[frames.Request], reply: Any, **fields: Any) -> Any:
        raise SpacesError("no", self.code)


@pytest.mark.parametrize(
    ("me", "line", "code", "says"),
    [
        (CY, "/end", ErrorCode.NOT_ALLOWED, "no (as listener); /help shows what you may do"),
        (ADA, "/mute 3", ErrorCode.NOT_ALLOWED, "no (as host, only on: co-host, speaker)"),
        (ADA, "/up 3", ErrorCode.NO_HAND, "no; /offer N invites them to speak"),
    ],
)
async def test_a_refusal_says_what_helps(me: Member, line: str, code: ErrorCode, says: str) -> None:
    with pytest.raises(MisuseError) as error:
        await obey(Refusing(me, code), line)
    assert str(error.value) == says


@pytest.mark.parametrize(
    ("line", "code"),
    [("/step", ErrorCode.NOT_ALLOWED), ("/follow @bo", ErrorCode.NOT_ALLOWED),
     ("/mute 2", ErrorCode.RATE_LIMITED)],
)  # fmt: skip
async def test_a_refusal_that_says_it_all(line: str, code: ErrorCode) -> None:
    with pytest.raises(SpacesError, match=r"^no$"):
        await obey(Refusing(CY, code), line)


async def test_what_a_blocked_person_wrote_is_gone() -> None:
    space = Told()
    lines = [
        frames.ChatUpdate(line=n, member=m.id, handle=m.handle, name=m.name, text="hello")
        for n, m in enumerate((BO, DI), 1)
    ]
    space.client.view.apply(2, [frames.encode_update(line) for line in lines], 0)
    await obey(space, "/block 2")
    assert [line.handle for line in space.lines] == ["di"]
    await obey(space, "/block @DI")
    assert space.lines == []


@pytest.mark.parametrize("me", [ADA, BO, CY, GUS], ids=lambda me: str(me.role))
async def test_help_shows_what_one_may_do(me: Member) -> None:
    text = await obey(Told(me), "/help")
    can, _, cannot = text.partition("\nnot as ")
    for one in SLASHES:
        may = bool(PERMISSIONS[one.action][me.role]) if one.action else me.handle or not one.account
        assert (f"\n  {one.title}  " in can) == bool(may), one.name
        assert (f"/{one.name} " in f"{cannot} ") == (not may), one.name


def test_names_are_there_once() -> None:
    assert len(BY_NAME) == len(SLASHES)


async def test_stats_say_how_late_everyone_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spaces_client.slash.MEASURE_S", 0)
    space = Told()
    space.client.levels[1] = 30
    space.client.clocks.ears.learn([frames.VoiceClock(seat=1, offset=0)])
    space.client.clocks.ears._delays_ms[1] = deque([59.0, 61.0, 60.0])
    first, *others = (await obey(space, "/stats")).splitlines()
    assert first.strip() == "Bo @bo: -30 dBov, 60.0 ms from mouth to ear"
    assert space.client.clocks.measuring
    assert len(others) == 2
