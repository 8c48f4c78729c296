"""The terminal face of a joined space: who is there, who speaks, what is said, and a line to type.

What happens is printed line by line.  On a terminal a live picture with the chat and an input line
stays below the lines; elsewhere the chat is printed too, and what is typed is read as lines.
Nothing from other people reaches the terminal unless it can be shown (protocol/text.py).
"""

import asyncio
import contextlib
import os
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Awaitable, Iterator
from typing import Any

from rich.cells import set_cell_size
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from protocol import frames
from protocol.connection import CloseCode
from protocol.frames import Member
from protocol.roles import PERMISSIONS, Action
from protocol.text import shown
from spaces_client import words
from spaces_client.events import (
    Changed,
    Chat,
    Disconnected,
    Ended,
    LineGone,
    Notified,
    Reacted,
    Reconnected,
    Reconnecting,
    Removed,
)
from spaces_client.live import SILENT_LEVEL, AudioTrouble, LiveSpace, SpacesError
from spaces_client.slash import MisuseError, QuitError, find_member, obey

REFRESH_S = 0.1
REACTION_S = 3.0  # how long one is shown
MAX_INPUT_CHARS = 600
MAX_HANDS_SHOWN = 5
MAX_CHAT_ROWS = 8
NAME_CELLS = 30
METER_CELLS = 10
_KEY_SEQUENCE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|O.)?")  # an arrow or a function key

EVIDENCE = (
    "if somebody here is reported, what they said in the last 30 s goes with the report, sealed "
    "for the moderators of this server"
)


class Face:
    """Shows one space and takes commands, until the session or the person ends it."""

    def __init__(self, space: LiveSpace, console: Console, *, say: str = "") -> None:
        """say: something to begin with."""
        self._space = space
        self._console = console
        self._typed = ""
        self._live: Live | None = None
        self._over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._remember()
        self._spoke: set[str] = set()
        self._burst: deque[tuple[float, dict[str, int]]] = deque(maxlen=100)  # (until, counts)
        self._shown_by: dict[int, tuple[float, str]] = {}  # member -> (until, emoji)
        self._evidence_told = False
        if say:
            self._say(say)
        self._tell_evidence()

    async def run(self, until: Awaitable[Any] | None = None) -> str:
        """Until the space is over, the person quits, or `until` is done; -> why.  Raises
        SpacesError if the session was lost for good."""
        loop = asyncio.get_running_loop()
        interactive = sys.stdin.isatty() and self._console.is_terminal
        self._start(self._follow_events())
        if until is not None:
            self._start(self._end_after(until))
        with contextlib.ExitStack() as stack:
            if interactive:
                stack.enter_context(_character_input())
                self._live = stack.enter_context(
                    Live(console=self._console, auto_refresh=False, transient=True)
                )
            with contextlib.suppress(ValueError, OSError, NotImplementedError):
                loop.add_reader(sys.stdin.fileno(), self._read)
                stack.callback(loop.remove_reader, sys.stdin.fileno())
            self._start(self._refresh())
            try:
                return await self._over
            finally:
                for task in list(self._tasks):
                    task.cancel()

    def _start(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _end(self, why: str) -> None:
        if not self._over.done():
            self._over.set_result(why)

    async def _end_after(self, until: Awaitable[Any]) -> None:
        await until
        self._end("")

    # -- what happens -------------------------------------------------------------------------

    async def _follow_events(self) -> None:
        async for event in self._space.events():
            match event:
                case Changed():
                    self._tell_changes()
                case Chat(line):
                    if self._live is None:  # else it is in the picture
                        self._say(words.chat_line(line))
                case LineGone(line):
                    if self._live is None:
                        self._say(f"line {line} was taken back")
                case Reacted(counts, stage):
                    self._react(counts, stage)
                case Notified(frame):
                    self._tell_notice(frame)
                case Removed(text):
                    self._end(f"you are out of the space: {shown(text)}")
                case Ended(text):
                    self._end(f"the space is over: {shown(text)}")
                case Reconnecting(text):
                    self._say(f"the connection is lost ({shown(text)}); trying again …")
                case Reconnected():
                    self._remember()
                    self._say("connected again; people may have new numbers: /who")
                    self._tell_evidence()
                case Disconnected(text, code):
                    if code == CloseCode.REPLACED:
                        text += "; to take part twice from one machine, use --identity"
                    if not self._over.done():
                        self._over.set_exception(SpacesError(f"the session is over: {shown(text)}"))
                case AudioTrouble() as trouble:
                    self._say(str(trouble))

    def _tell_evidence(self) -> None:
        """Once; a server that was started again may keep it from then on."""
        if self._space.evidence_kept and not self._evidence_told:
            self._evidence_told = True
            self._say(EVIDENCE)

    def _remember(self) -> None:
        """The state that changes are told against."""
        view = self._space.client.view
        self._before: dict[int, Member] = dict(view.members)
        self._title, self._settings = view.title, view.settings

    def _tell_changes(self) -> None:
        """Says what differs from before, in words."""
        view = self._space.client.view
        now, before = view.members, self._before
        for member in now.values():
            self._tell_member(member, before.get(member.id))
        for member_id, gone in before.items():
            if member_id not in now and gone.role.on_stage:
                self._say(f"{self._who(gone)} off the stage")
        if view.title != self._title:
            self._say(f"the title is: {shown(view.title)}")
        for field in frames.Settings.__struct_fields__:
            value = getattr(view.settings, field)
            if value != getattr(self._settings, field):
                self._say(f"{_SETTINGS[field]}: {_setting(value)}")
        self._remember()

    def _tell_member(self, member: Member, before: Member | None) -> None:
        who, me = self._who(member), self._is_me(member)
        if member.hand and not (before and before.hand) and not me:
            mine = self._space.client.view.me
            may = mine is not None and PERMISSIONS[Action.BRING_UP][mine.role]
            hint = f"; /up {member.id} lets them speak" if may else ""
            self._say(f"{shown(member.name)} ({member.id}) raises a hand{hint}")
        if member.role.on_stage and not (before and before.role.on_stage):
            self._say(f"{who} on stage")
        elif before and before.role.on_stage and member.role is not before.role:
            self._say(f"{who} {words.role(member.role)} now")
        if before and (member.muted, member.held) != (before.muted, before.held):
            hint = "; /unmute works when they let you" * (me and member.held)
            self._say(f"{who} {_mute_state(member, before)}{hint}")

    def _tell_notice(self, frame: frames.Notice) -> None:
        match frame:
            case frames.Offered(by=by):
                self._say(f"{self._name(by)} invites you to speak: /accept or /decline")
            case frames.Declined(member=member):
                self._start(self._tell_declined(member))
            case frames.BlockedOnStage(member=member):
                self._say(f"{self._name(member)}, whom you blocked, is on stage; you do not "
                          "hear each other")  # fmt: skip
            case _:
                text = words.notice(frame, self._space.client.link)
                if text:
                    self._say(text)

    async def _tell_declined(self, member_id: int) -> None:
        """A listener, who may have to be asked for."""
        name = self._name(member_id)
        with contextlib.suppress(SpacesError):
            member = await find_member(self._space, lambda one: one.id == member_id)
            if member is not None:
                name = f"{shown(member.name)} ({member_id})"
        self._say(f"{name} declines to speak")

    def _react(self, counts: dict[str, int], stage: list[frames.Reaction]) -> None:
        until = time.monotonic() + REACTION_S
        self._burst.append((until, counts))
        for one in stage:
            self._shown_by[one.member] = (until, shown(one.emoji))
        if self._live is None:
            by = ", ".join(f"{self._name(one.member)} {shown(one.emoji)}" for one in stage)
            self._say(words.reactions(counts.items()) + (f"  ({by})" if by else ""))

    def _is_me(self, member: Member) -> bool:
        me = self._space.client.view.me
        return me is not None and member.id == me.id

    def _who(self, member: Member) -> str:
        return "you are" if self._is_me(member) else f"{shown(member.name)} ({member.id}) is"

    def _name(self, member_id: int) -> str:
        member = self._space.client.view.members.get(member_id)
        return f"{shown(member.name)} ({member_id})" if member else f"number {member_id}"

    def _say(self, text: str) -> None:
        # A link that the terminal wraps, and not we, can be copied whole.
        self._console.print(Text(text), soft_wrap=not self._console.is_terminal or "://" in text)

    # -- what is typed ------------------------------------------------------------------------

    def _read(self) -> None:
        data = os.read(sys.stdin.fileno(), 1_024)
        if not data:
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            return
        for character in _KEY_SEQUENCE.sub("", data.decode("utf-8", "ignore")):
            if character in "\r\n":
                line, self._typed = self._typed.strip(), ""
                if line:
                    self._start(self._obey(line))
            elif character in "\x7f\b":
                self._typed = self._typed[:-1]
            elif character == "\x15":  # Ctrl-U
                self._typed = ""
            elif character in "\x03\x04":  # Ctrl-C, Ctrl-D
                self._end("")
            elif len(self._typed) < MAX_INPUT_CHARS and shown(character) == character:
                self._typed += character

    async def _obey(self, line: str) -> None:
        try:
            answer = await obey(self._space, line)
        except (SpacesError, MisuseError) as error:
            self._say(shown(str(error)))
        except QuitError:
            self._end("")
        else:
            if answer and not self._over.done():
                self._say(answer)

    # -- what is shown ------------------------------------------------------------------------

    async def _refresh(self) -> None:
        while True:
            if self._live is not None:
                self._live.update(self._picture(), refresh=True)
            else:
                self._print_speakers()
            await asyncio.sleep(REFRESH_S)

    def _print_speakers(self) -> None:
        """Who speaks, when it is somebody else than before: pauses are no news."""
        speaking = [shown(member.name) for member in self._space.speaking]
        if speaking and set(speaking) != self._spoke:
            self._say(f"speaking: {', '.join(speaking)}")
            self._spoke = set(speaking)

    def _picture(self) -> Group:
        """As high as the terminal at most: the input line must be there."""
        rows = [Text(shown(self._space.title), style="bold")]
        rows += [self._stage_row(member) for member in self._space.stage]
        rows += self._hand_rows()
        below = [row for row in (self._burst_row(), self._state_row()) if row is not None]
        below.append(self._input_row())
        for row in (*rows, *below):
            row.no_wrap, row.overflow = True, "ellipsis"
        room = self._console.height - 1 - len(rows) - len(below)
        rows += self._chat_rows(min(MAX_CHAT_ROWS, room))
        return Group(*[*rows, *below][1 - self._console.height :])

    def _stage_row(self, member: Member) -> Text:
        space = self._space
        if self._is_me(member):
            level = space.own_level
        else:
            seat = member.seat if isinstance(member.seat, int) else -1
            level = space.client.levels.get(seat, SILENT_LEVEL)
        meter = "▮" * round(max(0, 60 - level) / 60 * METER_CELLS)
        row = Text(f"  {member.id:>4}  ")
        name = set_cell_size(words.person(member.name, member.handle), NAME_CELLS)
        row.append(name, style="bold green" if meter else "")
        row.append(f" {words.role(member.role):<9}", style="dim")
        state = "held" if member.held else "muted" if member.muted else meter
        row.append(set_cell_size(state, METER_CELLS), style="red" if member.muted else "green")
        until, emoji = self._shown_by.get(member.id, (0.0, ""))
        if until > time.monotonic():
            row.append(f" {emoji}")
        if self._is_me(member):
            row.append("  (you)", style="dim")
        return row

    def _hand_rows(self) -> list[Text]:
        """In the order of raising, with how long they wait."""
        hands, now_s = self._space.hands, time.time()
        rows = [
            Text(
                f"  {member.id:>4}  {words.person(member.name, member.handle)}  ✋ "
                f"{words.for_how_long(now_s - member.hand)}",
                style="yellow",
            )
            for member in hands[:MAX_HANDS_SHOWN]
        ]
        if len(hands) > MAX_HANDS_SHOWN:
            rows.append(Text(f"        and {len(hands) - MAX_HANDS_SHOWN} more hands"))
        return rows

    def _chat_rows(self, most: int) -> list[Text]:
        """The newest of the chat; a line that was taken back is no more."""
        rows: list[Text] = []
        for line in reversed(self._space.lines[-MAX_CHAT_ROWS:]):
            text = Text(words.chat_line(line), style="cyan")
            rows[:0] = text.wrap(self._console, self._console.width - 1)
        return rows[-most:] if most > 0 else []

    def _burst_row(self) -> Text | None:
        """What was shown in the last seconds, added up."""
        now_s = time.monotonic()
        while self._burst and self._burst[0][0] <= now_s:
            self._burst.popleft()
        total: Counter[str] = Counter()
        for _, counts in self._burst:
            total.update(counts)
        return Text("  " + words.reactions(total.items())) if total else None

    def _state_row(self) -> Text:
        space = self._space
        if space.trouble is not None:
            return Text(f"  reconnecting … ({shown(space.trouble)})", style="red")
        rtt_ns = space.client.rtt_ns
        return Text(
            f"  {words.count(space.listeners, 'person listens', 'people listen')}"
            + (f"; round trip {rtt_ns / 1e6:.0f} ms" if rtt_ns is not None else ""),
            style="dim",
        )

    def _input_row(self) -> Text:
        cursor = "█" if int(time.monotonic() * 2) % 2 else " "
        width = self._console.width - len("> █") - 1
        return Text(f"> {self._typed[-width:]}{cursor}" if self._typed else f"> {cursor} /help")


_SETTINGS = {
    "visibility": "who finds this space",
    "who_speaks": "who may step up",
    "free_unmute": "muted people may unmute themselves",
    "chat": "the chat",
    "slow_s": "seconds between two lines of yours in the chat",
}


def _setting(value: object) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def _mute_state(member: Member, before: Member) -> str:
    if member.held:
        return "muted by a moderator"
    if before.held and member.muted:
        return "free to unmute again"
    return "muted" if member.muted else "unmuted"


@contextlib.contextmanager
def _character_input() -> Iterator[None]:
    """The terminal gives every key at once, and does not show it: the picture does."""
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
