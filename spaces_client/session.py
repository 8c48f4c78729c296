"""What one does at a server, in a space or not: people, finding spaces, messages, posts, safety.

Everything that comes in pages comes here as an async iterator over all of it, which asks for the
next page when it has got there.  Every method raises SpacesError; texts from other people are as
they came (protocol/text.py says what of them can be shown).
"""

from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from protocol import evidence, frames
from protocol.frames import Settings
from spaces_client.client import Client
from spaces_client.shell import Shell, SpacesError

MAX_PARTS = 256  # of a voice note, or of evidence: 4 MiB

T = TypeVar("T")
Q = TypeVar("Q", frames.Note, frames.Evidence)
P = TypeVar(
    "P",
    frames.People,
    frames.WaitingReply,
    frames.Accounts,
    frames.Spaces,
    frames.Messages,
    frames.Posts,
    frames.Reports,
)


class Session(Shell):
    """One person at one server."""

    def __init__(self, client: Client, key: bytes) -> None:
        """key: one's private key, 32 bytes."""
        super().__init__(client)
        self._key = key

    async def _do(self, kind: type[frames.Request], **fields: Any) -> None:
        await self.ask(kind, frames.Ok, **fields)

    async def _all(
        self,
        kind: type[frames.Request],
        reply: type[P],
        items: Callable[[P], list[T]],
        cursor: str = "after",
        **fields: Any,
    ) -> AsyncIterator[T]:
        """What all pages hold."""
        position = 0
        while True:
            page = await self.ask(kind, reply, **fields, **{cursor: position})
            for item in items(page):
                yield item
            position = page.next
            if not position:
                return

    async def _whole(self, kind: type[frames.Request], reply: type[Q], **fields: Any) -> list[Q]:
        """All parts of something."""
        parts: list[Q] = []
        while not parts or parts[-1].more:
            if len(parts) == MAX_PARTS:
                raise SpacesError("the server sends more than belongs to this")
            parts.append(await self.ask(kind, reply, **fields, part=len(parts)))
        return parts

    # -- one's account ------------------------------------------------------------------------

    async def register(self, handle: str, name: str) -> frames.AccountReply:
        """Makes an account, with this session's key as its first device."""
        return await self.ask(frames.Register, frames.AccountReply, handle=handle, name=name)

    async def who_am_i(self) -> frames.AccountReply:
        return await self.ask(frames.WhoAmI, frames.AccountReply)

    async def rename(self, name: str) -> frames.AccountReply:
        return await self.ask(frames.Rename, frames.AccountReply, name=name)

    async def device_code(self) -> frames.DeviceCode:
        """A code with which one more device joins the account."""
        return await self.ask(frames.MakeDeviceCode, frames.DeviceCode)

    async def add_device(self, code: str, label: str) -> frames.AccountReply:
        """Makes this session's key a device of the account that made the code."""
        return await self.ask(frames.AddDevice, frames.AccountReply, code=code, label=label)

    async def devices(self) -> list[frames.Device]:
        return (await self.ask(frames.ListDevices, frames.Devices)).devices

    async def remove_device(self, device: int) -> None:
        await self._do(frames.RemoveDevice, device=device)

    async def claim_server(self, code: str) -> frames.AccountReply:
        """Makes oneself the server's owner, by the code that its first start printed."""
        return await self.ask(frames.ClaimServer, frames.AccountReply, code=code)

    async def seen(self, notice: int) -> None:
        """A kept notice was shown, and need not come again (`events` says so by itself)."""
        await self._do(frames.Seen, notice=notice)

    # -- other people ---------------------------------------------------------------------------

    async def find(self, person: str) -> frames.Person:
        return (await self.ask(frames.Find, frames.PersonReply, person=person)).person

    async def follow(self, person: str) -> None:
        await self._do(frames.Follow, person=person)

    async def unfollow(self, person: str) -> None:
        await self._do(frames.Unfollow, person=person)

    def followers(self, person: str = "") -> AsyncIterator[frames.Person]:
        """Who follows somebody; oneself by default."""
        return self._all(frames.Followers, frames.People, lambda p: p.people, person=person)

    def following(self, person: str = "") -> AsyncIterator[frames.Person]:
        """Whom somebody follows; oneself by default."""
        return self._all(frames.Following, frames.People, lambda p: p.people, person=person)

    async def block(self, person: str) -> None:
        await self._do(frames.Block, person=person)

    async def unblock(self, person: str) -> None:
        await self._do(frames.Unblock, person=person)

    def blocked(self) -> AsyncIterator[frames.Person]:
        """Whom one has blocked."""
        return self._all(frames.Blocked, frames.People, lambda p: p.people)

    # -- access to the server, and who keeps order on it -------------------------------------------

    async def ask_access(self, note: str = "") -> None:
        await self._do(frames.AskAccess, note=note)

    def waiting_list(self) -> AsyncIterator[frames.Waiting]:
        """Who asked for access, the longest waiting first."""
        return self._all(frames.WaitingList, frames.WaitingReply, lambda p: p.waiting)

    async def grant(self, person: str) -> None:
        await self._do(frames.Grant, person=person)

    async def revoke(self, person: str) -> None:
        await self._do(frames.Revoke, person=person)

    async def set_access(self, access: frames.Access) -> None:
        await self._do(frames.SetAccess, access=access)

    async def appoint_moderator(self, person: str) -> None:
        await self._do(frames.AppointModerator, person=person)

    async def dismiss_moderator(self, person: str) -> None:
        await self._do(frames.DismissModerator, person=person)

    async def ban(self, person: str, reason: str = "", *, with_invited: bool = False) -> None:
        await self._do(frames.Ban, person=person, reason=reason, with_invited=with_invited)

    async def unban(self, person: str) -> None:
        await self._do(frames.Unban, person=person)

    def accounts(
        self, *, banned: bool = False, moderators: bool = False
    ) -> AsyncIterator[frames.Account]:
        """All accounts of the server, or only those that are banned or moderate it."""
        fields: dict[str, Any] = {"banned": banned, "moderators": moderators}
        return self._all(frames.ListAccounts, frames.Accounts, lambda p: p.accounts, **fields)

    # -- spaces -----------------------------------------------------------------------------------

    def spaces(self) -> AsyncIterator[frames.SpaceInfo]:
        """The live spaces: first those with somebody on stage whom one follows."""
        return self._all(frames.ListSpaces, frames.Spaces, lambda p: p.spaces)

    def upcoming(self) -> AsyncIterator[frames.SpaceInfo]:
        """The scheduled spaces, the next first."""
        return self._all(frames.ListUpcoming, frames.Spaces, lambda p: p.spaces)

    async def get_space(self, space: str) -> frames.SpaceInfo:
        return (await self.ask(frames.GetSpace, frames.SpaceReply, space=space)).space

    async def schedule(
        self, title: str, starts: int, settings: Settings | None = None
    ) -> frames.SpaceInfo:
        """starts: seconds since 1970, UTC."""
        settings = settings or Settings()
        fields = {"title": title, "starts": starts, "settings": settings}
        return (await self.ask(frames.Schedule, frames.SpaceReply, **fields)).space

    async def cancel(self, space: str) -> None:
        """Calls off a space that one has scheduled."""
        await self._do(frames.CancelSpace, space=space)

    async def remind(self, space: str, *, on: bool = True) -> None:
        """Sets a reminder for a scheduled space, or takes it back."""
        await self._do(frames.Remind, space=space, on=on)

    # -- messages and posts -----------------------------------------------------------------------

    async def send_message(self, person: str, text: str) -> int:
        """-> the message's number."""
        fields = {"person": person, "text": text}
        return (await self.ask(frames.SendMessage, frames.Sent, **fields)).message

    def messages(self, person: str = "") -> AsyncIterator[frames.MessageInfo]:
        """One's messages, the newest first: all, or those with somebody."""
        kind, reply = frames.ListMessages, frames.Messages
        return self._all(kind, reply, lambda p: p.messages, "before", person=person)

    async def post(self, text: str = "", *, space: str | None = None, note: bytes = b"") -> int:
        """Posts a text, a link to a space, a voice note (spaces_client/note.py), or any of them
        together; -> the post's number."""
        for at in range(0, len(note), frames.MAX_CHUNK_BYTES):
            data = note[at : at + frames.MAX_CHUNK_BYTES]
            await self._do(frames.NotePart, first=at == 0, data=data)
        fields = given(space=space)
        post = await self.ask(frames.Post, frames.Posted, text=text, note=bool(note), **fields)
        return post.post

    async def delete_post(self, post: int) -> None:
        await self._do(frames.DeletePost, post=post)

    def home(self) -> AsyncIterator[frames.PostInfo]:
        """The posts of oneself and of whom one follows, the newest first."""
        return self._all(frames.Home, frames.Posts, lambda p: p.posts, "before")

    def public_posts(self) -> AsyncIterator[frames.PostInfo]:
        """The posts of everyone, the newest first."""
        return self._all(frames.PublicPosts, frames.Posts, lambda p: p.posts, "before")

    async def note(self, post: int) -> bytes:
        """A post's voice note, as protocol/notes.py has it."""
        parts = await self._whole(frames.GetNote, frames.Note, post=post)
        return b"".join(part.data for part in parts)

    # -- safety -----------------------------------------------------------------------------------

    async def report(
        self,
        category: frames.Category,
        note: str = "",
        *,
        person: str | None = None,
        member: int | None = None,
        space: str | None = None,
    ) -> frames.Reported:
        """Reports a person, a member of the space one is in, or a space, to the moderators of the
        server."""
        about = given(person=person, member=member, space=space)
        fields = {"category": category, "note": note, **about}
        return await self.ask(frames.Report, frames.Reported, **fields)

    def reports(self, *, closed: bool = False) -> AsyncIterator[frames.ReportInfo]:
        """The open reports, the oldest first, or the others."""
        return self._all(frames.ListReports, frames.Reports, lambda p: p.reports, closed=closed)

    async def act(
        self,
        report: int,
        outcome: frames.Outcome,
        note: str = "",
        *,
        with_invited: bool = False,
    ) -> None:
        """Decides on a report."""
        fields = {"outcome": outcome, "note": note, "with_invited": with_invited}
        await self._do(frames.Act, report=report, **fields)

    async def evidence(self, report: int) -> evidence.Recording:
        """What a reported speaker said last, opened with this device's key: (timestamp in samples
        of 1/48,000 s, Opus packet), as they came in."""
        parts = await self._whole(frames.GetEvidence, frames.Evidence, report=report)
        sealed = b"".join(part.data for part in parts)
        first = parts[0]
        try:
            return evidence.open(self._key, first.sender_key, first.sealed_key, sealed)
        except evidence.EvidenceError as error:
            raise SpacesError(f"the evidence cannot be opened: {error}") from error

    async def close_space(self, space: str, reason: str = "") -> None:
        """Ends any space of the server."""
        await self._do(frames.CloseSpace, space=space, reason=reason)


def given(**fields: Any) -> dict[str, Any]:
    """Only the fields that were given: the others are not sent."""
    return {name: value for name, value in fields.items() if value is not None}
