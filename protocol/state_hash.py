"""The state hash: by it a client notices that what it shows is not what the server has.

A space's state, as its feed tells it, is a set of entries.  Each is a msgpack array in its shortest
form (every number and string in the smallest format that holds it):

    ["space", title, visibility, who_speaks, free_unmute, chat, slow_s]         always one
    ["listeners", count]                                                        always one
    ["member", id, name, handle, role, seat, muted, held, hand]   one a member on stage or with a
                                                                  raised hand; seat is nil without

The hash is the exclusive or, over all entries, of the first four bytes of an entry's SHA-256 as a
big-endian number.  So the order of entries does not count, and a change costs two digests, however
many members there are.
"""

from hashlib import sha256
from typing import Self

import msgpack
from msgspec import UNSET

from protocol.frames import (
    GoneUpdate,
    ListenersUpdate,
    Member,
    MemberUpdate,
    Settings,
    SettingsUpdate,
    Snapshot,
    Update,
)


class StateHash:
    """The hash of a state that changes; `value` (u32) is that of the state as it is now."""

    def __init__(self) -> None:
        self.value = 0
        self._entries: dict[str | int, int] = {}  # "space", "listeners", a member's id -> digest

    @classmethod
    def of(cls, snapshot: Snapshot) -> Self:
        state = cls()
        state.set_settings(snapshot.title, snapshot.settings)
        state.set_listeners(snapshot.listeners)
        for member in snapshot.members:
            state.set_member(member)
        return state

    def set_settings(self, title: str, settings: Settings) -> None:
        self._set(
            "space",
            "space",
            title,
            settings.visibility,
            settings.who_speaks,
            settings.free_unmute,
            settings.chat,
            settings.slow_s,
        )

    def set_listeners(self, count: int) -> None:
        self._set("listeners", "listeners", count)

    def set_member(self, member: Member) -> None:
        self._set(
            member.id,
            "member",
            member.id,
            member.name,
            member.handle,
            member.role,
            None if member.seat is UNSET else member.seat,
            member.muted,
            member.held,
            member.hand,
        )

    def remove_member(self, member: int) -> None:
        self.value ^= self._entries.pop(member, 0)

    def apply(self, update: Update) -> None:
        """What an update of the feed changes; chat and reactions change nothing."""
        match update:
            case MemberUpdate(member=member) if member.role.on_stage or member.hand:
                self.set_member(member)
            case MemberUpdate(member=member):
                self.remove_member(member.id)
            case GoneUpdate(id=member_id):
                self.remove_member(member_id)
            case ListenersUpdate(count=count):
                self.set_listeners(count)
            case SettingsUpdate(title=title, settings=settings):
                self.set_settings(title, settings)

    def _set(self, key: str | int, *entry: str | int | bool | None) -> None:
        digest = int.from_bytes(sha256(msgpack.packb(entry)).digest()[:4], "big")
        self.value ^= self._entries.get(key, 0) ^ digest
        self._entries[key] = digest
