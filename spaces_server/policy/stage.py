"""The stage of a space: its places, as they are stored.

A place belongs to an account, whether its owner is here or their session was lost and it is kept
for a while; so a kept place counts when somebody else wants up.
"""

from collections.abc import Sequence

import msgspec

from protocol.frames import ErrorCode
from protocol.roles import Role
from spaces_server.policy.effects import RefusedError
from spaces_server.records import Change, Drop, Put, StageRecord

MAX_HELD = 1_000


class Stage:
    """Each change is given back as what is to be stored.  absent: accounts that have a place and
    are not here, and until when it is kept (ns)."""

    def __init__(self, space: str, size: int, co_hosts: int, places: Sequence[StageRecord]) -> None:
        self.places = {place.account: place for place in places}
        self.absent: dict[int, int] = {}
        self._space = space
        self._size = size
        self._max_co_hosts = co_hosts
        self._last_order = max((place.order for place in places), default=0)
        # Accounts that left the stage while they were held: stepping down and up again does not
        # end a hold.  In memory only.
        self._held: dict[int, None] = {}

    def __len__(self) -> int:
        """How many places are taken."""
        return len(self.places)

    def present(self) -> frozenset[int]:
        return frozenset(self.places.keys() - self.absent.keys())

    def role(self, account: int) -> Role:
        """LISTENER if there is no place."""
        place = self.places.get(account)
        return Role.LISTENER if place is None else Role(place.role)

    # -- room ----------------------------------------------------------------------------------

    def check_room(self, role: Role) -> None:
        """Raises RefusedError if there is no place left, or none in this role."""
        if len(self.places) >= self._size:
            raise RefusedError(ErrorCode.STAGE_FULL)
        if role is Role.CO_HOST:
            self.check_co_hosts()

    def check_co_hosts(self) -> None:
        if self.co_hosts_full():
            raise RefusedError(ErrorCode.CO_HOSTS_FULL)

    def co_hosts_full(self) -> bool:
        co_hosts = sum(Role(place.role) is Role.CO_HOST for place in self.places.values())
        return co_hosts >= self._max_co_hosts

    # -- changes -------------------------------------------------------------------------------

    def add(self, account: int, role: Role, *, forgiven: bool) -> list[Change]:
        """A new place.  forgiven: a hold from before ends, as a moderator wants to hear them."""
        held = account in self._held and not forgiven
        self._held.pop(account, None)
        place = StageRecord(
            space=self._space,
            account=account,
            role=role.value,
            muted=held,
            held=held,
            order=self._next_order(),
        )
        return self._put(place)

    def drop(self, account: int) -> list[Change]:
        place = self.places.pop(account)
        self.absent.pop(account, None)
        if place.held:
            self._held[account] = None
            if len(self._held) > MAX_HELD:
                del self._held[next(iter(self._held))]
        return [Drop(StageRecord, {"space": self._space, "account": account})]

    def set_role(self, account: int, role: Role) -> list[Change]:
        """Nobody could let a host unmute, so a host is never held."""
        place = self.places[account]
        held = place.held and role is not Role.HOST
        return self._put(
            msgspec.structs.replace(place, role=role.value, held=held, order=self._next_order())
        )

    def mute(self, account: int, *, held: bool) -> list[Change]:
        place = self.places[account]
        return self._put(msgspec.structs.replace(place, muted=True, held=place.held or held))

    def unmute(self, account: int) -> list[Change]:
        return self._put(msgspec.structs.replace(self.places[account], muted=False, held=False))

    def let_unmute(self, account: int) -> list[Change]:
        return self._put(msgspec.structs.replace(self.places[account], held=False))

    def _put(self, place: StageRecord) -> list[Change]:
        if place == self.places.get(place.account):
            return []
        self.places[place.account] = place
        return [Put(place)]

    def _next_order(self) -> int:
        """Of appointment: the longest-serving has the lowest."""
        self._last_order += 1
        return self._last_order
