"""What a client knows of the space it is in: snapshot plus updates.

The updates are numbered.  `apply` takes those that follow on; a gap makes `behind` true, and the
client then asks for what is missing.  Where a batch ends, its state hash must be that of the state
here; where it is not, `agreed` is False, and the client asks for a fresh snapshot.
"""

from dataclasses import dataclass, field
from typing import Any

from protocol.frames import (
    ChatUpdate,
    FrameError,
    GoneUpdate,
    LineGoneUpdate,
    ListenersUpdate,
    Member,
    MemberUpdate,
    Settings,
    SettingsUpdate,
    Snapshot,
    Update,
    decode_update,
)
from protocol.state_hash import StateHash

MAX_LINES = 200


@dataclass(slots=True)
class SpaceView:
    """members: the stage and the raised hands, by number; listeners: how many listen; lines: the
    newest of the chat, by number; reactions: the six that may be shown here; evidence: a report
    takes along what the reported speaker said last (section 12.8)."""

    id: str = ""
    title: str = ""
    settings: Settings = field(default_factory=Settings)
    reactions: tuple[str, ...] = ()
    evidence: bool = False
    me: Member | None = None
    members: dict[int, Member] = field(default_factory=dict)
    listeners: int = 0
    lines: dict[int, ChatUpdate] = field(default_factory=dict)
    number: int = 0  # of the newest update applied
    newest: int = 0  # of the newest update known to exist
    agreed: bool | None = None  # whether the server's hash was ours, where it could be compared
    _hash: StateHash = field(default_factory=StateHash)

    def take(self, me: Member, snapshot: Snapshot) -> None:
        if snapshot.number != self.number:
            self.lines.clear()  # what was taken back in between, nobody says
        self.me = me
        self.title = snapshot.title
        self.settings = snapshot.settings
        self.members = {m.id: m for m in snapshot.members}
        self.listeners = snapshot.listeners
        self.number = snapshot.number
        self.newest = snapshot.number
        self.agreed = None
        self._hash = StateHash.of(snapshot)

    @property
    def behind(self) -> bool:
        return self.newest > self.number

    def apply(self, first: int, updates: list[dict[str, Any]], state_hash: int) -> list[Update]:
        """Applies what follows on, remembers that there is more otherwise; -> what is new, without
        the updates of kinds that are not known here.  state_hash: after the last of them."""
        last = first + len(updates) - 1
        self.newest = max(self.newest, last)
        if first > self.number + 1:
            return []
        fresh = [self._apply_one(update) for update in updates[self.number + 1 - first :]]
        if fresh:
            self.agreed = self._hash.value == state_hash
        return [update for update in fresh if update is not None]

    def _apply_one(self, value: dict[str, Any]) -> Update | None:
        self.number += 1
        try:
            update = decode_update(value)
        except FrameError:
            return None  # a newer server's, as one of an unknown type
        if update is not None:
            self._hash.apply(update)
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
            case SettingsUpdate(title=title, settings=settings):
                self.title, self.settings = title, settings
            case ChatUpdate(line=line):
                self.lines[line] = update
                if len(self.lines) > MAX_LINES:
                    del self.lines[next(iter(self.lines))]
            case LineGoneUpdate(line=line):
                self.lines.pop(line, None)
        return update

    def forget_lines(self, handle: str) -> None:
        """Of somebody whom one has blocked; no new ones come."""
        of = handle.removeprefix("@").casefold()
        self.lines = {n: line for n, line in self.lines.items() if line.handle.casefold() != of}

    @property
    def stage(self) -> list[Member]:
        """Those who may speak, in the order of their seats."""
        on_stage = [m for m in self.members.values() if m.role.on_stage]
        return sorted(on_stage, key=lambda m: m.seat if isinstance(m.seat, int) else 256)

    @property
    def hands(self) -> list[Member]:
        """The raised hands, the first to be raised first."""
        return sorted((m for m in self.members.values() if m.hand), key=lambda m: m.hand)

    def at_seat(self, seat: int) -> Member | None:
        return next((m for m in self.members.values() if m.seat == seat), None)
