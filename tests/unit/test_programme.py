"""The programme: scheduling, opening, finding, reminding, and what remains of a space."""

from typing import Any

import msgspec
import pytest

from protocol import frames
from protocol.frames import ErrorCode, Settings, SpaceInfo, SpaceState, Visibility
from spaces_server.policy import programme as module
from spaces_server.policy.effects import Asker, Keep
from spaces_server.policy.programme import (
    MAX_REMINDERS,
    MAX_SCHEDULED,
    OVERDUE_S,
    PAGE,
    LiveInfo,
)
from spaces_server.records import Loaded, ReminderRecord, SpaceRecord
from tests.unit.policies import DAY_S, ID, Policies, server

__all__ = ["server"]  # the fixture

GUEST = Asker(b"g" * 32, None)
OPERATOR = Asker(b"o" * 32, None, operator=True)


def schedule(server: Policies, host: Asker, in_s: int = 3_600, **settings: Any) -> str:
    request = frames.Schedule(
        id=ID, title="A talk", starts=server.now.utc_s + in_s, settings=Settings(**settings)
    )
    return str(server.asks(host, request).space.id)


def opens(server: Policies, host: Asker, space: str | None = None, **fields: Any) -> SpaceRecord:
    request = frames.Open(id=ID, **fields) if space is None else frames.Open(id=ID, space=space)
    record, effects = server.programme.open(host, request, server.now)
    assert server.carry_out(effects) == []
    return record


def closes(server: Policies, record: SpaceRecord) -> None:
    """As a space does that comes to its end."""
    server.carry_out(server.programme.ended(record.id, server.now))


def live(server: Policies, asker: Asker, after: int = 0) -> frames.Spaces:
    reply = server.asks(asker, frames.ListSpaces(id=ID, after=after))
    assert isinstance(reply, frames.Spaces)
    return reply


def live_ids(server: Policies, asker: Asker) -> list[str]:
    return [space.id for space in live(server, asker).spaces]


def upcoming_ids(server: Policies, asker: Asker) -> list[str]:
    return [s.id for s in server.asks(asker, frames.ListUpcoming(id=ID)).spaces]


def look(server: Policies, asker: Asker, space: str) -> SpaceInfo:
    reply = server.asks(asker, frames.GetSpace(id=ID, space=space))
    assert isinstance(reply, frames.SpaceReply)
    return reply.space


def account(asker: Asker) -> int:
    assert asker.account is not None
    return asker.account.id


# -- scheduling ------------------------------------------------------------------------------------


def test_a_scheduled_space_is_found_by_all_until_it_is_called_off(server: Policies) -> None:
    ada, bob = server.people_of("ada", "bob")
    starts = server.now.utc_s + 60
    reply = server.asks(ada, frames.Schedule(id=ID, title=" A  talk ", starts=starts))
    assert reply.space == SpaceInfo(
        id=reply.space.id,
        title="A  talk",
        host="ada",
        host_name="Ada",
        state=SpaceState.SCHEDULED,
        starts=starts,
    )
    space = reply.space.id
    server.restart()
    assert look(server, GUEST, space) == reply.space
    assert upcoming_ids(server, bob) == upcoming_ids(server, GUEST) == [space]
    assert live_ids(server, bob) == []

    server.refused(bob, frames.CancelSpace(id=ID, space=space), ErrorCode.NOT_ALLOWED)
    server.asks(ada, frames.CancelSpace(id=ID, space=space))
    for _ in range(2):
        server.refused(bob, frames.GetSpace(id=ID, space=space), ErrorCode.SPACE_ENDED)
        assert upcoming_ids(server, ada) == []
        server.restart()


def test_the_next_to_start_comes_first(server: Policies) -> None:
    hosts = server.people_of("ada", "bob", "cem")
    times = [300, 100, 200]
    spaces = [schedule(server, host, t) for host, t in zip(hosts, times, strict=True)]
    assert upcoming_ids(server, GUEST) == [spaces[1], spaces[2], spaces[0]]


def test_a_space_is_scheduled_up_to_14_days_ahead_and_not_in_the_past(server: Policies) -> None:
    ada = server.person("ada")
    schedule(server, ada, 0)
    schedule(server, ada, 14 * DAY_S)
    for in_s in (-1, 14 * DAY_S + 1):
        starts = server.now.utc_s + in_s
        request = frames.Schedule(id=ID, title="x", starts=starts)
        server.refused(ada, request, ErrorCode.BAD_TIME)


def test_an_account_has_so_many_scheduled_spaces_at_most(server: Policies) -> None:
    ada, bob = server.people_of("ada", "bob")
    spaces = [schedule(server, ada) for _ in range(MAX_SCHEDULED)]
    request = frames.Schedule(id=ID, title="x", starts=server.now.utc_s)
    server.refused(ada, request, ErrorCode.TOO_MANY)
    schedule(server, bob)
    server.asks(ada, frames.CancelSpace(id=ID, space=spaces[0]))
    schedule(server, ada)


@pytest.mark.parametrize("title", [" ", "a\x1b[2J", "a\nb", "\u202eabc"])
def test_titles_are_fit_to_be_shown(server: Policies, title: str) -> None:
    ada = server.person("ada")
    request = frames.Schedule(id=ID, title=title, starts=server.now.utc_s)
    server.refused(ada, request, ErrorCode.BAD_TEXT)
    with server.refusing(ErrorCode.BAD_TEXT):
        server.programme.open(ada, frames.Open(id=ID, title=title), server.now)


@pytest.mark.parametrize("asker", [GUEST, OPERATOR])
def test_whoever_has_no_account_only_looks(server: Policies, asker: Asker) -> None:
    space = schedule(server, server.person("ada"))
    for request in (
        frames.Schedule(id=ID, title="x", starts=server.now.utc_s),
        frames.CancelSpace(id=ID, space=space),
        frames.Remind(id=ID, space=space),
    ):
        server.refused(asker, request, ErrorCode.NO_ACCOUNT)
    with server.refusing(ErrorCode.NO_ACCOUNT):
        server.programme.open(asker, frames.Open(id=ID), server.now)


def test_a_scheduled_space_that_nobody_opens_is_over_after_a_day(server: Policies) -> None:
    ada, bob = server.people_of("ada", "bob")
    space, later = schedule(server, ada, 0), schedule(server, ada, 1)
    server.asks(bob, frames.Remind(id=ID, space=space))
    server.later(OVERDUE_S)
    assert server.programme.due(server.now) == []
    server.later(1)
    server.carry_out(server.programme.due(server.now))
    assert upcoming_ids(server, ada) == [later]
    server.restart()
    assert upcoming_ids(server, ada) == [later]
    with server.refusing(ErrorCode.SPACE_ENDED):
        opens(server, ada, space)
    assert server.database.load().of(ReminderRecord) == []


# -- opening and ending ----------------------------------------------------------------------------


def test_a_space_is_open_and_then_over(server: Policies) -> None:
    ada, bob = server.people_of("ada", "bob")
    settings = Settings(visibility=Visibility.LINK, slow_s=5)
    record = opens(server, ada, title=" Late  show ", settings=settings)
    assert record.title == "Late  show"
    assert record.starts_s == server.now.utc_s
    assert module.settings_of(record) == settings
    server.restart()
    assert server.programme.get(record.id) == record
    assert server.programme.live_records() == [record]

    server.later(60)
    closes(server, record)
    for _ in range(2):
        with server.refusing(ErrorCode.SPACE_ENDED):
            server.programme.get(record.id)
        server.refused(bob, frames.GetSpace(id=ID, space=record.id), ErrorCode.SPACE_ENDED)
        assert server.programme.record(record.id).ended_s == server.now.utc_s
        assert server.programme.live_records() == []
        server.restart()
    assert server.programme.ended(record.id, server.now) == []


def test_one_cannot_join_what_is_not_there_or_not_yet(server: Policies) -> None:
    space = schedule(server, server.person("ada"))
    with server.refusing(ErrorCode.NOT_STARTED):
        server.programme.get(space)
    with server.refusing(ErrorCode.NO_SUCH_SPACE):
        server.programme.get("nowhere")


def test_a_scheduled_space_is_opened_by_its_host_only_and_as_it_was_announced(
    server: Policies,
) -> None:
    ada, bob = server.people_of("ada", "bob")
    space = schedule(server, ada, visibility=Visibility.FOLLOWERS)
    with server.refusing(ErrorCode.NOT_ALLOWED):
        opens(server, bob, space)
    server.later(10)
    record = opens(server, ada, space)
    assert (record.id, record.title, record.state) == (space, "A talk", SpaceState.LIVE)
    assert record.starts_s == server.now.utc_s
    assert module.settings_of(record).visibility is Visibility.FOLLOWERS
    assert upcoming_ids(server, ada) == []
    assert live_ids(server, ada) == [space]
    with server.refusing(ErrorCode.NOT_ALLOWED):
        opens(server, ada, space)
    server.refused(ada, frames.CancelSpace(id=ID, space=space), ErrorCode.NOT_ALLOWED)
    closes(server, record)
    with server.refusing(ErrorCode.SPACE_ENDED):
        opens(server, ada, space)
    with server.refusing(ErrorCode.NO_SUCH_SPACE):
        opens(server, ada, "nowhere")


def test_an_account_hosts_one_live_space_at_a_time(server: Policies) -> None:
    ada, bob = server.people_of("ada", "bob")
    space = schedule(server, ada)
    record = opens(server, ada)
    for again in (None, space):
        with server.refusing(ErrorCode.TOO_MANY):
            opens(server, ada, again)
    server.restart()
    with server.refusing(ErrorCode.TOO_MANY):
        opens(server, ada)
    server.changes(msgspec.structs.replace(record, host=account(bob)))
    opens(server, ada, space)
    with server.refusing(ErrorCode.TOO_MANY):
        opens(server, bob)


def test_what_changes_in_a_live_space_is_what_lists_show(server: Policies) -> None:
    ada, bob = server.people_of("ada", "bob")
    record = opens(server, ada)
    assert live_ids(server, GUEST) == [record.id]
    hidden = msgspec.msgpack.encode(Settings(visibility=Visibility.LINK))
    server.changes(
        msgspec.structs.replace(record, title="Other", host=account(bob), settings=hidden)
    )
    assert live_ids(server, GUEST) == []
    info = look(server, GUEST, record.id)
    assert (info.title, info.host, info.visibility) == ("Other", "bob", Visibility.LINK)


def test_a_moderator_ends_a_scheduled_space_too(server: Policies) -> None:
    ada, bob = server.people_of("ada", "bob")
    space = schedule(server, ada)
    server.asks(bob, frames.Remind(id=ID, space=space))
    server.carry_out(server.programme.ended(space, server.now))
    server.refused(bob, frames.GetSpace(id=ID, space=space), ErrorCode.SPACE_ENDED)
    server.restart()
    server.refused(bob, frames.GetSpace(id=ID, space=space), ErrorCode.SPACE_ENDED)
    assert server.database.load().of(ReminderRecord) == []


def test_of_too_many_ended_spaces_the_oldest_are_forgotten(
    server: Policies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ENDED", 2)
    ada = server.person("ada")
    spaces = []
    for _ in range(4):
        record = opens(server, ada)
        spaces.append(record.id)
        server.later(1)
        closes(server, record)
    server.restart()
    server.carry_out(server.programme.due(server.now))
    for _ in range(2):
        for space in spaces[:2]:
            server.refused(ada, frames.GetSpace(id=ID, space=space), ErrorCode.NO_SUCH_SPACE)
        for space in spaces[2:]:
            server.refused(ada, frames.GetSpace(id=ID, space=space), ErrorCode.SPACE_ENDED)
        server.restart()
    assert server.programme.due(server.now) == []


# -- reminders -------------------------------------------------------------------------------------


def test_whoever_asked_to_be_reminded_is_told_once_when_it_starts(server: Policies) -> None:
    ada, bob, cem, _ = server.people_of("ada", "bob", "cem", "dan")
    space = schedule(server, ada)
    for asker in (bob, bob, cem):
        server.asks(asker, frames.Remind(id=ID, space=space))
    assert look(server, bob, space).reminder
    assert not look(server, ada, space).reminder
    server.asks(cem, frames.Remind(id=ID, space=space, on=False))
    server.asks(cem, frames.Remind(id=ID, space=space, on=False))
    server.restart()
    assert look(server, bob, space).reminder
    assert not look(server, cem, space).reminder
    server.take_told()
    record = opens(server, ada, space)
    [(told, notice)] = server.take_told()
    assert told == account(bob)
    assert isinstance(notice, frames.Started)
    assert (notice.space, notice.title, notice.host) == (space, "A talk", "ada")
    assert not look(server, bob, space).reminder
    server.asks(bob, frames.Remind(id=ID, space=space))  # it is live: nothing to wait for
    assert not look(server, bob, space).reminder
    assert server.database.load().of(ReminderRecord) == []
    closes(server, record)
    server.refused(bob, frames.Remind(id=ID, space=space), ErrorCode.SPACE_ENDED)
    server.refused(bob, frames.Remind(id=ID, space="nowhere"), ErrorCode.NO_SUCH_SPACE)


def test_nobody_is_reminded_of_a_space_of_somebody_blocked(server: Policies) -> None:
    ada, bob, cem = server.people_of("ada", "bob", "cem")
    space = schedule(server, ada)
    for asker in (bob, cem):
        server.asks(asker, frames.Remind(id=ID, space=space))
    server.asks(ada, frames.Block(id=ID, person="bob"))
    opens(server, ada, space)
    assert [told for told, _ in server.take_told()] == [account(cem)]


def test_reminders_of_a_space_for_followers_are_for_followers(server: Policies) -> None:
    ada, bob = server.people_of("ada", "bob")
    space = schedule(server, ada, visibility=Visibility.FOLLOWERS)
    server.refused(bob, frames.Remind(id=ID, space=space), ErrorCode.FOLLOWERS_ONLY)
    server.asks(bob, frames.Follow(id=ID, person="ada"))
    server.asks(bob, frames.Remind(id=ID, space=space))
    server.asks(bob, frames.Unfollow(id=ID, person="ada"))
    server.asks(bob, frames.Remind(id=ID, space=space, on=False))


def test_an_account_has_so_many_reminders_at_most(server: Policies) -> None:
    hosts = server.people_of(*(f"host_{i}" for i in range(MAX_REMINDERS // MAX_SCHEDULED + 1)))
    bob = server.person("bob")
    spaces = [schedule(server, hosts[i // MAX_SCHEDULED]) for i in range(MAX_REMINDERS + 1)]
    for space in spaces[:-1]:
        server.asks(bob, frames.Remind(id=ID, space=space))
    server.refused(bob, frames.Remind(id=ID, space=spaces[-1]), ErrorCode.TOO_MANY)
    server.restart()
    server.refused(bob, frames.Remind(id=ID, space=spaces[-1]), ErrorCode.TOO_MANY)
    opens(server, hosts[0], spaces[0])
    server.asks(bob, frames.Remind(id=ID, space=spaces[-1]))


def test_everyone_is_reminded_by_the_same_effects_in_one_commit(server: Policies) -> None:
    ada, *others = server.people_of("ada", "bob", "cem", "dan")
    space = schedule(server, ada)
    for asker in others:
        server.asks(asker, frames.Remind(id=ID, space=space))
    _, effects = server.programme.open(ada, frames.Open(id=ID, space=space), server.now)
    server.carry_out(effects)
    assert [e.account for e in effects if isinstance(e, Keep)] == [account(a) for a in others]


# -- lists -----------------------------------------------------------------------------------------


def test_lists_show_what_somebody_may_find_without_a_link(server: Policies) -> None:
    ada, bob, cem = server.people_of("ada", "bob", "cem")
    server.asks(bob, frames.Follow(id=ID, person="ada"))
    spaces = {v: schedule(server, ada, visibility=v) for v in Visibility}
    public, followers, link = (spaces[v] for v in Visibility)
    for asker, seen in [
        (GUEST, {public}),
        (cem, {public}),
        (bob, {public, followers}),
        (ada, {public, followers}),
        (OPERATOR, {public, followers, link}),
    ]:
        assert set(upcoming_ids(server, asker)) == seen
        for space in spaces.values():  # who has the link finds any
            assert look(server, asker, space).id == space
    for space in spaces.values():
        record = opens(server, ada, space)
        assert (space in live_ids(server, GUEST)) == (space == public)
        assert (space in live_ids(server, bob)) == (space != link)
        closes(server, record)


@pytest.mark.parametrize("blocker", ["ada", "bob"])
def test_spaces_of_hosts_with_a_block_between_are_not_listed(
    server: Policies, blocker: str
) -> None:
    people = dict(zip(("ada", "bob"), server.people_of("ada", "bob"), strict=True))
    ada, bob = people["ada"], people["bob"]
    record = opens(server, ada)
    space = schedule(server, ada)
    assert (live_ids(server, bob), upcoming_ids(server, bob)) == ([record.id], [space])
    other = "bob" if blocker == "ada" else "ada"
    server.asks(people[blocker], frames.Block(id=ID, person=other))
    assert (live_ids(server, bob), upcoming_ids(server, bob)) == ([], [])
    assert live_ids(server, GUEST) == live_ids(server, ada) == [record.id]
    server.asks(people[blocker], frames.Unblock(id=ID, person=other))
    assert live_ids(server, bob) == [record.id]


def test_spaces_of_banned_hosts_are_not_listed(server: Policies) -> None:
    owner, ada = server.owner(), server.person("ada")
    schedule(server, ada)
    server.asks(owner, frames.Ban(id=ID, person="ada"))
    assert upcoming_ids(server, GUEST) == []


def test_spaces_with_people_one_follows_come_first_then_the_fullest(server: Policies) -> None:
    ada, bob, cem, dan = server.people_of("ada", "bob", "cem", "dan")
    small, large, huge = (opens(server, host).id for host in (ada, bob, cem))
    server.live[small] = LiveInfo(3, {account(ada), account(dan)})
    server.live[large] = LiveInfo(50, {account(bob)})
    server.live[huge] = LiveInfo(900, {account(cem)})
    server.later(1)
    assert live_ids(server, GUEST) == live_ids(server, dan) == [huge, large, small]
    server.asks(cem, frames.Follow(id=ID, person="dan"))
    assert live_ids(server, cem) == [small, huge, large]
    first, second, _ = live(server, cem).spaces
    assert (first.listeners, first.stage, first.followed) == (3, 2, True)
    assert (second.listeners, second.stage, second.followed) == (900, 1, False)


def test_counts_are_of_now_and_the_order_is_a_second_old_at_most(server: Policies) -> None:
    ada, bob = server.people_of("ada", "bob")
    one, two = (opens(server, host).id for host in (ada, bob))
    server.live.update({one: LiveInfo(2, set()), two: LiveInfo(1, set())})
    server.later(1)
    assert live_ids(server, GUEST) == [one, two]
    server.live[two] = LiveInfo(30, set())
    assert [s.listeners for s in live(server, GUEST).spaces] in ([2, 30], [30, 2])
    server.later(1)
    assert live_ids(server, GUEST) == [two, one]


def test_long_lists_come_in_pages(server: Policies) -> None:
    count = 2 * PAGE + 1
    hosts = server.people_of(*(f"host_{i}" for i in range(count)))
    spaces = [opens(server, host).id for host in hosts]
    for listeners, space in enumerate(spaces):
        server.live[space] = LiveInfo(listeners, set())
    server.later(1)
    found: list[str] = []
    after, sizes = 0, []
    while True:
        page = live(server, GUEST, after)
        found += [space.id for space in page.spaces]
        sizes.append(len(page.spaces))
        after = page.next
        if not after:
            break
    assert found == spaces[::-1]
    assert sizes == [PAGE, PAGE, 1]
    assert live(server, GUEST, 2**32 - 1) == frames.Spaces(re=ID, spaces=[])


def test_a_page_that_is_just_full_is_the_last(server: Policies) -> None:
    for host in server.people_of(*(f"host_{i}" for i in range(PAGE))):
        opens(server, host)
    assert len(live(server, GUEST).spaces) == PAGE
    assert live(server, GUEST).next == 0


def test_a_thousand_live_spaces_are_looked_at_once_for_many_who_ask(server: Policies) -> None:
    ada = server.person("ada")
    asked = 0

    def count(_: str) -> LiveInfo:
        nonlocal asked
        asked += 1
        return LiveInfo(asked, {account(ada)})

    spaces = tuple(
        SpaceRecord(
            id=f"s{i}",
            host=account(ada),
            title="x",
            settings=msgspec.msgpack.encode(Settings()),
            state=SpaceState.LIVE,
            starts_s=0,
            ended_s=0,
        )
        for i in range(1_000)
    )
    programme = module.Programme(Loaded(spaces), server.people, count, server._entropy)
    for _ in range(10):
        programme.handle(GUEST, frames.ListSpaces(id=ID), server.now)
    assert asked == 1_000 + 10 * PAGE


# -- who may show a space to all -------------------------------------------------------------------


def test_only_public_spaces_are_shown_to_all_by_anybody(server: Policies) -> None:
    ada, bob, cem = (account(a) for a in server.people_of("ada", "bob", "cem"))
    host = server.people.asker(server.people.devices_of(ada)[0].key)
    for visibility in Visibility:
        record = opens(server, host, settings=Settings(visibility=visibility))
        server.live[record.id] = LiveInfo(0, {ada, bob, cem}, hosts={ada, bob})
        assert server.programme.may_show(ada, record)
        assert server.programme.may_show(bob, record)
        assert server.programme.may_show(cem, record) == (visibility is Visibility.PUBLIC)
        closes(server, record)


def test_a_request_of_others_is_not_answered_here(server: Policies) -> None:
    ada = server.person("ada")
    with server.refusing(ErrorCode.UNKNOWN_TYPE):
        server.programme.handle(ada, frames.WhoAmI(id=ID), server.now)


# -- what it costs --------------------------------------------------------------------------------


def test_all_scheduled_spaces_together_have_a_limit(
    server: Policies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spaces_server.policy.programme.MAX_ALL_SCHEDULED", 3)
    ada, bob = server.people_of("ada", "bob")
    first, *_ = [schedule(server, host) for host in (ada, bob, bob)]
    starts = server.now.utc_s + 60
    request = frames.Schedule(id=ID, title="one too many", starts=starts)
    server.refused(ada, request, ErrorCode.TOO_MANY)
    server.asks(ada, frames.CancelSpace(id=ID, space=first))
    schedule(server, ada)


def test_a_page_of_what_is_to_come_looks_at_no_more_than_it_shows(
    server: Policies, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = 0
    settings_of = module.settings_of

    def count(record: SpaceRecord) -> Settings:
        nonlocal looked
        looked += 1
        return settings_of(record)

    monkeypatch.setattr(module, "settings_of", count)
    hosts = server.people_of(*(f"host_{i}" for i in range(PAGE)))
    soon = [schedule(server, host, 60) for host in hosts]
    late = [schedule(server, host, 120) for _ in range(5) for host in hosts]
    looked = 0
    assert upcoming_ids(server, GUEST) == sorted(soon)
    assert looked == 2 * PAGE + 1  # to be shown, and to say so; and one that there is more
    server.asks(hosts[0], frames.CancelSpace(id=ID, space=soon[0]))
    assert upcoming_ids(server, GUEST) == [*sorted(soon[1:]), min(late)]
