"""The terminal face of a joined space: who is there, who speaks, and a line for commands.

What happens is printed line by line. On a terminal a live picture with an input line stays below
the lines; elsewhere commands are read as lines.  Nothing from other people reaches the terminal
unless it is printable.
"""

import asyncio
import contextlib
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.cells import set_cell_size
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from protocol.connection import CloseCode
from protocol.frames import Member
from protocol.roles import PERMISSIONS, Action, Role
from spaces_client.client import Changed, Disconnected, Ended
from spaces_client.live import SILENT_LEVEL, AudioTrouble, LiveSpace, SpacesError

REFRESH_S = 0.1
MAX_INPUT_CHARS = 200
MAX_HANDS_SHOWN = 5
NAME_CELLS = 24
METER_CELLS = 10
_KEY_SEQUENCE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|O.)?")  # an arrow or a function key


def plain(text: str) -> str:
    """Only what a terminal prints: no control characters, so no escape sequences."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


@dataclass(frozen=True, slots=True)
class Command:
    """One slash command.  takes_member: `/up 3`; else no argument."""

    name: str
    help: str
    run: Callable[[LiveSpace, int | None], Awaitable[str | None]]
    takes_member: bool = False
    needs_member: bool = False


async def _invite(space: LiveSpace, _: int | None) -> str:
    return f"whoever joins with this link may speak: {await space.invite()}"


async def _roster(space: LiveSpace, _: int | None) -> str:
    return "here: " + ", ".join(f"{m.id} {plain(m.name)}" for m in await space.roster())


async def _link(space: LiveSpace, _: int | None) -> str:
    return f"link for listeners: {space.link}"


async def _help(_space: LiveSpace, _: int | None) -> str:
    usages = [
        (f"/{c.name}{' N' if c.needs_member else ' [N]' if c.takes_member else ''}", c.help)
        for c in COMMANDS
    ]
    return "\n".join(f"  {usage:<14}{what}" for usage, what in usages)


async def _quit(_space: LiveSpace, _: int | None) -> None:
    raise _QuitError


class _QuitError(Exception):
    """The person wants to leave."""


def _plain(method: Callable[[LiveSpace], Awaitable[None]]) -> Any:
    async def run(space: LiveSpace, _: int | None) -> None:
        await method(space)

    return run


def _on_member(method: Callable[[LiveSpace, int], Awaitable[None]]) -> Any:
    async def run(space: LiveSpace, member: int | None) -> None:
        assert member is not None, "asked for before: needs_member"
        await method(space, member)

    return run


COMMANDS = (
    Command("hand", "raise your hand", _plain(LiveSpace.raise_hand)),
    Command("lower", "take a hand down", LiveSpace.lower_hand, takes_member=True),
    Command("mute", "mute yourself, or N", LiveSpace.mute, takes_member=True),
    Command("unmute", "unmute yourself", _plain(LiveSpace.unmute)),
    Command("up", "bring N up to the stage", _on_member(LiveSpace.bring_up), True, True),
    Command("down", "step down, or take N down", LiveSpace.take_down, takes_member=True),
    Command("cohost", "make N a co-host", _on_member(LiveSpace.appoint), True, True),
    Command("dismiss", "end N's being co-host, or yours", LiveSpace.dismiss, takes_member=True),
    Command("invite", "a link for speakers", _invite),
    Command("link", "the link for listeners", _link),
    Command("who", "everyone here", _roster),
    Command("end", "end the space for all", _plain(LiveSpace.close)),
    Command("quit", "leave", _quit),
    Command("help", "this", _help),
)
_BY_NAME = {command.name: command for command in COMMANDS}


class Face:
    """Shows one space and takes commands, until the session or the person ends it."""

    def __init__(self, space: LiveSpace, console: Console, *, say: str = "") -> None:
        self._space = space
        self._console = console
        self._typed = ""
        self._live: Live | None = None
        self._over: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._before: dict[int, Member] = {m.id: m for m in space.client.view.members.values()}
        self._spoke: set[str] = set()
        if say:
            self._say(say)

    async def run(self, until: Awaitable[Any] | None = None) -> str:
        """Until the space is over, the person quits, or `until` is done; -> why.  Raises
        SpacesError if the session was lost."""
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
                case Ended(text):
                    self._end(f"the space is over: {plain(text)}")
                case Disconnected(text, code):
                    if code == CloseCode.REPLACED:
                        text += "; to take part twice from one machine, use --identity"
                    if not self._over.done():
                        self._over.set_exception(SpacesError(f"the session is over: {plain(text)}"))
                case AudioTrouble(text):
                    self._say(text)

    def _tell_changes(self) -> None:
        """Says what differs from before, in words."""
        view = self._space.client.view
        now = {m.id: m for m in view.members.values()}
        may_bring_up = view.me is not None and PERMISSIONS[Action.BRING_UP][view.me.role]
        for member in now.values():
            before = self._before.get(member.id)
            who = self._who(member)
            if member.hand and not (before and before.hand) and not self._is_me(member):
                hint = f"; /up {member.id} lets them speak" if may_bring_up else ""
                self._say(f"{plain(member.name)} ({member.id}) raises a hand{hint}")
            if member.role.on_stage and not (before and before.role.on_stage):
                self._say(f"{who} on stage")
            elif before and before.role.on_stage and member.role is not before.role:
                self._say(f"{who} {_role(member)} now")
            if before and member.muted != before.muted:
                self._say(f"{who} {'muted' if member.muted else 'unmuted'}")
        for member_id, before in self._before.items():
            if member_id not in now and before.role.on_stage:
                self._say(f"{self._who(before)} off the stage")
        self._before = now

    def _is_me(self, member: Member) -> bool:
        me = self._space.client.view.me
        return me is not None and member.id == me.id

    def _who(self, member: Member) -> str:
        return "you are" if self._is_me(member) else f"{plain(member.name)} ({member.id}) is"

    def _say(self, text: str) -> None:
        # Not wrapped by us: a link that the terminal wraps can still be copied whole.
        self._console.print(Text(text), soft_wrap=True)

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
            elif character.isprintable() and len(self._typed) < MAX_INPUT_CHARS:
                self._typed += character

    async def _obey(self, line: str) -> None:
        name, _, argument = line.removeprefix("/").partition(" ")
        command = _BY_NAME.get(name.lower())
        argument = argument.strip()
        if command is None:
            self._say(f"there is no command {plain(line)}; /help shows them")
        elif argument and not (command.takes_member and argument.isdecimal()):
            self._say(f"/{command.name} takes {'a number' if command.takes_member else 'nothing'}")
        elif command.needs_member and not argument:
            self._say(f"/{command.name} needs somebody's number; /who shows them")
        else:
            try:
                answer = await command.run(self._space, int(argument) if argument else None)
            except SpacesError as error:
                self._say(plain(str(error)))
            except _QuitError:
                self._end("")
            else:
                self._say(answer or "done")

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
        speaking = [plain(member.name) for member in self._space.speaking]
        if speaking and set(speaking) != self._spoke:
            self._say(f"speaking: {', '.join(speaking)}")
            self._spoke = set(speaking)

    def _picture(self) -> Group:
        """As high as the terminal at most: the input line must be there."""
        space = self._space
        hands = space.hands
        rows = [Text(plain(space.title), style="bold")]
        rows += [self._stage_row(member) for member in space.stage]
        rows += [
            Text(f"  {member.id:>4}  {plain(member.name)}  ✋", style="yellow")
            for member in hands[:MAX_HANDS_SHOWN]
        ]
        if len(hands) > MAX_HANDS_SHOWN:
            rows.append(Text(f"        and {len(hands) - MAX_HANDS_SHOWN} more hands"))
        count = space.listeners
        rtt_ns = space.client.rtt_ns
        rows.append(
            Text(
                f"  {count} {'person listens' if count == 1 else 'people listen'}"
                + (f"; round trip {rtt_ns / 1e6:.0f} ms" if rtt_ns is not None else ""),
                style="dim",
            )
        )
        cursor = "█" if int(time.monotonic() * 2) % 2 else " "
        width = self._console.width - len("> █") - 1
        rows.append(
            Text(f"> {self._typed[-width:]}{cursor}" if self._typed else f"> {cursor} /help")
        )
        for row in rows:
            row.no_wrap, row.overflow = True, "ellipsis"
        return Group(*rows[1 - self._console.height :])

    def _stage_row(self, member: Member) -> Text:
        space = self._space
        if self._is_me(member):
            level = space.own_level
        else:
            seat = member.seat if isinstance(member.seat, int) else -1
            level = space.client.levels.get(seat, SILENT_LEVEL)
        meter = "▮" * round(max(0, 60 - level) / 60 * METER_CELLS)
        row = Text(f"  {member.id:>4}  ")
        row.append(
            set_cell_size(plain(member.name), NAME_CELLS), style="bold green" if meter else ""
        )
        row.append(f" {_role(member):<9}", style="dim")
        shown = "muted" if member.muted else meter
        row.append(set_cell_size(shown, METER_CELLS), style="red" if member.muted else "green")
        if self._is_me(member):
            row.append("  (you)", style="dim")
        return row


def _role(member: Member) -> str:
    return {
        Role.HOST: "host",
        Role.CO_HOST: "co-host",
        Role.SPEAKER: "speaker",
        Role.LISTENER: "listener",
    }[member.role]


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
