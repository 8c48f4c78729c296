"""The state hash: what it is made of, and that a change of anything changes it."""

import hashlib
from functools import reduce
from operator import xor

from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET
from msgspec.structs import replace

from protocol.frames import (
    ChatUpdate,
    GoneUpdate,
    ListenersUpdate,
    Member,
    MemberUpdate,
    ReactionsUpdate,
    Settings,
    SettingsUpdate,
    Snapshot,
    Update,
    Visibility,
    WhoSpeaks,
)
from protocol.roles import Role
from protocol.state_hash import StateHash

HOST = Member(id=1, name="Ada", handle="ada", role=Role.HOST, seat=0)
HAND = Member(id=300, name="Bo", handle="bo", hand=1_700_000_000)
SNAPSHOT = Snapshot(number=5, title="Birds", settings=Settings(), members=[HOST, HAND], listeners=1)


def test_the_bytes_that_are_hashed() -> None:
    """Written by hand from the description, without msgpack."""
    entries = [
        b"\x97\xa5space\xa5Birds\xa6public\xa7invited\xc2\xc3\x00",
        b"\x92\xa9listeners\x01",
        b"\x99\xa6member\x01\xa3Ada\xa3ada\xa4host\x00\xc2\xc2\x00",
        b"\x99\xa6member\xcd\x01\x2c\xa2Bo\xa2bo\xa8listener\xc0\xc2\xc2\xce\x65\x53\xf1\x00",
    ]
    digests = [int.from_bytes(hashlib.sha256(e).digest()[:4], "big") for e in entries]
    assert StateHash.of(SNAPSHOT).value == reduce(xor, digests)


def test_nothing_hashes_to_nothing() -> None:
    assert StateHash().value == 0


def test_every_field_counts() -> None:
    members: list[Member] = [
        replace(HOST, **change)
        for change in (
            {"id": 2},
            {"name": "Eve"},
            {"handle": "eve"},
            {"role": Role.CO_HOST},
            {"seat": 1},
            {"seat": UNSET},
            {"muted": True},
            {"held": True},
            {"hand": 1},
        )
    ]
    settings: list[Settings] = [
        replace(Settings(), **change)
        for change in (
            {"visibility": Visibility.LINK},
            {"who_speaks": WhoSpeaks.EVERYONE},
            {"free_unmute": True},
            {"chat": False},
            {"slow_s": 1},
        )
    ]
    snapshots = [
        SNAPSHOT,
        replace(SNAPSHOT, title="Bees"),
        replace(SNAPSHOT, listeners=2),
        replace(SNAPSHOT, members=[HOST]),
        *(replace(SNAPSHOT, members=[member, HAND]) for member in members),
        *(replace(SNAPSHOT, settings=other) for other in settings),
    ]
    assert len({StateHash.of(snapshot).value for snapshot in snapshots}) == len(snapshots)


def test_the_order_of_members_does_not_count() -> None:
    other = replace(SNAPSHOT, members=[HAND, HOST], number=9)
    assert StateHash.of(other).value == StateHash.of(SNAPSHOT).value


def test_chat_and_reactions_change_nothing() -> None:
    state = StateHash.of(SNAPSHOT)
    before = state.value
    state.apply(ChatUpdate(line=1, member=1, name="Ada", handle="ada", text="hello"))
    state.apply(ReactionsUpdate(counts={"x": 2}, stage=[]))
    state.apply(GoneUpdate(id=99))  # whom it never knew
    assert state.value == before


MEMBERS = st.builds(
    Member,
    id=st.integers(1, 4),
    name=st.sampled_from(["Ada", "Bo"]),
    role=st.sampled_from([Role.SPEAKER, Role.LISTENER]),
    muted=st.booleans(),
    hand=st.sampled_from([0, 7]),
)
UPDATES: st.SearchStrategy[Update] = st.one_of(
    st.builds(MemberUpdate, member=MEMBERS),
    st.builds(GoneUpdate, id=st.integers(1, 4)),
    st.builds(ListenersUpdate, count=st.integers(0, 3)),
    st.builds(
        SettingsUpdate,
        title=st.sampled_from(["Birds", "Bees"]),
        settings=st.builds(Settings, chat=st.booleans()),
    ),
)


@given(st.lists(UPDATES, max_size=30))
def test_rolling_on_is_as_good_as_hashing_anew(updates: list[Update]) -> None:
    rolling = StateHash.of(SNAPSHOT)
    members = {m.id: m for m in SNAPSHOT.members}
    title, settings, listeners = SNAPSHOT.title, SNAPSHOT.settings, SNAPSHOT.listeners
    for update in updates:
        rolling.apply(update)
        match update:
            case MemberUpdate(member=member):
                members[member.id] = member
                if not (member.role.on_stage or member.hand):
                    del members[member.id]
            case GoneUpdate(id=gone):
                members.pop(gone, None)
            case ListenersUpdate(count=count):
                listeners = count
            case SettingsUpdate():
                title, settings = update.title, update.settings
        snapshot = Snapshot(
            number=0,
            title=title,
            settings=settings,
            members=list(members.values()),
            listeners=listeners,
        )
        assert rolling.value == StateHash.of(snapshot).value
