"""What a client knows of the space it is in: snapshot plus updates.

The updates are numbered.  `apply` takes those that follow on; a gap makes `behind` true, and the
client then asks for what is missing.
"""

from dataclasses import dataclass, field
from typing import Any

from protocol.frames import (
    FrameError,
    GoneUpdate,
    ListenersUpdate,
    Member,
    MemberUpdate,
    Snapshot,
    decode_update,
)


@dataclass(slots=True)
class SpaceView:
    """members: the stage and the raised hands, by number; listeners: how many listen."""

    id: str = ""
    title: str = ""
    me: Member | None = None
    members: dict[int, Member] = field(default_factory=dict)
    listeners: int = 0
    number: int = 0  # of the newest update applied
    newest: int = 0  # of the newest update known to exist

    def take(self, me: Member, snapshot: Snapshot) -> None:
        self.me = me
        self.title = snapshot.title
        self.members = {m.id: m for m in snapshot.members}
        self.listeners = snapshot.listeners
        self.number = snapshot.number
        self.newest = snapshot.number

    @property
    def behind(self) -> bool:
        return self.newest > self.number

    def apply(self, first: int, updates: list[dict[str, Any]]) -> bool:
        """Applies what follows on, remembers that there is more otherwise; -> any change."""
        self.newest = max(self.newest, first + len(updates) - 1)
        if first > self.number + 1:
            return False
        fresh = updates[self.number + 1 - first :]
        for update in fresh:
            self._apply_one(update)
        return bool(fresh)

    def _apply_one(self, value: dict[str, Any]) -> None:
        self.number += 1
        try:
            update = decode_update(value)
        except FrameError:
            return  # a newer server's, as one of an unknown type
        match update:
            case MemberUpdate(member=member):
                if member.role.on_stage or member.hand:
                    self.members[member.id] = member
                else:
                    self.members.pop(member.id, None)
                if self.me is not None and member.id == self.me.id:
                    self.me = member
            case GoneUpdate(id=gone):
                self.members.pop(gone, None)
            case ListenersUpdate(count=count):
                self.listeners = count

    @property
    def stage(self) -> list[Member]:
        """Those who may speak, in the order of their seats."""
        on_stage = [m for m in self.members.values() if m.role.on_stage]
        return sorted(on_stage, key=lambda m: m.seat if isinstance(m.seat, int) else 256)

    @property
    def hands(self) -> list[Member]:
        return [m for m in self.members.values() if m.hand]

    def at_seat(self, seat: int) -> Member | None:
        return next((m for m in self.members.values() if m.seat == seat), None)
