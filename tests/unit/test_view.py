"""What a client makes of snapshots and updates: in order, with gaps, twice, or unknown."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import frames
from protocol.frames import Member, Settings, Snapshot, Update, WhoSpeaks, encode_update
from protocol.roles import Role
from protocol.state_hash import StateHash
from spaces_client.view import MAX_LINES, SpaceView

HOST = Member(id=1, name="Ada", handle="ada", role=Role.HOST, seat=0)
SPEAKER = Member(id=2, name="Bo", handle="bo", role=Role.SPEAKER, seat=1)
HAND = Member(id=3, name="Cy", handle="cy", hand=100)
NO_MATTER = 0  # a hash in a test that is about something else


def snapshot(*members: Member, number: int = 10, listeners: int = 5, title: str = "t") -> Snapshot:
    return Snapshot(
        number=number, title=title, settings=Settings(), members=list(members), listeners=listeners
    )


def view(*members: Member, me: Member = HOST, number: int = 10) -> SpaceView:
    taken = SpaceView(id="room")
    taken.take(me, snapshot(*members, number=number))
    return taken


def member(of: Member) -> dict[str, Any]:
    return encode_update(frames.MemberUpdate(member=of))


def gone(who: int) -> dict[str, Any]:
    return encode_update(frames.GoneUpdate(id=who))


def listeners(count: int) -> dict[str, Any]:
    return encode_update(frames.ListenersUpdate(count=count))


def chat(line: int, text: str = "hello") -> dict[str, Any]:
    said = frames.ChatUpdate(line=line, member=2, name="Bo", handle="bo", text=text)
    return encode_update(said)


def line_gone(line: int) -> dict[str, Any]:
    return encode_update(frames.LineGoneUpdate(line=line))


def test_a_snapshot() -> None:
    seen = view(SPEAKER, HAND, HOST)
    assert (seen.title, seen.number, seen.listeners, seen.behind) == ("t", 10, 5, False)
    assert seen.settings == Settings()
    assert seen.me == HOST
    assert seen.stage == [HOST, SPEAKER]  # by their seats
    assert seen.hands == [HAND]
    assert seen.at_seat(1) == SPEAKER
    assert seen.at_seat(7) is None


def test_hands_are_in_the_order_of_raising() -> None:
    late, early = Member(id=4, name="Di", hand=300), Member(id=9, name="Ed", hand=50)
    seen = view(late, HAND, early)
    assert seen.hands == [early, HAND, late]
    seen.apply(11, [member(HAND), member(Member(id=4, name="Di", hand=20))], NO_MATTER)
    assert [m.id for m in seen.hands] == [4, 9, 3]


def test_updates_that_follow_on() -> None:
    seen = view(HOST)
    applied = seen.apply(11, [member(SPEAKER), member(HAND), listeners(4)], NO_MATTER)
    assert applied == [
        frames.MemberUpdate(member=SPEAKER),
        frames.MemberUpdate(member=HAND),
        frames.ListenersUpdate(count=4),
    ]
    assert seen.members == {1: HOST, 2: SPEAKER, 3: HAND}
    assert (seen.listeners, seen.number, seen.behind) == (4, 13, False)
    assert seen.apply(14, [gone(2), member(Member(id=3, name="Cy"))], NO_MATTER)
    assert seen.members == {1: HOST}  # one has left, one is an ordinary listener again


def test_title_and_settings() -> None:
    seen = view(HOST)
    new = Settings(who_speaks=WhoSpeaks.EVERYONE, slow_s=30)
    seen.apply(11, [encode_update(frames.SettingsUpdate(title="u", settings=new))], NO_MATTER)
    assert (seen.title, seen.settings) == ("u", new)


def test_a_gap() -> None:
    seen = view(HOST)
    assert not seen.apply(12, [member(SPEAKER)], NO_MATTER)
    assert seen.behind
    assert seen.agreed is None, "nothing was applied that could be compared"
    assert (seen.number, seen.newest, seen.members) == (10, 12, {1: HOST})
    assert seen.apply(11, [listeners(6), member(SPEAKER)], NO_MATTER)  # what was asked for
    assert not seen.behind
    assert (seen.listeners, seen.members) == (6, {1: HOST, 2: SPEAKER})


def test_what_came_before_changes_nothing() -> None:
    seen = view(HOST)
    assert seen.apply(11, [listeners(6), listeners(7)], NO_MATTER)
    assert not seen.apply(11, [listeners(6)], NO_MATTER)
    assert not seen.apply(11, [listeners(6), listeners(7)], NO_MATTER)
    assert not seen.apply(3, [gone(1)], NO_MATTER)
    assert (seen.listeners, seen.number, seen.members) == (7, 12, {1: HOST})


def test_an_overlap_counts_from_what_is_new() -> None:
    seen = view(HOST)
    applied = seen.apply(9, [gone(1), gone(1), listeners(6), listeners(7)], NO_MATTER)
    assert applied == [frames.ListenersUpdate(count=6), frames.ListenersUpdate(count=7)]
    assert (seen.listeners, seen.number, seen.members) == (7, 12, {1: HOST})


def test_an_empty_batch() -> None:
    seen = view(HOST)
    assert not seen.apply(11, [], NO_MATTER)
    assert (seen.number, seen.behind, seen.agreed) == (10, False, None)


def test_updates_of_another_kind_are_counted_and_skipped() -> None:
    seen = view(HOST)
    unknown: list[dict[str, Any]] = [
        {"type": "weather", "is": "fine"},
        {},
        {"type": ["member"]},
        {"type": "listeners", "count": "many"},
        {"type": "member", "member": {"id": 4, "name": "x" * 41}},
    ]
    assert seen.apply(11, [*unknown, listeners(6)], NO_MATTER) == [frames.ListenersUpdate(count=6)]
    assert (seen.number, seen.listeners, seen.members) == (16, 6, {1: HOST})


def test_oneself() -> None:
    seen = view(HOST, me=Member(id=2, name="Bo"))
    seen.apply(11, [member(SPEAKER)], NO_MATTER)
    assert seen.me == SPEAKER
    seen.apply(12, [member(HAND)], NO_MATTER)
    assert seen.me == SPEAKER


def test_the_chat() -> None:
    seen = view(HOST)
    seen.apply(11, [chat(1, "one"), chat(2, "two"), line_gone(1), line_gone(77)], NO_MATTER)
    assert [line.text for line in seen.lines.values()] == ["two"]
    assert seen.members == {1: HOST}, "who speaks in the chat need not be on stage"


def test_no_more_of_the_chat_is_kept_than_is_shown() -> None:
    seen = view(HOST)
    seen.apply(11, [chat(line) for line in range(1, MAX_LINES + 4)], NO_MATTER)
    assert list(seen.lines) == list(range(4, MAX_LINES + 4))


def test_lines_are_forgotten_where_nobody_says_which_were_taken_back() -> None:
    seen = view(HOST)
    seen.apply(11, [chat(1)], NO_MATTER)
    seen.take(HOST, snapshot(HOST, number=11))
    assert list(seen.lines) == [1], "nothing was missed"
    seen.take(HOST, snapshot(HOST, number=500))
    assert not seen.lines


def test_a_fresh_snapshot_replaces_everything() -> None:
    seen = view(HOST, SPEAKER)
    seen.apply(20, [listeners(1)], NO_MATTER)
    assert seen.behind
    seen.take(HOST, snapshot(HOST, HAND, number=20, listeners=2, title="new"))
    assert (seen.number, seen.title, seen.listeners, seen.behind) == (20, "new", 2, False)
    assert seen.members == {1: HOST, 3: HAND}


def test_the_hash_is_compared_where_a_batch_ends() -> None:
    seen = view(HOST)
    truth = StateHash.of(snapshot(HOST, SPEAKER, listeners=4))
    seen.apply(11, [member(SPEAKER), listeners(4)], truth.value)
    assert seen.agreed is True
    seen.apply(13, [chat(1)], truth.value)
    assert seen.agreed is True, "chat is no state"
    seen.apply(14, [listeners(5)], truth.value)
    assert seen.agreed is False
    seen.apply(11, [member(SPEAKER)], truth.value)
    assert seen.agreed is False, "an old batch proves nothing"
    seen.take(HOST, snapshot(HOST, number=14))
    assert seen.agreed is None


class Truth:
    """A space as its server would tell of it: the updates, and the state after each."""

    def __init__(self) -> None:
        self.members: dict[int, Member] = {1: HOST}
        self.title, self.count = "t", 0
        self.updates: list[dict[str, Any]] = []
        self.hashes = [self.hash()]

    def snapshot(self) -> Snapshot:
        number = len(self.updates)
        members = self.members.values()
        return snapshot(*members, number=number, listeners=self.count, title=self.title)

    def hash(self) -> int:
        return StateHash.of(self.snapshot()).value

    def tell(self, update: Update) -> None:
        self.updates.append(encode_update(update))
        self.hashes.append(self.hash())

    def put(self, who: int, **is_now: Any) -> None:
        now = Member(id=who, name=f"person {who}", **is_now)
        if now.role.on_stage or now.hand:
            self.members[who] = now
        else:
            self.members.pop(who, None)
        self.tell(frames.MemberUpdate(member=now))

    def happen(self, who: int, what: str) -> None:
        if what == "hand":
            self.put(who, hand=who * 10)
        elif what == "up":
            self.put(who, role=Role.SPEAKER, seat=who, muted=bool(who % 2))
        elif what == "down":
            self.put(who)
        elif what == "leave":
            if self.members.pop(who, None):
                self.tell(frames.GoneUpdate(id=who))
        elif what == "count":
            self.count = who
            self.tell(frames.ListenersUpdate(count=who))
        elif what == "title":
            self.title = f"title {who}"
            self.tell(frames.SettingsUpdate(title=self.title, settings=Settings()))
        else:
            line = len(self.updates) + 1
            said = frames.ChatUpdate(line=line, member=who, name="x", handle="x", text="hi")
            self.tell(said)


WHATS = ["hand", "up", "down", "leave", "count", "title", "chat"]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, 6), st.sampled_from(WHATS))),
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1),
    st.randoms(use_true_random=False),
)
def test_whatever_is_lost_or_repeated_the_view_ends_up_right(
    evening: list[tuple[int, str]], fates: list[tuple[int, int]], rng: Any
) -> None:
    """Batches of updates: delivered, delivered twice, lost, or overtaken by an old one."""
    truth = Truth()
    seen = SpaceView()
    seen.take(HOST, truth.snapshot())
    for who, what in evening:
        truth.happen(who, what)
    batches: list[tuple[int, list[dict[str, Any]], int]] = []
    at = 0
    while at < len(truth.updates):
        size, _ = fates[len(batches) % len(fates)]
        some = truth.updates[at : at + size]
        batches.append((at + 1, some, truth.hashes[at + len(some)]))
        at += len(some)
    for number, batch in enumerate(batches):
        _, fate = fates[number % len(fates)]
        for _ in range((1, 2, 0, 1)[fate]):
            seen.apply(*(batches[rng.randrange(number + 1)] if fate == 3 else batch))
            assert seen.agreed is not False
    seen.newest = len(truth.updates)  # as the answer to a ping says
    if seen.behind:
        missing = truth.updates[seen.number :]
        assert seen.apply(seen.number + 1, missing, truth.hashes[-1])
        assert seen.agreed
    assert not seen.behind
    assert seen.members == truth.members
    assert (seen.title, seen.listeners) == (truth.title, truth.count)
