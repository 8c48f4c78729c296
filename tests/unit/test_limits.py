"""How often one may ask, and that nobody's waiting costs the server memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import frames
from protocol.frames import ErrorCode
from spaces_server.policy.effects import Asker, RefusedError
from spaces_server.policy.limits import (
    ANYTHING_ELSE,
    LIMITS,
    NAMES,
    READING,
    SECOND,
    SPACES,
    Buckets,
    Limit,
    RateLimits,
    in_words,
)
from spaces_server.records import AccountRecord

T = 1_000 * SECOND


def asker(number: int, *, account: int = 0, host: int = 0) -> Asker:
    """Somebody with a key of their own."""
    record = AccountRecord(
        id=account, handle=f"a{account}", skeleton=f"a{account}", name="A", role="person",
        access=True, invited_by=0, since_s=0,
    )  # fmt: skip
    return Asker(bytes([number]) * 32, record if account else None, bytes([host]) * 4)


def refusal(buckets: Buckets, who: str, now_ns: int, cost: int = 1) -> RefusedError:
    with pytest.raises(RefusedError) as error:
        buckets.take(who, now_ns, cost)
    assert error.value.code == ErrorCode.RATE_LIMITED
    return error.value


def taken(limits: RateLimits, who: Asker, request: frames.Request, now_ns: int) -> int:
    """How many of these go through at once."""
    count = 0
    while True:
        try:
            limits.check(who, request, now_ns)
        except RefusedError:
            return count
        count += 1


def test_a_burst_then_the_rate() -> None:
    buckets = Buckets(0.5, 3)
    for _ in range(3):
        buckets.take("ada", T)
    error = refusal(buckets, "ada", T)
    assert str(error) == "too many of these; try again in 2 s"
    assert error.retry_ms == 2_000
    assert refusal(buckets, "ada", T + SECOND).retry_ms == 1_000
    buckets.take("bob", T)  # others are not concerned
    buckets.take("ada", T + 2 * SECOND)
    refusal(buckets, "ada", T + 2 * SECOND)


def test_whoever_waits_as_long_as_told_goes_through() -> None:
    buckets = Buckets(3, 2)  # a third of a second is no whole number of anything
    now = T
    for _ in range(50):
        try:
            buckets.take("ada", now)
        except RefusedError as error:
            now += error.retry_ms * 1_000_000
            buckets.take("ada", now)


def test_a_refusal_takes_nothing() -> None:
    buckets = Buckets(1, 5)
    buckets.take("ada", T, 4)
    refusal(buckets, "ada", T, 2)
    buckets.take("ada", T, 1)


def test_a_bucket_fills_no_further_than_to_its_burst() -> None:
    buckets = Buckets(1, 5)
    buckets.take("ada", T, 5)
    later = T + 1_000 * SECOND
    buckets.take("ada", later, 5)
    refusal(buckets, "ada", later)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2 * SECOND)), max_size=100))
def test_nobody_gets_more_than_burst_and_rate(steps: list[tuple[int, int]]) -> None:
    buckets, now, taken = Buckets(2, 4), T, dict.fromkeys(range(4), 0)
    for who, wait_ns in steps:
        now += wait_ns
        try:
            buckets.take(who, now)
        except RefusedError:
            continue
        taken[who] += 1
    assert all(count <= 4 + 2 * (now - T) / SECOND for count in taken.values())


def test_full_buckets_are_forgotten() -> None:
    buckets = Buckets(1, 5)
    for i in range(1_000):
        buckets.take(i, T)
    assert len(buckets) == 1_000
    for i in range(600):
        buckets.take("ada", T + (10 + i) * SECOND)
    assert len(buckets) == 1


def test_there_are_never_more_buckets_than_allowed() -> None:
    buckets = Buckets(1, 1, max_buckets=10)
    for i in range(100):
        buckets.take(i, T)
        assert len(buckets) <= 10
    with pytest.raises(RefusedError):
        buckets.take(99, T)  # of the last ones it is still known
    buckets.take(0, T)


@pytest.mark.parametrize(
    ("ns", "words"),
    [(1, "1 s"), (SECOND, "1 s"), (SECOND + 1, "2 s"), (119 * SECOND, "119 s"),
     (120 * SECOND, "2 min"), (121 * SECOND, "3 min"), (3_600 * SECOND, "60 min")],
)  # fmt: skip
def test_waiting_in_words(ns: int, words: str) -> None:
    assert in_words(ns) == words


# -- the table ------------------------------------------------------------------------------------

ASKED: list[tuple[frames.Request, int]] = [
    (frames.Chat(id=1, text="hi"), 5),
    (frames.React(id=1, emoji="👍"), 10),
    (frames.RaiseHand(id=1), 5),
    (frames.InvitePerson(id=1, person="ada"), 20),
    (frames.SendMessage(id=1, person="ada", text="hi"), 20),
    (frames.Post(id=1, text="hi"), 10),
    (frames.Report(id=1, category=frames.Category.SPAM, person="ada"), 5),
    (frames.Register(id=1, handle="ada", name="Ada"), 10),
    (frames.AddDevice(id=1, code="x", label="x"), 10),
    (frames.ClaimServer(id=1, code="x"), 10),
    (frames.AskAccess(id=1), 5),
    (frames.Follow(id=1, person="ada"), 30),
    (frames.WhoAmI(id=1), 200),
]


@pytest.mark.parametrize(("request_", "burst"), ASKED, ids=lambda value: type(value).__name__)
def test_how_many_at_once(request_: frames.Request, burst: int) -> None:
    limits = RateLimits()
    assert taken(limits, asker(1, account=1), request_, T) == burst
    assert taken(limits, asker(2, account=2, host=1), request_, T) == burst


def test_what_concerns_an_account_counts_on_all_its_devices() -> None:
    limits = RateLimits()
    chat = frames.Chat(id=1, text="hi")
    assert taken(limits, asker(1, account=1), chat, T) == 5
    assert taken(limits, asker(2, account=1), chat, T) == 0
    assert taken(limits, asker(3), chat, T) == 5


def test_what_concerns_an_address_counts_for_all_keys_behind_it() -> None:
    limits = RateLimits()
    register = frames.Register(id=1, handle="ada", name="Ada")
    assert taken(limits, asker(1, host=7), register, T) == 10
    assert taken(limits, asker(2, host=7), register, T) == 0
    assert taken(limits, asker(2, host=8), register, T) == 10
    assert taken(limits, asker(3, host=7), register, T + 3_600 * SECOND) == 10


def test_codes_are_tried_so_often_from_a_key_and_from_an_address() -> None:
    """Also: an attempt that the one limit refuses does not count for the other."""
    limits = RateLimits()
    add = frames.AddDevice(id=1, code="x", label="x")
    claim = frames.ClaimServer(id=1, code="x")
    assert taken(limits, asker(1, host=1), add, T) == 10
    assert taken(limits, asker(1, host=2), claim, T) == 0
    assert taken(limits, asker(2, host=1), claim, T) == 0
    assert taken(limits, asker(2, host=2), claim, T) == 10


def test_what_is_limited_by_itself_does_not_count_among_the_rest() -> None:
    limits = RateLimits()
    who = asker(1, account=1)
    taken(limits, who, frames.Chat(id=1, text="hi"), T)
    assert taken(limits, who, frames.WhoAmI(id=1), T) == ANYTHING_ELSE.burst
    assert taken(limits, who, frames.ListSpaces(id=1), T) == 0


def test_limits_are_told_apart_by_their_names() -> None:
    rows: set[Limit] = {limit for row in LIMITS.values() for limit in row}
    names = [limit.name for limit in {*rows, ANYTHING_ELSE}]
    assert len(names) == len(set(names))
    assert set(LIMITS) <= set(frames.REQUESTS)


def test_keys_that_cost_nothing_read_no_more() -> None:
    limits = RateLimits()
    counts = [taken(limits, asker(n, host=1), frames.PublicPosts(id=1), T) for n in range(5)]
    assert counts == [READING.burst, 0, 0, 0, 0]
    assert taken(limits, asker(6, host=1), frames.GetNote(id=1, post=1), T) == 0
    assert taken(limits, asker(7, host=2), frames.GetNote(id=1, post=1), T) == READING.burst


def test_all_devices_of_an_account_open_schedule_and_rename_as_one() -> None:
    limits = RateLimits()
    requests = frames.Open(id=1), frames.Schedule(id=1, title="title", starts=1)
    counts = [taken(limits, asker(n, account=1), requests[n % 2], T) for n in range(4)]
    assert counts == [SPACES.burst, 0, 0, 0]
    names = [
        taken(limits, asker(n, account=1), frames.Rename(id=1, name="name"), T) for n in range(2)
    ]
    assert names == [NAMES.burst, 0]
