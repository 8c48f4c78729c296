"""How often somebody may ask for what costs others attention, or the server room.

LIMITS says it, once, for every sort of request.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from protocol import frames
from protocol.frames import ErrorCode, Request
from spaces_server.policy.effects import Asker, RefusedError

SECOND = 1_000_000_000
MAX_BUCKETS = 100_000  # of one limit


class Per(StrEnum):
    """Whose requests are counted together."""

    SESSION = "session"  # those of one key
    ACCOUNT = "account"  # all devices of an account; of a guest, one key
    ADDRESS = "address"


@dataclass(frozen=True, slots=True)
class Limit:
    """`burst` requests at once, and `rate` every `seconds` in the long run."""

    name: str
    per: Per
    rate: int
    seconds: int
    burst: int


MINUTE_S, HOUR_S = 60, 3_600

CHAT = Limit("chat", Per.ACCOUNT, 1, 1, 5)
REACTIONS = Limit("reactions", Per.ACCOUNT, 4, 1, 10)
HANDS = Limit("hands", Per.ACCOUNT, 1, 1, 5)
INVITATIONS = Limit("invitations", Per.ACCOUNT, 30, HOUR_S, 20)
MESSAGES = Limit("messages", Per.ACCOUNT, 30, MINUTE_S, 20)
POSTS = Limit("posts", Per.ACCOUNT, 10, HOUR_S, 10)
REPORTS = Limit("reports", Per.ACCOUNT, 10, HOUR_S, 5)
REGISTRATIONS = Limit("registrations", Per.ADDRESS, 20, HOUR_S, 10)
CODES = (
    Limit("codes of an address", Per.ADDRESS, 10, HOUR_S, 10),
    Limit("codes of a key", Per.SESSION, 10, HOUR_S, 10),
)
ACCESS = Limit("asking for access", Per.ACCOUNT, 5, HOUR_S, 5)
RELATIONS = Limit("following and blocking", Per.ACCOUNT, 60, MINUTE_S, 30)
NAMES = Limit("names", Per.ACCOUNT, 10, MINUTE_S, 10)  # every space is looked at for it
SPACES = Limit("spaces", Per.ACCOUNT, 30, HOUR_S, 20)  # each is remembered for long
READING = Limit("reading what is stored", Per.ADDRESS, 50, 1, 200)  # guests have keys for nothing
ANYTHING_ELSE: Final = Limit("anything else", Per.SESSION, 50, 1, 200)

LIMITS: Final[dict[type[Request], tuple[Limit, ...]]] = {
    frames.Chat: (CHAT,),
    frames.React: (REACTIONS,),
    frames.RaiseHand: (HANDS,),
    frames.LowerHand: (HANDS,),
    frames.InvitePerson: (INVITATIONS,),
    frames.SendMessage: (MESSAGES,),
    frames.Post: (POSTS,),
    frames.Report: (REPORTS,),
    frames.Register: (REGISTRATIONS,),
    frames.MakeDeviceCode: CODES,
    frames.AddDevice: CODES,
    frames.ClaimServer: CODES,
    frames.AskAccess: (ACCESS,),
    frames.Follow: (RELATIONS,),
    frames.Unfollow: (RELATIONS,),
    frames.Block: (RELATIONS,),
    frames.Unblock: (RELATIONS,),
    frames.Rename: (NAMES,),
    frames.Open: (SPACES,),
    frames.Schedule: (SPACES,),
    frames.Home: (READING,),
    frames.PublicPosts: (READING,),
    frames.ListMessages: (READING,),
    frames.GetNote: (READING,),
    frames.DeletePost: (READING,),
    frames.GetEvidence: (READING,),
}


class Buckets:
    """A token bucket for each of many: `burst` tokens when it is full, `rate_per_s` new ones.

    Of each only the time is kept at which it will be full again.  A full bucket is like one that
    was never used, so it is forgotten; of more than `max_buckets`, the one that was used longest
    ago is."""

    def __init__(self, rate_per_s: float, burst: int, max_buckets: int = MAX_BUCKETS) -> None:
        self._token_ns = math.ceil(SECOND / rate_per_s)
        self._burst_ns = burst * self._token_ns
        self._max_buckets = max_buckets
        self._full_ns: dict[Hashable, int] = {}  # the longest unused first

    def __len__(self) -> int:
        return len(self._full_ns)

    def check(self, who: Hashable, now_ns: int, cost: int = 1) -> None:
        """Raises RefusedError if `take` would; takes nothing."""
        full_ns = max(self._full_ns.get(who, now_ns), now_ns)
        wait_ns = full_ns + cost * self._token_ns - now_ns - self._burst_ns
        if wait_ns > 0:
            text = f"too many of these; try again in {in_words(wait_ns)}"
            retry_ms = -(-wait_ns // 1_000_000)
            raise RefusedError(ErrorCode.RATE_LIMITED, text, retry_ms)

    def take(self, who: Hashable, now_ns: int, cost: int = 1) -> None:
        """Takes `cost` tokens (at most `burst`); raises RefusedError if there are not as many, and
        then takes none."""
        self.check(who, now_ns, cost)
        full_ns = max(self._full_ns.pop(who, now_ns), now_ns)
        self._full_ns[who] = full_ns + cost * self._token_ns
        for _ in range(2):  # two at a time are faster forgotten than one is added
            oldest = next(iter(self._full_ns))
            if self._full_ns[oldest] > now_ns and len(self._full_ns) <= self._max_buckets:
                break
            del self._full_ns[oldest]


def in_words(duration_ns: int) -> str:
    """Rounded up: whoever waits that long has waited long enough."""
    seconds = -(-duration_ns // SECOND)
    return f"{seconds} s" if seconds < 120 else f"{-(-seconds // 60)} min"


class RateLimits:
    """All buckets of a server."""

    def __init__(self) -> None:
        limits = {limit for row in LIMITS.values() for limit in row} | {ANYTHING_ELSE}
        self._buckets = {
            limit: Buckets(limit.rate / limit.seconds, limit.burst) for limit in limits
        }

    def check(self, asker: Asker, request: Request, now_ns: int) -> None:
        """Counts the request; raises RefusedError if it is one too many, and then it does not
        count."""
        row = LIMITS.get(type(request), (ANYTHING_ELSE,))
        for limit in row:
            self._buckets[limit].check(_whose(asker, limit.per), now_ns)
        for limit in row:
            self._buckets[limit].take(_whose(asker, limit.per), now_ns)


def _whose(asker: Asker, per: Per) -> Hashable:
    match per:
        case Per.SESSION:
            return asker.key
        case Per.ACCOUNT:
            return asker.who
        case Per.ADDRESS:
            return asker.host
