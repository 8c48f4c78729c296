"""The library: a person at a server, and the live space that they are in.

    async with connect(link, name="Ada") as space:          # a listener, or who one was there
        await space.raise_hand()
    async with host(link, title="Talk", key=key) as space:  # needs an account: see `register`
        print(space.link)
    async with session(link, key=key) as me:                # in no space (yet)
        await me.register("ada", "Ada")
        await me.open("Talk")

A session that is lost is made anew by itself, and so is the place in the space; the events say so.
"""

import contextlib
import math
import os
import time
from collections.abc import AsyncIterator, Callable

import numpy as np
from numpy.typing import NDArray

from protocol import frames
from protocol.frames import Member, Settings
from protocol.link import Link
from protocol.packets import UplinkAudio
from protocol.roles import Role
from spaces_client.audio import AudioError, AudioInput, AudioOutput
from spaces_client.client import Client
from spaces_client.events import (
    Changed,
    ClientEvent,
    Disconnected,
    Ended,
    Heard,
    Reconnected,
    Removed,
)
from spaces_client.session import Session, given
from spaces_client.shell import AudioTrouble, LiveEvent, SpacesError
from spaces_client.stats import Stats, stats_of
from spaces_client.voice import DELAY_NS, VoiceProcessor

__all__ = [
    "AudioTrouble",
    "LiveEvent",
    "LiveSpace",
    "SpacesError",
    "connect",
    "host",
    "session",
]

SPEAKING_LEVEL = 60  # -dBov: what is quieter is not shown as speaking
SILENT_LEVEL = 127


class LiveSpace(Session):
    """A session, and the space one is in once `open` or `join` is done.  Made by `connect`, `host`
    and `session`."""

    def __init__(self, link: Link, key: bytes | None, *, bitrate: int, complexity: int) -> None:
        key = key or os.urandom(32)
        client = Client(
            link,
            key,
            entropy=os.urandom,
            now_ns=time.monotonic_ns(),
            bitrate=bitrate,
            complexity=complexity,
        )
        super().__init__(client, key)
        self.on_sent: Callable[[UplinkAudio, int], None] | None = None
        self.on_heard: Callable[[Heard, int], None] | None = None
        self.own_level = SILENT_LEVEL  # -dBov, of one's own voice as it goes out
        self._input: AudioInput | None = None
        self._input_open = False
        self._output: AudioOutput | None = None
        self._voice: VoiceProcessor | None = None

    # -- what one sees ------------------------------------------------------------------------

    @property
    def title(self) -> str:
        return self.client.view.title

    @property
    def settings(self) -> Settings:
        return self.client.view.settings

    @property
    def me(self) -> Member:
        if self.client.view.me is None:
            raise self.over or SpacesError("you are in no space")
        return self.client.view.me

    @property
    def stage(self) -> list[Member]:
        return self.client.view.stage

    @property
    def hands(self) -> list[Member]:
        """The raised hands, the first to be raised first."""
        return self.client.view.hands

    @property
    def listeners(self) -> int:
        return self.client.view.listeners

    @property
    def lines(self) -> list[frames.ChatUpdate]:
        """The newest lines of the chat, 200 at most, the oldest first."""
        return list(self.client.view.lines.values())

    @property
    def reactions(self) -> tuple[str, ...]:
        """The six that may be shown here."""
        return self.client.view.reactions

    @property
    def evidence_kept(self) -> bool:
        """Whether a report takes along, sealed for the server's moderators, what the reported
        speaker said in the last 30 s.  People are to be told so when they come in."""
        return self.client.view.evidence

    @property
    def speaking(self) -> list[Member]:
        """Who is to be heard now, the loudest first."""
        loud = sorted((lv, seat) for seat, lv in self.client.levels.items() if lv < SPEAKING_LEVEL)
        found = [self.client.view.at_seat(seat) for _, seat in loud]
        return [member for member in found if member is not None]

    @property
    def link(self) -> Link:
        """For others to join with, as listeners."""
        link = self.client.link
        return Link(link.host, link.port, link.key, self.client.view.id)

    def stats(self) -> Stats:
        """What is known of the sound: of each speaker how late they are, of the mix what the
        network does to it.  From the first call on delays are measured; a second or two later
        they are there."""
        self.client.clocks.measuring = True
        output_ms = 0.0 if self._output is None else self._output.delay_ms
        return stats_of(self.client, output_ms)

    # -- in and out ---------------------------------------------------------------------------

    async def open(
        self, title: str = "A space", settings: Settings | None = None, *, space: str | None = None
    ) -> None:
        """Opens a space, or the one that was scheduled (then title and settings are those of the
        schedule); it ends when its host leaves, unless a co-host is there."""
        fields = {"title": title, "settings": settings or Settings(), **given(space=space)}
        await self.ask(frames.Open, frames.Joined, **fields)

    async def join(
        self,
        space: str,
        *,
        invite: str | None = None,
        name: str = "guest",
        despite_blocked: bool = False,
    ) -> None:
        """name: of a guest; whoever has an account is called as it says.  despite_blocked: also
        if somebody whom one blocked is on stage, which is refused (`someone_blocked`) without."""
        fields = {"name": name, "despite_blocked": despite_blocked, **given(invite=invite)}
        await self.ask(frames.Join, frames.Joined, space=space, **fields)

    async def block(self, person: str) -> None:
        await super().block(person)
        self.client.view.forget_lines(person)

    async def leave(self) -> None:
        await self._do(frames.Leave)

    async def close(self) -> None:
        """Ends the space for all."""
        await self._do(frames.Close)

    # -- the stage ----------------------------------------------------------------------------

    async def raise_hand(self) -> None:
        await self._do(frames.RaiseHand)

    async def lower_hand(self, member: int | None = None) -> None:
        """One's own, or somebody's."""
        await self._do(frames.LowerHand, **given(member=member))

    async def step_up(self) -> None:
        """Goes on stage unasked, where the settings let one."""
        await self._do(frames.StepUp)

    async def bring_up(self, member: int) -> None:
        """Lets somebody with a raised hand speak."""
        await self._do(frames.BringUp, member=member)

    async def offer(self, member: int) -> None:
        """Invites a listener to speak."""
        await self._do(frames.Offer, member=member)

    async def accept(self) -> None:
        """Takes an offer to speak."""
        await self._do(frames.Accept)

    async def decline(self) -> None:
        await self._do(frames.Decline)

    async def take_down(self, member: int | None = None) -> None:
        """Oneself, or somebody."""
        await self._do(frames.TakeDown, **given(member=member))

    async def appoint(self, member: int) -> None:
        """Makes a speaker a co-host."""
        await self._do(frames.Appoint, member=member)

    async def dismiss(self, member: int | None = None) -> None:
        """Makes a co-host a speaker: oneself, or somebody."""
        await self._do(frames.Dismiss, **given(member=member))

    async def hand_over(self, member: int) -> None:
        """Makes somebody on stage the host."""
        await self._do(frames.HandOver, member=member)

    async def mute(self, member: int | None = None) -> None:
        """Mutes oneself at once, or somebody else as soon as the server has agreed."""
        if member is None:
            self.client.muted = True
        await self._do(frames.Mute, **given(member=member))

    async def mute_all(self) -> None:
        await self._do(frames.MuteAll)

    async def unmute(self) -> None:
        await self._do(frames.Unmute)
        self.client.muted = False

    async def let_unmute(self, member: int) -> None:
        """Lets somebody who was muted by a moderator unmute themselves."""
        await self._do(frames.LetUnmute, member=member)

    async def remove(self, member: int) -> None:
        """For good: they cannot come back into this space."""
        await self._do(frames.Remove, member=member)

    async def set_volume(self, member: int, percent: int) -> None:
        """How loud one hears somebody: 0 to 200 %, for oneself only."""
        await self._do(frames.SetVolume, member=member, percent=percent)

    async def configure(
        self,
        *,
        title: str | None = None,
        visibility: frames.Visibility | None = None,
        who_speaks: frames.WhoSpeaks | None = None,
        free_unmute: bool | None = None,
        chat: bool | None = None,
        slow_s: int | None = None,
    ) -> None:
        """Changes what is given."""
        fields = given(
            title=title,
            visibility=visibility,
            who_speaks=who_speaks,
            free_unmute=free_unmute,
            chat=chat,
            slow_s=slow_s,
        )
        await self._do(frames.Configure, **fields)

    async def roster(self) -> AsyncIterator[Member]:
        """Everyone in the space, in the order of their numbers."""
        last, more = 0, True
        while more:
            page = await self.ask(frames.Roster, frames.RosterPage, after=last)
            for member in page.members:
                yield member
                last = member.id
            more = page.more and bool(page.members)

    # -- chat and reactions -------------------------------------------------------------------

    async def chat(self, text: str) -> int:
        """Says a line; -> its number."""
        return (await self.ask(frames.Chat, frames.Said, text=text)).line

    async def delete_line(self, line: int) -> None:
        """Takes a line back, one's own or somebody's."""
        await self._do(frames.DeleteLine, line=line)

    async def react(self, emoji: str) -> None:
        """Shows one of `reactions`."""
        await self._do(frames.React, emoji=emoji)

    # -- invites --------------------------------------------------------------------------------

    async def make_invite(
        self, role: Role = Role.SPEAKER, *, lifetime_s: int = 0, max_uses: int = 0
    ) -> Link:
        """A link that lets whoever joins with it be a speaker (or co-host) at once, or come in at
        all.  lifetime_s, max_uses: 0 for no limit."""
        fields = {"role": role, "lifetime_s": lifetime_s, "max_uses": max_uses}
        return self._with((await self.ask(frames.MakeInvite, frames.Invited, **fields)).invite)

    async def invites(self) -> list[frames.InviteInfo]:
        """Those of this space that can still be used, the newest first."""
        return (await self.ask(frames.ListInvites, frames.Invites)).invites

    async def revoke_invite(self, invite: str) -> None:
        await self._do(frames.RevokeInvite, invite=invite)

    async def invite_person(self, person: str, role: Role = Role.LISTENER, text: str = "") -> Link:
        """Invites somebody by a direct message; -> the link in it, which only they can use."""
        fields = {"person": person, "role": role, "text": text}
        return self._with((await self.ask(frames.InvitePerson, frames.Invited, **fields)).invite)

    def _with(self, invite: str) -> Link:
        link = self.link
        return Link(link.host, link.port, link.key, link.space, invite)

    # -- sound --------------------------------------------------------------------------------

    def start_audio(
        self,
        microphone: AudioInput | None = None,
        speakers: AudioOutput | None = None,
        voice: VoiceProcessor | None = None,
    ) -> None:
        """The microphone is open only while one is on stage.  voice: echo, noise and level
        handling between microphone and network; what is for music stays as it is.  Raises
        AudioError if a device that is needed now cannot be opened."""
        self._voice = voice
        if speakers is not None:
            speakers.start(self._pull, self.client.profile)
            self._output = speakers
        self._input = microphone
        self._follow_stage()

    def _follow_stage(self) -> None:
        """Opens the microphone when one comes on stage, closes it when one leaves."""
        me = self.client.view.me
        on_stage = me is not None and me.role.on_stage
        if self._input is None or on_stage == self._input_open:
            return
        self._input_open = on_stage
        if on_stage:
            self._input.start(self.push, self.client.profile)
        else:
            self._input.stop()

    def stop_audio(self) -> None:
        if self._input is not None and self._input_open:
            self._input.stop()
        if self._output is not None:
            self._output.stop()
        self._input_open = False
        self._input = self._output = None

    def push(self, block: NDArray[np.float32], captured_ns: int) -> None:
        """block: the next frame of one's own voice."""
        if self.over is not None:
            return
        if self._voice is not None and not self.client.profile.music:
            block = self._voice.process(block)
            captured_ns -= DELAY_NS
        packet = self.client.talk(block, captured_ns)
        self.own_level = SILENT_LEVEL if packet is None else _level(block)
        if packet is not None and self.on_sent is not None:
            self.on_sent(packet, time.monotonic_ns())
        self._flush()
        later_samples = self.client.later_samples
        if later_samples and self._input is not None:
            moved_samples = self._input.postpone(later_samples)
            self.client.moved(moved_samples)
            if self._voice is not None:
                self._voice.left_out(moved_samples)

    def _pull(self, out: NDArray[np.float32], now_ns: int) -> None:
        self._receive_now()
        self.client.play(out, now_ns)
        if self._voice is not None and not self.client.profile.music:
            self._voice.played(out)

    # -- what happens -------------------------------------------------------------------------

    def _happen(self, event: ClientEvent, now_ns: int) -> None:
        match event:
            case Heard():
                if self.on_heard is not None:
                    self.on_heard(event, now_ns)
                return
            case Ended() | Removed() | Disconnected():
                self.stop_audio()
            case Changed() | Reconnected():
                try:
                    self._follow_stage()
                except AudioError as error:
                    self._input = None
                    self._post(AudioTrouble(str(error)))
        super()._happen(event, now_ns)


def _level(block: NDArray[np.float32]) -> int:
    """-dBov (RFC 6464) of (n,) or (n, 2): 0 is full scale, 127 silence."""
    power = float(np.mean(np.square(block, dtype=np.float64)))
    return min(SILENT_LEVEL, max(0, round(-10 * math.log10(max(power, 1e-13)))))


def _parsed(link: Link | str) -> Link:
    return Link.parse(link) if isinstance(link, str) else link


@contextlib.asynccontextmanager
async def session(
    link: Link | str,
    *,
    key: bytes | None = None,
    bitrate: int = 32_000,
    complexity: int = 10,
) -> AsyncIterator[LiveSpace]:
    """A session with the server that the link names, in no space.

    key: one's private key, 32 bytes, by which the server knows one again; a new one by default.
    bitrate, complexity: of one's own voice (Opus: bit/s, 0 to 10).
    Raises LinkError, SpacesError.
    """
    live = LiveSpace(_parsed(link), key, bitrate=bitrate, complexity=complexity)
    try:
        await live._open()
        yield live
    finally:
        await live._shut()


@contextlib.asynccontextmanager
async def connect(
    link: Link | str,
    *,
    name: str = "guest",
    key: bytes | None = None,
    despite_blocked: bool = False,
    **voice: int,
) -> AsyncIterator[LiveSpace]:
    """Joins the space that the link names, and leaves it in the end.  As `join` and `session`."""
    link = _parsed(link)
    if link.space is None:
        raise SpacesError("this link names no space; `spaces host` opens one with it")
    async with session(link, key=key, **voice) as live:
        await live.join(link.space, invite=link.invite, name=name, despite_blocked=despite_blocked)
        yield live


@contextlib.asynccontextmanager
async def host(
    link: Link | str,
    *,
    title: str = "A space",
    settings: Settings | None = None,
    space: str | None = None,
    key: bytes | None = None,
    **voice: int,
) -> AsyncIterator[LiveSpace]:
    """Opens a space on the server that the link names, as its host, who needs an account.  As
    `open` and `session`."""
    async with session(link, key=key, **voice) as live:
        await live.open(title, settings, space=space)
        yield live
