"""The slash commands inside a joined space, as one table.

A command's usage is what it takes, a word each: `N` is needed, `[N]` is not, and the last takes
the rest of the line.  N is somebody's number, or their handle.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from protocol import frames
from protocol.frames import Category, ErrorCode, Member, Visibility, WhoSpeaks
from protocol.roles import PERMISSIONS, Action, Role
from protocol.text import shown
from spaces_client import words
from spaces_client.live import LiveSpace, SpacesError
from spaces_client.stats import MEASURE_S, described

MAX_SHOWN = 200  # of the people here
MAX_U32 = 0xFFFF_FFFF

E = TypeVar("E", bound=StrEnum)


class MisuseError(Exception):
    """A command that cannot be done like this; one line that says how."""


class QuitError(Exception):
    """The person wants to leave."""


@dataclass(frozen=True, slots=True)
class Slash:
    """action: what one's role must allow, if anything.  account: guests cannot do it.
    run: gets the space and the words, and gives back what to say; None for `done`."""

    name: str
    usage: str
    help: str
    run: Callable[..., Awaitable[str | None]]
    action: Action | None = None
    account: bool = False

    @property
    def title(self) -> str:
        return f"/{self.name} {self.usage}".rstrip()

    def may(self, me: Member) -> bool:
        if self.action is not None:
            return bool(PERMISSIONS[self.action][me.role])
        return bool(me.handle) or not self.account

    def words(self, argument: str) -> list[str]:
        """Raises MisuseError unless they are as many as the usage says."""
        takes = self.usage.split()
        given = argument.split(maxsplit=max(0, len(takes) - 1))
        if len(given) < sum(not word.startswith("[") for word in takes):
            raise MisuseError(f"{self.title}: {self.help}")
        if given and not takes:
            raise MisuseError(f"/{self.name} takes nothing")
        return given


# -- words ----------------------------------------------------------------------------------------


def _number(word: str, what: str, most: int = MAX_U32) -> int:
    if not (word.isascii() and word.isdecimal()) or int(word[:12]) > most:
        raise MisuseError(f"{shown(word)} is not {what}")
    return int(word)


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdecimal()


async def find_member(space: LiveSpace, fits: Callable[[Member], bool]) -> Member | None:
    """Whoever is on stage or has raised a hand is known; the others are asked for."""
    known = next(filter(fits, space.client.view.members.values()), None)
    if known is not None:
        return known
    async for member in space.roster():
        if fits(member):
            return member
    return None


async def _member(space: LiveSpace, word: str) -> int:
    """The number of somebody here."""
    if _is_number(word):
        return _number(word, "somebody's number; /who shows them")
    handle = _handle(word)
    found = await find_member(space, lambda member: member.handle.casefold() == handle.casefold())
    if found is None:
        raise MisuseError(f"nobody here is @{shown(handle)}; /who shows who is")
    return found.id


async def _person(space: LiveSpace, word: str) -> str:
    """The handle of somebody, here or not."""
    if not _is_number(word):
        return _handle(word)
    number = _number(word, "somebody's number; /who shows them")
    found = await find_member(space, lambda member: member.id == number)
    if found is None:
        raise MisuseError(f"nobody here has the number {number}; /who shows them")
    if not found.handle:
        raise MisuseError(f"{shown(found.name)} is a guest, without an account")
    return found.handle


def _handle(word: str) -> str:
    handle = word.removeprefix("@")
    if not 0 < len(handle) <= frames.MAX_HANDLE_CHARS:
        raise MisuseError(f"a handle has 1 to {frames.MAX_HANDLE_CHARS} characters")
    return handle


def _one_of(choices: Iterable[E], word: str) -> E:
    """choices: an enumeration, or some of one."""
    names = {one.value.replace("_", "-"): one for one in choices}
    found = names.get(word.lower().replace("_", "-"))
    if found is None:
        raise MisuseError(f"{shown(word)} is none of: {', '.join(names)}")
    return found


def _text(text: str, most: int) -> str:
    if len(text) > most:
        raise MisuseError(f"{len(text)} characters are too many; {most} may be sent")
    return text


def _on(word: str) -> bool:
    if word.lower() not in ("on", "off"):
        raise MisuseError("on or off?")
    return word.lower() == "on"


# -- what they do ---------------------------------------------------------------------------------


def _simply(method: Callable[[LiveSpace], Awaitable[None]]) -> Any:
    async def run(space: LiveSpace) -> None:
        await method(space)

    return run


def _on_member(method: Callable[[LiveSpace, int], Awaitable[None]]) -> Any:
    async def run(space: LiveSpace, word: str) -> None:
        await method(space, await _member(space, word))

    return run


def _on_me_or_member(method: Callable[[LiveSpace, int | None], Awaitable[None]]) -> Any:
    async def run(space: LiveSpace, word: str | None = None) -> None:
        await method(space, None if word is None else await _member(space, word))

    return run


async def _say(space: LiveSpace, text: str) -> str:
    await space.chat(_text(text, frames.MAX_CHAT_CHARS))
    return ""


async def _react(space: LiveSpace, which: str | None = None) -> str:
    emoji = space.reactions
    if which is None:
        return "reactions: " + "  ".join(f"{n} {shown(e)}" for n, e in enumerate(emoji, 1))
    if _is_number(which):
        number = _number(which, "a reaction")
        if not 1 <= number <= len(emoji):
            raise MisuseError(f"there are the reactions 1 to {len(emoji)}")
        which = emoji[number - 1]
    await space.react(_text(which, 16))
    return ""


async def _volume(space: LiveSpace, word: str, percent: str) -> str:
    wanted = _number(percent.removesuffix("%").strip(), "a volume; it is 0 to 200 %", 200)
    member = await _member(space, word)
    if member == space.me.id:
        raise MisuseError("nobody hears themselves here; /mute mutes you")
    await space.set_volume(member, wanted)
    return f"you hear them at {wanted} %; the others as before"


async def _follow(space: LiveSpace, word: str) -> str:
    person = await _person(space, word)
    await space.follow(person)
    return f"you follow @{shown(person)}"


async def _block(space: LiveSpace, word: str) -> str:
    person = await _person(space, word)
    await space.block(person)
    return f"you have blocked @{shown(person)}: neither of you hears or reads the other"


async def _unblock(space: LiveSpace, word: str) -> str:
    person = await _person(space, word)
    await space.unblock(person)
    return f"you have not blocked @{shown(person)} any more"


async def _report(space: LiveSpace, word: str, category: str, note: str = "") -> str:
    about = _one_of(Category, category)
    note = _text(note, frames.MAX_REPORT_CHARS)
    reply = await space.report(about, note, member=await _member(space, word))
    said = "; what they said last goes with it, sealed for the moderators" * reply.evidence
    return f"reported, as number {reply.report}{said}; you will be told what becomes of it"


_GRANTED = (Role.CO_HOST, Role.SPEAKER, Role.LISTENER)  # by an invite


async def _invite(
    space: LiveSpace, role: str = Role.SPEAKER, uses: str = "0", minutes: str = "0"
) -> str:
    granted = _one_of(_GRANTED, role)
    lifetime_s = 60 * _number(minutes, "a number of minutes", MAX_U32 // 60)
    link = await space.make_invite(
        granted, lifetime_s=lifetime_s, max_uses=_number(uses, "a number of uses")
    )
    may = "may come in" if granted is Role.LISTENER else "may speak"
    return f"whoever joins with this link {may}: {link}"


async def _invites(space: LiveSpace) -> str:
    found = await space.invites()
    lines = []
    for one in found:
        facts = [one.role.value.replace("_", "-"), f"by @{shown(one.issuer)}"]
        if one.person:
            facts.append(f"for @{shown(one.person)}")
        most = f" of {one.max_uses}" if one.max_uses else ""
        facts.append(f"used {one.uses}{most} times")
        if one.until:
            facts.append(f"until {words.local_time(one.until)}")
        lines.append(f"  {one.invite}  {', '.join(facts)}")
    return "\n".join(lines) or "no invites"


async def _revoke(space: LiveSpace, token: str) -> str:
    """The token, or the link with it."""
    token = token.rpartition("invite=")[2]
    await space.revoke_invite(_text(token, 64))
    return "nobody can come in with it any more"


async def _ask(space: LiveSpace, person: str, role: str = Role.LISTENER) -> str:
    handle = _handle(person)
    await space.invite_person(handle, _one_of(_GRANTED, role))
    return f"@{shown(handle)} has a message with an invitation"


async def _link(space: LiveSpace) -> str:
    return f"link for listeners: {space.link}"


async def _delete(space: LiveSpace, line: str) -> None:
    await space.delete_line(_number(line, "the number of a line"))


_SETTINGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "title": ("title", lambda value: _text(value, frames.MAX_TITLE_CHARS)),
    "visibility": ("visibility", lambda value: _one_of(Visibility, value)),
    "who-speaks": ("who_speaks", lambda value: _one_of(WhoSpeaks, value)),
    "free-unmute": ("free_unmute", _on),
    "chat": ("chat", _on),
    "slow": ("slow_s", lambda value: _number(value, "a number of seconds")),
}


async def _set(space: LiveSpace, key: str, value: str) -> None:
    if key.lower() not in _SETTINGS:
        raise MisuseError(f"{shown(key)} is none of: {', '.join(_SETTINGS)}")
    field, read = _SETTINGS[key.lower()]
    await space.configure(**{field: read(value)})


async def _lines(space: LiveSpace) -> str:
    return "\n".join(words.chat_line(line) for line in space.lines) or "nobody has said anything"


async def _who(space: LiveSpace) -> str:
    found: list[Member] = []
    async for member in space.roster():
        found.append(member)
        if len(found) == MAX_SHOWN:
            break
    names = [f"{m.id} {words.person(m.name, m.handle)}" for m in found]
    others = space.listeners + len(space.stage) - len(found)
    return "here: " + ", ".join(names) + (f" and {others} more" if others > 0 else "")


async def _stats(space: LiveSpace) -> str:
    if not space.client.clocks.measuring:
        space.stats()  # begins to measure
        await asyncio.sleep(MEASURE_S)
    return "\n".join(f"  {line}" for line in described(space.stats()))


async def _help(space: LiveSpace) -> str:
    me = space.me
    role = words.role(me.role)
    may = [one for one in SLASHES if one.may(me)]
    can = [one for one in may if one.action is not None]
    always = [one for one in may if one.action is None]
    cannot = [one for one in SLASHES if not one.may(me)]
    width = 2 + max(len(one.title) for one in SLASHES)
    lines = ["a line without a slash is said in the chat; N is a number (/who) or a @handle"]
    for title, group in ((f"as {role}:", can), ("always:", always)):
        if group:
            lines.append(title)
            lines += [f"  {one.title:<{width}}{one.help}" for one in group]
    lines.append(f"not as {role}: " + " ".join(f"/{one.name}" for one in cannot))
    return "\n".join(lines)


async def _quit(_space: LiveSpace) -> None:
    raise QuitError


SLASHES = (
    Slash("say", "TEXT", "say a line in the chat", _say, Action.CHAT),
    Slash("delete", "LINE", "take a line of the chat back", _delete, Action.DELETE_LINE),
    Slash("react", "[1-6]", "show a reaction, by number or itself", _react, Action.REACT),
    Slash("hand", "", "raise your hand", _simply(LiveSpace.raise_hand), Action.RAISE_HAND),
    Slash(
        "lower", "[N]", "take a hand down", _on_me_or_member(LiveSpace.lower_hand),
        Action.LOWER_HAND,
    ),
    Slash("step", "", "step up on stage unasked", _simply(LiveSpace.step_up), Action.STEP_UP),
    Slash("accept", "", "take an offer to speak", _simply(LiveSpace.accept), Action.ACCEPT),
    Slash("decline", "", "decline it", _simply(LiveSpace.decline), Action.DECLINE),
    Slash("mute", "[N]", "mute yourself, or N", _on_me_or_member(LiveSpace.mute), Action.MUTE),
    Slash("unmute", "", "unmute yourself", _simply(LiveSpace.unmute), Action.UNMUTE),
    Slash("muteall", "", "mute everyone but you", _simply(LiveSpace.mute_all), Action.MUTE_ALL),
    Slash(
        "letunmute", "N", "let N unmute themselves", _on_member(LiveSpace.let_unmute),
        Action.LET_UNMUTE,
    ),
    Slash("up", "N", "bring N up to the stage", _on_member(LiveSpace.bring_up), Action.BRING_UP),
    Slash("offer", "N", "invite N to speak", _on_member(LiveSpace.offer), Action.OFFER),
    Slash(
        "down", "[N]", "step down, or take N down", _on_me_or_member(LiveSpace.take_down),
        Action.TAKE_DOWN,
    ),
    Slash("cohost", "N", "make N a co-host", _on_member(LiveSpace.appoint), Action.APPOINT),
    Slash(
        "dismiss", "[N]", "end N's being co-host, or yours", _on_me_or_member(LiveSpace.dismiss),
        Action.DISMISS,
    ),
    Slash("handover", "N", "make N the host", _on_member(LiveSpace.hand_over), Action.HAND_OVER),
    Slash("remove", "N", "remove N for good", _on_member(LiveSpace.remove), Action.REMOVE),
    Slash(
        "invite", "[ROLE] [USES] [MINUTES]", "a link for speakers, or another role", _invite,
        Action.MAKE_INVITE,
    ),
    Slash("invites", "", "the invites of this space", _invites, Action.LIST_INVITES),
    Slash("revoke", "TOKEN", "make an invite worthless", _revoke, Action.REVOKE_INVITE),
    Slash("ask", "HANDLE [ROLE]", "invite somebody by message", _ask, Action.INVITE_PERSON),
    Slash(
        "set", "KEY VALUE", "title, visibility, who-speaks, free-unmute, chat, slow", _set,
        Action.CONFIGURE,
    ),
    Slash("end", "", "end the space for all", _simply(LiveSpace.close), Action.CLOSE),
    Slash("report", "N CATEGORY [NOTE]", "report N to the moderators", _report, Action.REPORT),
    Slash("follow", "N", "follow N", _follow, account=True),
    Slash("block", "N", "block N", _block, account=True),
    Slash("unblock", "N", "take the block back", _unblock, account=True),
    Slash("volume", "N PERCENT", "how loud you hear N, 0 to 200 %", _volume),
    Slash("link", "", "the link for listeners", _link),
    Slash("lines", "", "the newest lines of the chat", _lines),
    Slash("who", "", "everyone here", _who),
    Slash("stats", "", "how late each speaker is, what is lost", _stats),
    Slash("quit", "", "leave", _quit),
    Slash("help", "", "this", _help),
)  # fmt: skip
BY_NAME = {one.name: one for one in SLASHES}


def _hint(command: Slash, me: Member, error: SpacesError) -> str:
    """What helps after a refusal, where something does."""
    if error.code == ErrorCode.NO_HAND:
        return "; /offer N invites them to speak"
    if error.code != ErrorCode.NOT_ALLOWED or command.action is None:
        return ""
    on = PERMISSIONS[command.action][me.role]
    if not on:
        return f" (as {words.role(me.role)}); /help shows what you may do"
    others = ", ".join(words.role(role) for role in Role if role in on)
    return f" (as {words.role(me.role)}, only on: {others})" if others else ""


async def obey(space: LiveSpace, line: str) -> str:
    """Carries out what was typed: a command, or a line for the chat; -> what to say about it,
    empty for nothing.  Raises MisuseError, QuitError, SpacesError."""
    if not line.startswith("/"):
        return await _say(space, line)
    name, _, argument = line[1:].partition(" ")
    command = BY_NAME.get(name.lower())
    if command is None:
        raise MisuseError(f"there is no command /{shown(name)}; /help shows them")
    try:
        answer = await command.run(space, *command.words(argument))
    except SpacesError as error:
        hint = _hint(command, space.me, error)
        if not hint:
            raise
        raise MisuseError(f"{error}{hint}") from error
    return "done" if answer is None else answer
