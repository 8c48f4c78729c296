"""A space as pure policy: coming and going, the stage, safety, chat, reactions, invites.

Who may do what to whom is in test_roles.py, whole evenings are in test_authority.py."""

from typing import Any

import msgspec
import pytest

from protocol import frames
from protocol.clock import samples_at
from protocol.connection import MS
from protocol.frames import ErrorCode, Member, Settings, SpaceState, Visibility, WhoSpeaks
from protocol.roles import Role
from protocol.state_hash import StateHash
from spaces_server.policy.effects import (
    Asker,
    Effect,
    GainSet,
    Invited,
    Left,
    RefusedError,
    Save,
    SourceAdded,
    SourceRemoved,
    SpaceEnded,
    Staged,
    Tell,
)
from spaces_server.policy.feed import GATHER_NS
from spaces_server.policy.gathering import MAX_STAGE, SEATS
from spaces_server.policy.invites import MAX_INVITES
from spaces_server.policy.space import (
    MAX_HANDS,
    MAX_OFFERS,
    ROSTER_PAGE,
    SpaceRules,
)
from spaces_server.policy.talk import LINES_A_SECOND, MAX_LINES
from spaces_server.policy.volumes import MAX_MIXES, MAX_VOLUMES
from spaces_server.records import Drop, InviteRecord, Put, RemovalRecord, SpaceRecord, StageRecord
from tests.unit.town import ID, START, S, Scene, at, state

EVERYONE = Settings(who_speaks=WhoSpeaks.EVERYONE)


def told(effects: list[Effect], kind: type[frames.Frame]) -> list[int]:
    """Which members got a notice of that kind."""
    return [e.member for e in effects if isinstance(e, Tell) and isinstance(e.frame, kind)]


def saved(effects: list[Effect]) -> list[Any]:
    return [change for e in effects if isinstance(e, Save) for change in e.changes]


def gains(effects: list[Effect]) -> set[tuple[int, int, float]]:
    return {(e.hearer, e.source, e.gain) for e in effects if isinstance(e, GainSet)}


def mixing(effects: list[Effect]) -> list[Effect]:
    return [e for e in effects if isinstance(e, SourceAdded | SourceRemoved)]


def people(scene: Scene) -> dict[int, Member]:
    """Everybody, by the pages of the roster."""
    found: dict[int, Member] = {}
    while True:
        page = scene.asks(scene.host, frames.Roster, after=max(found, default=0))
        found |= {m.id: m for m in page.members}
        if not page.more:
            return found


def updates(scene: Scene, member: int, after: int = 0) -> list[frames.Update]:
    answer = scene.asks(member, frames.CatchUp, after=after)
    found = [frames.decode_update(u) for u in answer.updates]
    return [u for u in found if u is not None]


def batches(scene: Scene) -> list[tuple[frames.FeedBatch, list[int] | None]]:
    """What goes out next."""
    due_ns = scene.space.due_ns
    assert due_ns is not None
    assert scene.space.batches(due_ns - 1) == []
    return [(frames.decode_feed(data), to) for data, to in scene.space.batches(due_ns)]


# -- coming ---------------------------------------------------------------------------------------


def test_opening() -> None:
    scene = Scene()
    host = Member(id=1, name="Person 1", handle="p1", role=Role.HOST, seat=0)
    assert scene.space.view(scene.host) == host
    assert mixing(scene.heard) == [SourceAdded(scene.host, 0)]
    assert {type(change.record) for change in saved(scene.heard)} == {SpaceRecord, StageRecord}
    assert (len(scene.space), scene.space.listeners) == (1, 0)
    joined = scene.space.joined(ID, scene.host)
    assert (joined.re, joined.space, joined.you) == (ID, "room", host)
    assert joined.snapshot.members == [host]
    assert len(joined.reactions) == 6
    assert not joined.evidence
    assert Scene(evidence=True).space.joined(ID, 1).evidence


def test_a_listener_changes_only_the_count_and_leaves_no_trace() -> None:
    scene = Scene()
    number = scene.space.feed.number
    member = scene.enters(2)
    assert scene.heard == []
    assert scene.space.view(member) == Member(id=member, name="Person 2", handle="p2")
    ((batch, to),) = batches(scene)
    assert to is None
    count = frames.encode_update(frames.ListenersUpdate(count=1))
    assert batch.updates[number:] == [count]
    assert scene.does(member, frames.Leave) == [Left(member)]


def test_a_guest_listens() -> None:
    scene = Scene()
    member = scene.enters("  Jose\u0301 ")
    assert scene.space.view(member) == Member(id=member, name="José", role=Role.GUEST)
    assert scene.space.member_of(scene.askers[member].key) == member
    assert scene.space.member_of(b"nobody") is None
    scene.locked_out(ErrorCode.BAD_TEXT, "Bo", name="\x1b[2J")
    scene.locked_out(ErrorCode.NO_ACCOUNT, "Bo", scene.invite(Role.SPEAKER))


def test_names_come_from_the_account() -> None:
    scene = Scene()
    member = scene.enters(2, name="The Host")
    assert scene.space.view(member).name == "Person 2"


def test_a_full_space() -> None:
    scene = Scene(max_members=3)
    speaker = scene.speaker(2)
    scene.took(scene.space.lost(speaker, scene.now))
    scene.enters(3)
    scene.locked_out(ErrorCode.SPACE_FULL, 4)
    scene.enters(3, device=1)  # whoever is in may come back
    scene.enters(2)  # and the kept place was counted


def test_followers_only() -> None:
    scene = Scene(Settings(visibility=Visibility.FOLLOWERS))
    scene.locked_out(ErrorCode.FOLLOWERS_ONLY, 2)
    scene.locked_out(ErrorCode.FOLLOWERS_ONLY, "a guest")
    scene.locked_out(ErrorCode.BAD_INVITE, 2, "made-up")
    scene.town.followed.add((2, 1))
    scene.enters(2)
    scene.enters(3, scene.invite(Role.LISTENER))
    scene.enters("a guest", scene.invite(Role.LISTENER))
    scene.town.followed.clear()
    scene.enters(2, device=1)  # is here


@pytest.mark.parametrize("visibility", [Visibility.PUBLIC, Visibility.LINK])
def test_whoever_has_the_link_may_come(visibility: Visibility) -> None:
    Scene(Settings(visibility=visibility)).enters(2)


def test_a_warning_before_hearing_somebody_whom_one_blocked() -> None:
    scene = Scene()
    speaker = scene.speaker(2)
    scene.town.blocked.add((3, 2))
    assert "Person 2" in scene.locked_out(ErrorCode.SOMEONE_BLOCKED, 3)
    member = scene.enters(3, despite_blocked=True)
    assert gains(scene.heard) == {(member, speaker, 0.0)}
    scene.town.blocked = {(2, 4)}  # whoever was blocked is not told
    member = scene.enters(4)
    assert gains(scene.heard) == {(member, speaker, 0.0)}


def test_checking_entry_says_which_invite_is_used() -> None:
    scene = Scene()
    token = scene.invite()
    asker = scene.town.asker(2)
    request = frames.Join(id=ID, space="room", invite=token)
    invite = scene.space.check_entry(asker, request, scene.now)
    assert invite is not None
    assert (invite.token, invite.uses, invite.issuer) == (token, 0, 1)
    assert scene.space.check_entry(asker, frames.Join(id=ID, space="room"), scene.now) is None
    assert scene.space.member_of(2) is None


# -- going ----------------------------------------------------------------------------------------


def test_leaving() -> None:
    scene = Scene()
    speaker, listener = scene.speaker(2), scene.enters(3)
    effects = scene.does(speaker, frames.Leave)
    assert saved(effects) == [Drop(StageRecord, {"space": "room", "account": 2})]
    assert effects[1:] == [SourceRemoved(speaker), Left(speaker)]
    assert scene.does(listener, frames.Leave) == [Left(listener)]
    assert set(people(scene)) == {scene.host}


def test_the_longest_serving_co_host_takes_over() -> None:
    scene = Scene()
    first, second = scene.co_host(2), scene.co_host(3)
    scene.does(scene.host, frames.Dismiss, member=first)
    scene.does(scene.host, frames.Appoint, member=first)  # begins anew
    effects = scene.took(scene.space.leave(scene.host, scene.now))
    assert scene.space.view(second).role is Role.HOST
    assert scene.space.record.host == 3
    assert told(effects, frames.You) == [second]
    assert not scene.space.ended
    scene.does(second, frames.Leave)
    assert scene.space.view(first).role is Role.HOST


def test_without_a_co_host_the_space_ends() -> None:
    scene = Scene()
    scene.speaker(2)
    listener = scene.enters(3)
    effects = scene.does(scene.host, frames.Leave)
    assert scene.space.ended
    assert told(effects, frames.Ended) == [2, listener]
    assert effects[-1] == SpaceEnded("the host has left")


def test_the_hosts_place_is_kept_for_a_while() -> None:
    scene = Scene(grace_s=60)
    co_host = scene.co_host(2)
    effects = scene.took(scene.space.lost(scene.host, scene.now))
    assert effects == [SourceRemoved(scene.host), Left(scene.host)]
    assert scene.space.due_ns is not None
    assert scene.after(59.9) == []
    assert scene.space.view(co_host).role is Role.CO_HOST
    back = scene.enters(1, device=1)
    assert scene.space.view(back).role is Role.HOST
    assert saved(scene.heard) == []  # it was never given away
    scene.after(60)
    assert scene.space.view(back).role is Role.HOST


def test_a_host_who_is_gone_for_too_long_is_followed_by_a_co_host_who_is_here() -> None:
    scene = Scene(grace_s=60)
    gone, here = scene.co_host(2), scene.co_host(3)
    scene.took(scene.space.lost(scene.host, scene.now))
    scene.took(scene.space.lost(gone, scene.now))
    effects = scene.after(60)
    assert scene.space.view(here).role is Role.HOST
    assert told(effects, frames.You) == [here]
    assert scene.space.view(scene.enters(1)).role is Role.LISTENER
    assert scene.space.view(scene.enters(2)).role is Role.LISTENER


def test_a_space_whose_host_is_gone_for_too_long_ends() -> None:
    scene = Scene(grace_s=60)
    scene.speaker(2)
    scene.took(scene.space.lost(scene.host, scene.now))
    assert SpaceEnded("the host is gone") in scene.after(60)
    assert scene.space.due_ns is None


def test_a_speakers_place_is_kept_for_a_while() -> None:
    scene = Scene(stage_size=2, grace_s=60)
    speaker, listener = scene.speaker(2), scene.enters(3)
    scene.does(scene.host, frames.Mute, member=speaker)
    scene.took(scene.space.lost(speaker, scene.now))
    assert {m.id for m in scene.space.snapshot().members} == {scene.host}
    assert scene.space.stage_accounts() == {1}
    scene.does(listener, frames.RaiseHand)
    scene.refused(ErrorCode.STAGE_FULL, scene.host, frames.BringUp, member=listener)
    back = scene.enters(2)
    view = scene.space.view(back)
    assert (view.role, view.muted, view.held) == (Role.SPEAKER, True, True)
    assert mixing(scene.heard) == []
    scene.took(scene.space.lost(back, scene.now))
    effects = scene.after(60)
    assert saved(effects) == [Drop(StageRecord, {"space": "room", "account": 2})]
    scene.does(scene.host, frames.BringUp, member=listener)


def test_a_listener_who_is_lost_is_gone() -> None:
    scene = Scene()
    member = scene.enters(2)
    scene.does(member, frames.RaiseHand)
    assert scene.took(scene.space.lost(member, scene.now)) == [Left(member)]
    assert scene.space.view(scene.enters(2)).hand == 0


@pytest.mark.parametrize("role", Role)
def test_the_same_person_on_another_device(role: Role) -> None:
    scene = Scene(stage_size=3)  # full
    who: dict[Role, int | str] = {
        Role.HOST: 1,
        Role.CO_HOST: 2,
        Role.SPEAKER: 3,
        Role.LISTENER: 4,
        Role.GUEST: "guest",
    }
    scene.co_host(2)
    scene.speaker(3)
    scene.enters(4)
    scene.enters("guest")
    old = scene.space.member_of(scene.town.asker(who[role]).who)
    assert old is not None
    new = scene.enters(who[role], device=1)
    view = scene.space.view(new)
    assert view.role is role
    assert saved(scene.heard) == []
    if role.on_stage:
        assert isinstance(view.seat, int)
        assert scene.heard == [
            SourceRemoved(old), Left(old), Staged(new, True), SourceAdded(new, view.seat)
        ]  # fmt: skip
    else:
        assert scene.heard == [Left(old)]
    assert scene.space.member_of(scene.askers[new].who) == new


def test_whoever_comes_twice_stays_muted() -> None:
    scene = Scene()
    scene.does(scene.host, frames.Mute)
    again = scene.enters(1, device=1)
    assert (scene.space.view(again).role, scene.space.view(again).muted) == (Role.HOST, True)
    assert mixing(scene.heard) == []
    assert len(scene.space) == 1


def test_the_expelled_lose_their_place_at_once() -> None:
    scene = Scene()
    speaker = scene.speaker(2)
    assert mixing(scene.took(scene.space.expel({2}, scene.now))) == [SourceRemoved(speaker)]
    assert scene.space.view(scene.enters(2)).role is Role.LISTENER
    lost = scene.speaker(3)
    scene.took(scene.space.lost(lost, scene.now))
    scene.took(scene.space.expel({3}, scene.now))
    assert scene.space.view(scene.enters(3)).role is Role.LISTENER
    assert scene.took(scene.space.expel({99}, scene.now)) == []
    assert SpaceEnded("the host is gone") in scene.took(scene.space.expel({1}, scene.now))


def test_closing_tells_all_and_leaves_what_the_policy_lists() -> None:
    scene = Scene()
    members = [scene.host, scene.co_host(2), scene.speaker(3), scene.enters(4), scene.enters("g")]
    gone = scene.enters(5)
    scene.does(scene.host, frames.Remove, member=gone)
    scene.invite()
    scene.does(scene.host, frames.Chat, text="a secret line")
    scene.does(scene.host, frames.React, emoji="🔥")
    effects = scene.does(scene.host, frames.Close)
    assert told(effects, frames.Ended) == members
    assert effects[-1] == SpaceEnded("the host closed it")
    (record,) = scene.image.of(SpaceRecord)
    assert (record.state, record.ended_s) == (SpaceState.ENDED, scene.now.utc_s)
    assert scene.image.of(StageRecord) == scene.image.of(InviteRecord) == []
    assert [r.account for r in scene.image.of(RemovalRecord)] == [5]
    assert len(scene.space) == 0
    assert scene.space.batches(at(3600).ns) == []
    scene.locked_out(ErrorCode.SPACE_ENDED, 6)
    with pytest.raises(RefusedError) as error:
        scene.space.handle(scene.host, scene.askers[1], frames.Look(id=ID), scene.now)
    assert error.value.code == ErrorCode.SPACE_ENDED
    assert scene.took(scene.space.end("again", scene.now)) == []


# -- after a restart of the server ----------------------------------------------------------------


def test_a_restart_keeps_roles_settings_removals_and_invites() -> None:
    scene = Scene(grace_s=60)
    scene.co_host(2)
    scene.does(scene.host, frames.Mute, member=scene.speaker(3))
    scene.does(scene.host, frames.Configure, title="new title", slow_s=7)
    scene.does(scene.host, frames.Remove, member=scene.enters(4))
    scene.does(scene.host, frames.Remove, member=scene.enters("guest"))
    token = scene.invite()
    scene.space = scene.restored()
    assert scene.space.snapshot().title == "new title"
    assert scene.space.snapshot().settings.slow_s == 7
    assert scene.space.snapshot().members == []
    scene.locked_out(ErrorCode.REMOVED, 4)
    scene.locked_out(ErrorCode.REMOVED, "guest")
    scene.enters(5, token)
    views = [scene.space.view(scene.enters(who)) for who in (1, 2, 3)]
    assert [v.role for v in views] == [Role.HOST, Role.CO_HOST, Role.SPEAKER]
    assert [v.held for v in views] == [False, False, True]


def test_who_does_not_come_back_after_a_restart_loses_the_place() -> None:
    scene = Scene(grace_s=60)
    scene.co_host(2)
    scene.space = scene.restored()
    scene.enters(2)
    scene.after(60)
    co_host = scene.space.member_of(2)
    assert co_host is not None
    assert scene.space.view(co_host).role is Role.HOST
    scene = Scene(grace_s=60)
    scene.space = scene.restored()
    assert SpaceEnded("the host is gone") in scene.after(60)


# -- the stage ------------------------------------------------------------------------------------


def test_the_hand() -> None:
    scene = Scene()
    member = scene.enters(2)
    effects = scene.does(member, frames.RaiseHand)
    raised = Member(id=member, name="Person 2", handle="p2", hand=START.utc_s)
    assert effects == [Tell(member, frames.You(space="room", you=raised))]
    assert raised in scene.space.snapshot().members
    number = scene.space.feed.number
    scene.after(10)
    scene.does(member, frames.RaiseHand)
    assert scene.space.feed.number == number  # raising a raised hand changes nothing
    scene.does(scene.host, frames.LowerHand, member=member)
    assert member not in {m.id for m in scene.space.snapshot().members}
    down = frames.MemberUpdate(member=Member(id=member, name="Person 2", handle="p2"))
    assert updates(scene, member, number) == [down]


def test_hands_are_in_the_order_of_raising() -> None:
    scene = Scene()
    members = [scene.enters(who) for who in (2, 3, 4)]
    for member in reversed(members):
        scene.does(member, frames.RaiseHand)
    scene.does(members[1], frames.LowerHand)
    scene.does(members[1], frames.RaiseHand)
    hands = [m.id for m in scene.space.snapshot().members if m.hand]
    assert hands == [members[2], members[0], members[1]]


def test_snapshots_and_pages_of_the_longest_names_fit_a_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(EVERYONE, stage_size=MAX_STAGE)
    account = scene.town.account
    full = {"name": "𝄞" * frames.MAX_NAME_CHARS, "handle": "𐐨" * frames.MAX_HANDLE_CHARS}
    monkeypatch.setattr(
        scene.town, "account", lambda who: msgspec.structs.replace(account(who), **full)
    )
    members = [scene.enters(who) for who in range(2, MAX_STAGE + MAX_HANDS + 2)]
    for member in members[: MAX_STAGE - 1]:
        scene.does(member, frames.StepUp)
        scene.does(scene.host, frames.Mute, member=member)
    for member in members[MAX_STAGE - 1 : -1]:
        scene.does(member, frames.RaiseHand)
    scene.refused(ErrorCode.HANDS_FULL, members[-1], frames.RaiseHand)
    scene.does(members[-2], frames.RaiseHand)  # it is up already
    scene.does(scene.host, frames.Configure, title="𝄞" * frames.MAX_TITLE_CHARS)
    joined = scene.space.joined(ID, members[0])
    assert len(joined.snapshot.members) == MAX_STAGE + MAX_HANDS
    assert len(frames.encode(joined)) <= frames.MAX_FRAME_BYTES
    page = scene.asks(members[0], frames.Roster)
    assert len(page.members) == ROSTER_PAGE <= frames.MAX_PAGE
    assert len(frames.encode(page)) <= frames.MAX_FRAME_BYTES


def test_bringing_up_needs_a_hand_and_a_place() -> None:
    scene = Scene(stage_size=2)
    first, second = scene.enters(2), scene.enters(3)
    scene.refused(ErrorCode.NO_HAND, scene.host, frames.BringUp, member=first)
    for member in (first, second):
        scene.does(member, frames.RaiseHand)
    effects = scene.does(scene.host, frames.BringUp, member=first)
    up = Member(id=first, name="Person 2", handle="p2", role=Role.SPEAKER, seat=1)
    assert effects[1:] == [
        Staged(first, True),
        SourceAdded(first, 1),
        Tell(first, frames.You(space="room", you=up)),
    ]
    assert [p.record.account for p in saved(effects)] == [2]
    scene.refused(ErrorCode.STAGE_FULL, scene.host, frames.BringUp, member=second)
    scene.does(scene.host, frames.TakeDown, member=first)
    scene.does(scene.host, frames.BringUp, member=second)


def test_an_offer_to_speak() -> None:
    scene = Scene(stage_size=3)
    listener = scene.enters(2)
    scene.refused(ErrorCode.NOT_OFFERED, listener, frames.Accept)
    scene.refused(ErrorCode.NOT_OFFERED, listener, frames.Decline)
    offered = Tell(listener, frames.Offered(space="room", by=scene.host))
    assert scene.does(scene.host, frames.Offer, member=listener) == [offered]
    assert scene.does(listener, frames.Decline) == [
        Tell(scene.host, frames.Declined(space="room", member=listener))
    ]
    scene.refused(ErrorCode.NOT_OFFERED, listener, frames.Accept)
    scene.does(scene.host, frames.Offer, member=listener)
    scene.does(listener, frames.Accept)
    assert scene.space.view(listener).role is Role.SPEAKER
    scene.does(listener, frames.TakeDown)
    scene.refused(ErrorCode.NOT_OFFERED, listener, frames.Accept)  # it was used
    third = scene.enters(3)
    scene.does(scene.host, frames.Offer, member=third)
    scene.speaker(4)
    scene.speaker(5)
    scene.refused(ErrorCode.STAGE_FULL, third, frames.Accept)
    scene.does(scene.space.member_of(4) or 0, frames.TakeDown)
    scene.does(third, frames.Accept)  # it still holds


def test_offers_have_a_limit() -> None:
    scene = Scene()
    members = [scene.enters(who) for who in range(2, MAX_OFFERS + 3)]
    for member in members[:-1]:
        scene.does(scene.host, frames.Offer, member=member)
    scene.refused(ErrorCode.TOO_MANY, scene.host, frames.Offer, member=members[-1])
    scene.does(scene.host, frames.Offer, member=members[0])
    scene.does(members[0], frames.Leave)
    scene.does(scene.host, frames.Offer, member=members[-1])


def test_offers_and_blocks() -> None:
    scene = Scene()
    listener = scene.enters(2)
    scene.town.blocked.add((2, 1))
    assert scene.does(scene.host, frames.Offer, member=listener) == []  # nobody notices
    scene.refused(ErrorCode.NOT_OFFERED, listener, frames.Accept)
    scene.town.blocked = {(1, 2)}
    scene.refused(ErrorCode.BLOCKED, scene.host, frames.Offer, member=listener)


def test_stepping_up() -> None:
    scene = Scene(stage_size=3)
    first, second, third = (scene.enters(who) for who in (2, 3, 4))
    scene.refused(ErrorCode.NOT_ALLOWED, first, frames.StepUp)
    scene.does(scene.host, frames.Configure, who_speaks=WhoSpeaks.FOLLOWED)
    scene.refused(ErrorCode.NOT_ALLOWED, first, frames.StepUp)
    scene.town.followed.add((1, 2))
    scene.does(first, frames.StepUp)
    scene.does(scene.host, frames.Configure, who_speaks=WhoSpeaks.EVERYONE)
    scene.does(second, frames.StepUp)
    scene.refused(ErrorCode.STAGE_FULL, third, frames.StepUp)


def test_co_hosts_are_few() -> None:
    scene = Scene()
    scene.co_host(2)
    second, third = scene.co_host(3), scene.speaker(4)
    scene.refused(ErrorCode.CO_HOSTS_FULL, scene.host, frames.Appoint, member=third)
    token = scene.invite(Role.CO_HOST)
    scene.locked_out(ErrorCode.CO_HOSTS_FULL, 5, token)
    scene.took(scene.space.lost(second, scene.now))
    scene.refused(ErrorCode.CO_HOSTS_FULL, scene.host, frames.Appoint, member=third)


def test_appointing_and_dismissing_keep_seat_and_source() -> None:
    scene = Scene()
    speaker = scene.speaker(2)
    seat = scene.space.view(speaker).seat
    for kind, role in ((frames.Appoint, Role.CO_HOST), (frames.Dismiss, Role.SPEAKER)):
        effects = scene.does(scene.host, kind, member=speaker)
        view = scene.space.view(speaker)
        assert effects[1:] == [Tell(speaker, frames.You(space="room", you=view))]
        assert (view.role, view.seat) == (role, seat)


def test_handing_over() -> None:
    scene = Scene()
    speaker = scene.speaker(2)
    effects = scene.does(scene.host, frames.HandOver, member=speaker)
    assert scene.space.view(speaker).role is Role.HOST
    assert scene.space.view(scene.host).role is Role.CO_HOST
    assert sorted(told(effects, frames.You)) == [scene.host, speaker]
    (record,) = scene.image.of(SpaceRecord)
    assert record == scene.space.record
    assert record.host == 2
    full = Scene()
    full.co_host(2)
    full.co_host(3)
    full.does(full.host, frames.HandOver, member=full.speaker(4))
    assert full.space.view(full.host).role is Role.SPEAKER


def test_a_new_host_can_always_unmute() -> None:
    scene = Scene()
    speaker = scene.speaker(2)
    scene.does(scene.host, frames.Mute, member=speaker)
    scene.does(scene.host, frames.HandOver, member=speaker)
    assert scene.space.view(speaker).muted
    scene.does(speaker, frames.Unmute)


def test_muting_somebody_holds_them() -> None:
    scene = Scene()
    speaker = scene.speaker(2)
    effects = scene.does(scene.host, frames.Mute, member=speaker)
    you = Tell(speaker, frames.You(space="room", you=scene.space.view(speaker)))
    assert effects[1:] == [SourceRemoved(speaker), you]
    assert [(p.record.muted, p.record.held) for p in saved(effects)] == [(True, True)]
    number = scene.space.feed.number
    assert scene.does(scene.host, frames.Mute, member=speaker) == [you]
    assert scene.space.feed.number == number  # muting the muted changes nothing
    scene.refused(ErrorCode.MUTED_BY_MODERATOR, speaker, frames.Unmute)
    assert mixing(scene.does(scene.host, frames.LetUnmute, member=speaker)) == []
    seat = scene.space.view(speaker).seat
    assert isinstance(seat, int)
    assert mixing(scene.does(speaker, frames.Unmute)) == [SourceAdded(speaker, seat)]


def test_muting_oneself_holds_nobody() -> None:
    scene = Scene()
    speaker = scene.speaker(2)
    scene.does(speaker, frames.Mute)
    scene.does(speaker, frames.Unmute)
    scene.does(speaker, frames.Mute)
    scene.does(scene.host, frames.Mute, member=speaker)  # now they are held
    scene.refused(ErrorCode.MUTED_BY_MODERATOR, speaker, frames.Unmute)


def test_free_unmute() -> None:
    scene = Scene()
    held, free = scene.speaker(2), scene.speaker(3)
    scene.does(scene.host, frames.Mute, member=held)
    scene.does(scene.host, frames.Configure, free_unmute=True)
    assert scene.space.view(held).held
    scene.does(held, frames.Unmute)
    scene.does(scene.host, frames.Mute, member=free)
    assert not scene.space.view(free).held
    scene.does(free, frames.Unmute)


@pytest.mark.parametrize("how", ["down and up", "leave and join", "other link"])
def test_a_hold_is_not_shaken_off(how: str) -> None:
    scene = Scene(EVERYONE)
    token = scene.invite()
    member = scene.enters(2, token)
    scene.does(scene.host, frames.Mute, member=member)
    if how == "down and up":
        scene.does(member, frames.TakeDown)
    else:
        scene.does(member, frames.Leave)
        member = scene.enters(2, scene.invite() if how == "other link" else token)
    if how != "other link":
        assert scene.space.view(member).role is Role.LISTENER
        scene.does(member, frames.StepUp)
    assert scene.space.view(member).held
    scene.does(member, frames.TakeDown)
    scene.does(member, frames.RaiseHand)
    scene.does(scene.host, frames.BringUp, member=member)  # a moderator wants to hear them
    assert not scene.space.view(member).muted


def test_muting_all() -> None:
    scene = Scene()
    co_host, other, here, gone = scene.co_host(2), scene.co_host(3), scene.speaker(4), 5
    scene.took(scene.space.lost(scene.speaker(gone), scene.now))
    effects = scene.does(co_host, frames.MuteAll)
    assert mixing(effects) == [SourceRemoved(here)]
    assert told(effects, frames.You) == [here]
    assert not scene.space.view(other).muted
    assert scene.space.view(scene.enters(gone)).held
    effects = scene.does(scene.host, frames.MuteAll)
    assert mixing(effects) == [SourceRemoved(co_host), SourceRemoved(other)]
    assert scene.space.speaks(scene.host)


def test_taking_down() -> None:
    scene = Scene()
    speaker = scene.speaker(2)
    effects = scene.does(scene.host, frames.TakeDown, member=speaker)
    down = Member(id=speaker, name="Person 2", handle="p2")
    assert effects[1:] == [
        Staged(speaker, False),
        SourceRemoved(speaker),
        Tell(speaker, frames.You(space="room", you=down)),
    ]
    muted = scene.speaker(3)
    scene.does(muted, frames.Mute)
    assert mixing(scene.does(scene.host, frames.TakeDown, member=muted)) == []


def test_seats_are_not_reused_soon_and_never_taken_twice() -> None:
    scene = Scene(EVERYONE)
    member = scene.enters(2)
    seats: list[Any] = []
    for _ in range(2 * SEATS):
        scene.does(member, frames.StepUp)
        seats.append(scene.space.view(member).seat)
        scene.does(member, frames.TakeDown)
    assert scene.space.view(scene.host).seat not in seats
    assert len(set(seats[: SEATS - 1])) == SEATS - 1


def test_settings() -> None:
    scene = Scene()
    number = scene.space.feed.number
    effects = scene.does(scene.host, frames.Configure, title="  a café  ", chat=False)
    (put,) = saved(effects)
    assert put == Put(scene.space.record)
    assert msgspec.msgpack.decode(put.record.settings, type=Settings) == Settings(chat=False)
    assert updates(scene, scene.host, number) == [
        frames.SettingsUpdate(title="a café", settings=Settings(chat=False))
    ]
    assert scene.does(scene.host, frames.Configure, chat=False) == []
    scene.refused(ErrorCode.BAD_TEXT, scene.host, frames.Configure, title="\x1b[2J", slow_s=9)


def test_a_new_name_is_told() -> None:
    scene = Scene()
    number = scene.space.feed.number
    scene.town.names[1] = "Ada"
    assert told(scene.took(scene.space.renamed(1, scene.now)), frames.You) == [scene.host]
    (update,) = updates(scene, scene.host, number)
    assert isinstance(update, frames.MemberUpdate)
    assert update.member.name == "Ada"
    assert scene.took(scene.space.renamed(99, scene.now)) == []


@pytest.mark.parametrize("kind", [frames.BringUp, frames.Mute, frames.Remove, frames.SetVolume])
def test_acting_on_nobody(kind: type[frames.Request]) -> None:
    scene = Scene()
    fields = {"percent": 5} if kind is frames.SetVolume else {}
    scene.refused(ErrorCode.NO_SUCH_MEMBER, scene.host, kind, member=2**32 - 1, **fields)


def test_requests_that_are_not_for_a_space() -> None:
    scene = Scene()
    for kind in (frames.Open, frames.WhoAmI):
        scene.refused(ErrorCode.UNKNOWN_TYPE, scene.host, kind)


# -- removal, blocks, volumes ---------------------------------------------------------------------


def test_removal_sticks() -> None:
    scene = Scene()
    token = scene.invite()
    speaker = scene.speaker(2)
    effects = scene.does(scene.host, frames.Remove, member=speaker)
    assert told(effects, frames.Removed) == [speaker]
    assert effects.index(SourceRemoved(speaker)) < effects.index(Left(speaker))
    assert [r.account for r in scene.image.of(RemovalRecord)] == [2]
    assert [r.account for r in scene.image.of(StageRecord)] == [1]
    for device in (0, 1):
        scene.locked_out(ErrorCode.REMOVED, 2, token, device=device)
    scene.refused(ErrorCode.REMOVED, scene.host, frames.InvitePerson, person="p2")


def test_a_removed_guest_stays_out_by_key_account_and_address() -> None:
    scene = Scene()
    guest = scene.enters("guest", host=b"1.2.3.4")
    scene.enters("neighbour", host=b"1.2.3.4")
    scene.does(scene.host, frames.Remove, member=guest)
    scene.locked_out(ErrorCode.REMOVED, "guest", host=b"5.6.7.8")
    scene.locked_out(ErrorCode.REMOVED, "somebody", host=b"1.2.3.4")
    scene.enters("somebody", host=b"5.6.7.8")
    scene.enters(2, host=b"1.2.3.4")  # whom an account tells apart
    registered = Asker(scene.askers[guest].key, scene.town.account(3))
    with pytest.raises(RefusedError) as error:
        scene.space.enter(registered, frames.Join(id=ID, space="room"), scene.now)
    assert error.value.code == ErrorCode.REMOVED


def test_who_was_removed_does_not_come_back_as_a_guest() -> None:
    scene = Scene()
    member = scene.enters(2, host=b"1.2.3.4")
    scene.does(scene.host, frames.Remove, member=member)
    scene.locked_out(ErrorCode.REMOVED, "guest", host=b"1.2.3.4")
    scene.enters("guest", host=b"5.6.7.8")
    scene.enters(3, host=b"1.2.3.4")


def test_removal_by_the_server_also_of_the_absent_and_the_host() -> None:
    scene = Scene()
    effects = scene.took(scene.space.remove(9, 50, scene.now, "enough"))
    (put,) = saved(effects)
    assert (put.record.account, put.record.moderator, put.record.at_s) == (9, 50, START.utc_s)
    assert len(effects) == 1
    assert scene.took(scene.space.remove(9, 50, scene.now, "enough")) == []
    scene.locked_out(ErrorCode.REMOVED, 9)
    lost = scene.speaker(2)
    scene.took(scene.space.lost(lost, scene.now))
    scene.took(scene.space.remove(2, 50, scene.now, "enough"))
    assert [r.account for r in scene.image.of(StageRecord)] == [1]
    co_host = scene.co_host(3)
    effects = scene.took(scene.space.remove(1, 50, scene.now, "enough"))
    assert Tell(scene.host, frames.Removed(space="room", text="enough")) in effects
    assert scene.space.view(co_host).role is Role.HOST


def test_the_hosts_block_keeps_out() -> None:
    scene = Scene()
    scene.town.blocked.add((1, 2))
    assert "host" in scene.locked_out(ErrorCode.BLOCKED, 2, scene.invite())
    scene.town.blocked = {(3, 1)}
    speaker = scene.speaker(4)
    scene.town.blocked = {(1, 4)}
    effects = scene.took(scene.space.blocks_changed(1, 4, scene.now))
    assert told(effects, frames.Removed) == [speaker]
    assert Left(speaker) in effects
    assert scene.took(scene.space.blocks_changed(1, 99, scene.now)) == []
    scene.town.blocked = set()
    scene.locked_out(ErrorCode.REMOVED, 4)


def test_a_block_silences_both_ways() -> None:
    scene = Scene()
    speaker, listener = scene.speaker(2), scene.enters(3)
    scene.town.blocked.add((3, 2))
    effects = scene.took(scene.space.blocks_changed(3, 2, scene.now))
    assert gains(effects) == {(listener, speaker, 0.0), (speaker, listener, 0.0)}
    assert told(effects, frames.BlockedOnStage) == [listener]
    scene.town.blocked.clear()
    effects = scene.took(scene.space.blocks_changed(3, 2, scene.now))
    assert gains(effects) == {(listener, speaker, 1.0), (speaker, listener, 1.0)}


def test_whoever_comes_on_stage_is_not_heard_across_a_block() -> None:
    scene = Scene()
    blocker, blocked, other = scene.enters(2), scene.enters(3), scene.enters(4)
    scene.town.blocked = {(2, 4), (4, 3)}
    scene.does(other, frames.RaiseHand)
    effects = scene.does(scene.host, frames.BringUp, member=other)
    assert gains(effects) == {(blocker, other, 0.0), (blocked, other, 0.0)}
    assert told(effects, frames.BlockedOnStage) == [blocker]
    scene.does(other, frames.Mute)
    effects = scene.does(other, frames.Unmute)
    assert gains(effects) == {(blocker, other, 0.0), (blocked, other, 0.0)}
    assert told(effects, frames.BlockedOnStage) == []  # they know


def test_volumes() -> None:
    scene = Scene()
    speaker, hearer = scene.speaker(2), scene.enters("guest")
    assert gains(scene.does(hearer, frames.SetVolume, member=speaker, percent=150)) == {
        (hearer, speaker, 1.5)
    }
    assert scene.does(hearer, frames.SetVolume, member=speaker, percent=150) == []
    scene.does(speaker, frames.Mute)
    assert gains(scene.does(speaker, frames.Unmute)) == {(hearer, speaker, 1.5)}
    scene.does(hearer, frames.SetVolume, member=speaker, percent=100)
    scene.does(speaker, frames.Mute)
    assert gains(scene.does(speaker, frames.Unmute)) == set()


def test_a_volume_holds_for_who_does_not_speak_yet() -> None:
    scene = Scene()
    hearer, later = scene.enters(2), scene.enters(3)
    scene.does(hearer, frames.SetVolume, member=later, percent=0)
    scene.does(later, frames.RaiseHand)
    effects = scene.does(scene.host, frames.BringUp, member=later)
    assert gains(effects) == {(hearer, later, 0.0)}


@pytest.mark.parametrize("who", [2, 3])
def test_a_volume_holds_for_who_comes_back(who: int) -> None:
    scene = Scene(EVERYONE)
    hearer, source = scene.enters(2), scene.enters(3)
    scene.does(hearer, frames.SetVolume, member=source, percent=20)
    scene.does(hearer if who == 2 else source, frames.Leave)
    again = scene.enters(who)
    hearer, source = (again, source) if who == 2 else (hearer, again)
    assert gains(scene.does(source, frames.StepUp)) == {(hearer, source, 0.2)}
    scene.does(hearer, frames.Leave)
    hearer = scene.enters(2)
    assert gains(scene.heard) == {(hearer, source, 0.2)}


def test_a_guest_s_volumes_go_with_them() -> None:
    scene = Scene()
    speaker, guest = scene.speaker(2), scene.enters("guest")
    scene.does(guest, frames.SetVolume, member=speaker, percent=0)
    scene.does(guest, frames.Leave)
    scene.enters("guest")
    assert gains(scene.heard) == set()


def test_volumes_have_steps() -> None:
    scene = Scene()
    speaker, hearer = scene.speaker(2), scene.enters(3)
    effects = scene.does(hearer, frames.SetVolume, member=speaker, percent=147)
    assert gains(effects) == {(hearer, speaker, 1.5)}
    assert scene.does(hearer, frames.SetVolume, member=speaker, percent=153) == []


def test_mixes_of_their_own_have_a_limit() -> None:
    """It is different mixes that cost something, not people."""
    scene = Scene(EVERYONE)
    speakers = [scene.speaker(who) for who in range(2, 8)]
    mixes = [(a, b) for a in speakers for b in range(0, 100, 10)] + [
        (a, b) for a in speakers for b in range(110, 210, 10)
    ]
    hearers = [scene.enters(who) for who in range(100, 100 + MAX_MIXES + 1)]
    for hearer, (member, percent) in zip(hearers, mixes[:MAX_MIXES], strict=False):
        scene.does(hearer, frames.SetVolume, member=member, percent=percent)
    one_more = {"member": mixes[MAX_MIXES][0], "percent": mixes[MAX_MIXES][1]}
    scene.refused(ErrorCode.TOO_MANY, hearers[-1], frames.SetVolume, **one_more)
    member, percent = mixes[0]
    scene.does(hearers[-1], frames.SetVolume, member=member, percent=percent)
    scene.does(hearers[1], frames.SetVolume, member=mixes[1][0], percent=100)
    scene.does(hearers[1], frames.SetVolume, **one_more)


def test_a_volume_does_not_break_a_block() -> None:
    scene = Scene()
    speaker, hearer = scene.speaker(2), scene.enters(3)
    scene.town.blocked.add((3, 2))
    assert scene.does(hearer, frames.SetVolume, member=speaker, percent=200) == []
    scene.town.blocked.clear()
    effects = scene.took(scene.space.blocks_changed(2, 3, scene.now))
    assert (hearer, speaker, 2.0) in gains(effects)


def test_volumes_have_a_limit() -> None:
    scene = Scene()
    members = [scene.enters(who) for who in range(2, MAX_VOLUMES + 3)]
    for member in members[:-1]:
        scene.does(scene.host, frames.SetVolume, member=member, percent=0)
    scene.refused(ErrorCode.TOO_MANY, scene.host, frames.SetVolume, member=members[-1], percent=0)
    scene.does(scene.host, frames.SetVolume, member=members[0], percent=100)
    scene.does(scene.host, frames.SetVolume, member=members[-1], percent=0)


# -- chat and reactions ---------------------------------------------------------------------------


def test_everyone_together_writes_no_more_than_can_be_read() -> None:
    scene = Scene()
    members = [scene.enters(who) for who in range(2, LINES_A_SECOND + 3)]
    for member in members[:LINES_A_SECOND]:
        scene.asks(member, frames.Chat, text="hello")
    error = scene.refused(ErrorCode.RATE_LIMITED, members[-1], frames.Chat, text="me too")
    assert error.retry_ms == 1_000
    scene.asks(scene.host, frames.Chat, text="a host is heard")
    scene.after(1.0)
    scene.asks(members[-1], frames.Chat, text="me too")


def test_chat() -> None:
    scene = Scene()
    member = scene.enters(2)
    number = scene.space.feed.number
    assert scene.asks(member, frames.Chat, text=" hello ").line == 1
    assert scene.asks(member, frames.Chat, text="again").line == 2
    lines = [
        frames.ChatUpdate(line=i, member=member, name="Person 2", handle="p2", text=text)
        for i, text in ((1, "hello"), (2, "again"))
    ]
    assert updates(scene, member, number) == lines
    scene.refused(ErrorCode.BAD_TEXT, member, frames.Chat, text="\x1b]0;evil\x07")
    scene.refused(ErrorCode.BAD_TEXT, member, frames.Chat, text="two\nlines")
    scene.refused(ErrorCode.BAD_TEXT, member, frames.Chat, text="𝄞" * frames.MAX_CHAT_CHARS)
    scene.does(scene.host, frames.Configure, chat=False)
    scene.refused(ErrorCode.CHAT_OFF, member, frames.Chat, text="hello")


def test_slow_mode() -> None:
    scene = Scene(Settings(slow_s=30))
    member, co_host = scene.enters(2), scene.co_host(3)
    scene.does(member, frames.Chat, text="one")
    scene.after(10.5)
    error = scene.refused(ErrorCode.RATE_LIMITED, member, frames.Chat, text="two")
    assert error.retry_ms == 19_500
    assert "20 s" in str(error)
    member = scene.enters(2, device=1)  # another device is no way around
    scene.refused(ErrorCode.RATE_LIMITED, member, frames.Chat, text="two")
    scene.after(19.5)
    scene.does(member, frames.Chat, text="two")
    for moderator in (scene.host, co_host):
        scene.does(moderator, frames.Chat, text="one")
        scene.does(moderator, frames.Chat, text="two")


def test_a_line_taken_back() -> None:
    scene = Scene()
    member, other = scene.enters(2), scene.enters(3)
    scene.does(member, frames.Chat, text="a secret")
    number = scene.space.feed.number
    scene.refused(ErrorCode.NOT_ALLOWED, other, frames.DeleteLine, line=1)
    scene.does(member, frames.DeleteLine, line=1)
    assert updates(scene, other, number) == [frames.LineGoneUpdate(line=1)]
    assert "a secret" not in repr(updates(scene, other))
    scene.refused(ErrorCode.NO_SUCH_LINE, member, frames.DeleteLine, line=1)
    scene.does(member, frames.Chat, text="another")
    scene.does(member, frames.Leave)
    scene.does(scene.host, frames.DeleteLine, line=2)  # its author is gone


def test_the_line_of_a_host_who_is_away_stays() -> None:
    scene = Scene()
    co_host = scene.co_host(2)
    scene.does(scene.host, frames.Chat, text="mine")
    scene.took(scene.space.lost(scene.host, scene.now))
    scene.refused(ErrorCode.NOT_ALLOWED, co_host, frames.DeleteLine, line=1)


def test_old_lines_are_forgotten() -> None:
    scene = Scene()
    for _ in range(MAX_LINES + 1):
        scene.does(scene.host, frames.Chat, text="hello")
    scene.refused(ErrorCode.NO_SUCH_LINE, scene.host, frames.DeleteLine, line=1)
    scene.does(scene.host, frames.DeleteLine, line=2)


def test_chat_does_not_cross_a_block() -> None:
    scene = Scene()
    author, blocker, other = scene.enters(2), scene.enters(3), scene.enters("guest")
    batches(scene)
    scene.town.blocked.add((3, 2))
    number = scene.space.feed.number
    scene.does(author, frames.Chat, text="hello")
    (open_batch, seen), (closed_batch, unseen) = batches(scene)
    assert seen == [scene.host, author, other]
    assert unseen == [blocker]
    assert "hello" in repr(open_batch.updates)
    assert "hello" not in repr(closed_batch.updates)
    assert updates(scene, blocker, number) == [frames.ListenersUpdate(count=3)]
    assert updates(scene, author, number) == updates(scene, other, number)


def test_reactions_are_merged() -> None:
    scene = Scene()
    speaker, listener = scene.speaker(2), scene.enters(3)
    batches(scene)
    for _ in range(3):
        scene.does(listener, frames.React, emoji="🔥")
    scene.does(speaker, frames.React, emoji="🔥")
    scene.does(speaker, frames.React, emoji="😂")
    ((batch, _),) = batches(scene)
    assert batch.updates == [
        frames.encode_update(
            frames.ReactionsUpdate(
                counts={"🔥": 4, "😂": 1}, stage=[frames.Reaction(member=speaker, emoji="😂")]
            )
        )
    ]
    assert scene.space.due_ns is None
    scene.refused(ErrorCode.BAD_REACTION, listener, frames.React, emoji="🦆")


def test_a_thousand_joins_are_told_once() -> None:
    scene = Scene()
    batches(scene)
    for who in range(2, 1_002):
        scene.enters(who)
    ((batch, _),) = batches(scene)
    assert batch.updates == [frames.encode_update(frames.ListenersUpdate(count=1_000))]
    last = scene.enters(5_000)
    scene.does(last, frames.Leave)
    assert batches(scene) == []  # nothing has changed after all


def test_the_time_of_a_batch() -> None:
    scene = Scene()
    assert scene.space.due_ns == START.ns + GATHER_NS
    batches(scene)
    assert scene.space.due_ns is None
    scene.after(1)
    scene.enters(2)
    assert scene.space.due_ns == START.ns + S + 250 * MS


def test_snapshots_and_updates_agree() -> None:
    scene = Scene(EVERYONE)
    state = StateHash.of(scene.space.snapshot())
    for who in range(2, 6):
        scene.does(scene.enters(who), frames.StepUp)
        scene.does(scene.enters(who + 10), frames.RaiseHand)
    scene.does(scene.host, frames.Configure, title="another")
    scene.does(scene.space.member_of(2) or 0, frames.Leave)
    for batch, _ in batches(scene):
        for update in batch.updates:
            decoded = frames.decode_update(update)
            assert decoded is not None
            if batch.first + batch.updates.index(update) > 1:  # the first was in the snapshot
                state.apply(decoded)
        assert batch.hash == state.value
    assert StateHash.of(scene.space.snapshot()).value == state.value
    scene.enters(99)  # not told yet
    answer = scene.asks(scene.host, frames.Look)
    assert StateHash.of(answer.snapshot).value == state.value
    assert scene.asks(scene.host, frames.CatchUp, after=answer.snapshot.number).hash == state.value


def test_who_is_on_stage_tells_how_their_audio_lies_on_the_clock() -> None:
    scene = Scene(EVERYONE)
    first, second = scene.enters(2), scene.enters(3)
    scene.does(first, frames.StepUp)
    assert scene.asks(second, frames.AskClock).voices == []
    scene.asks(first, frames.AskClock, offset=77)
    scene.asks(first, frames.AskClock)  # says nothing new
    scene.asks(second, frames.AskClock, offset=88)  # of one who is not on stage
    answer = scene.asks(second, frames.AskClock)
    assert answer.voices == [frames.VoiceClock(seat=scene.space.view(first).seat, offset=77)]
    assert answer.now == samples_at(scene.now.ns)
    scene.does(first, frames.TakeDown)
    assert scene.asks(second, frames.AskClock).voices == []


def test_the_roster_has_pages() -> None:
    scene = Scene()
    for i in range(2 * ROSTER_PAGE):
        scene.enters(f"listener {i}")
    gone = scene.enters(2)
    scene.does(gone, frames.Leave)
    page = scene.asks(scene.host, frames.Roster)
    assert len(page.members) == ROSTER_PAGE
    assert page.more
    found = people(scene)
    assert len(found) == 2 * ROSTER_PAGE + 1
    assert list(found) == sorted(found)


def test_catching_up_on_what_is_gone() -> None:
    scene = Scene()
    scene.refused(ErrorCode.TOO_OLD, scene.host, frames.CatchUp, after=scene.space.feed.number + 1)


# -- invites --------------------------------------------------------------------------------------


def test_an_invite_lets_speak_at_once() -> None:
    scene = Scene()
    token = scene.invite(max_uses=2)
    member = scene.enters(2, token)
    assert scene.space.view(member).role is Role.SPEAKER
    assert mixing(scene.heard) == [SourceAdded(member, 1)]
    (invite,) = scene.image.of(InviteRecord)
    assert (invite.uses, invite.issuer, invite.role) == (1, 1, "speaker")
    scene.enters(3, token)
    scene.locked_out(ErrorCode.INVITE_USED_UP, 4, token)
    scene.enters(3, token, device=1)  # who used it may come back with it
    scene.does(scene.host, frames.TakeDown, member=member)
    scene.does(member, frames.Leave)
    assert scene.space.view(scene.enters(2, token)).role is Role.LISTENER  # but not up again


def test_bad_invites() -> None:
    scene = Scene()
    token = scene.invite(lifetime_s=60)
    scene.locked_out(ErrorCode.BAD_INVITE, 2, "made-up")
    scene.enters(2, token)
    scene.after(60)
    scene.locked_out(ErrorCode.INVITE_EXPIRED, 3, token)
    other = scene.invite()
    scene.does(scene.host, frames.RevokeInvite, invite=other)
    scene.locked_out(ErrorCode.BAD_INVITE, 3, other)
    scene.refused(ErrorCode.BAD_INVITE, scene.host, frames.RevokeInvite, invite=other)


def test_an_invite_to_a_full_stage() -> None:
    scene = Scene(stage_size=1)
    scene.locked_out(ErrorCode.STAGE_FULL, 2, scene.invite())


def test_inviting_a_person() -> None:
    scene = Scene()
    effects = scene.does(
        scene.host, frames.InvitePerson, person="p2", role=Role.SPEAKER, text="Come!\nNow!"
    )
    (invited,) = (e for e in effects if isinstance(e, Invited))
    assert (invited.account, invited.text) == (2, "Come!\nNow!")
    assert saved(effects) == [Put(invited.invite)]
    token = invited.invite.token
    assert scene.answer == frames.Invited(re=ID, invite=token)
    scene.locked_out(ErrorCode.BAD_INVITE, 3, token)
    scene.locked_out(ErrorCode.BAD_INVITE, "guest", token)
    member = scene.enters(2, token)
    assert scene.space.view(member).role is Role.SPEAKER
    refused = scene.refused
    refused(ErrorCode.NO_SUCH_PERSON, scene.host, frames.InvitePerson, person="nobody")
    refused(ErrorCode.ONESELF, scene.host, frames.InvitePerson, person="p1")
    refused(ErrorCode.BAD_TEXT, scene.host, frames.InvitePerson, person="p3", text="\x1b[2J")
    scene.town.blocked.add((1, 4))
    refused(ErrorCode.BLOCKED, scene.host, frames.InvitePerson, person="p4")
    scene.town.blocked = {(4, 1)}
    scene.does(scene.host, frames.InvitePerson, person="p4")  # who blocked does not get it


def test_a_new_invitation_of_a_person_replaces_the_old() -> None:
    scene = Scene()
    for _ in range(MAX_INVITES + 1):
        token = scene.asks(scene.host, frames.InvitePerson, person="p2").invite
    assert [i.token for i in scene.image.of(InviteRecord)] == [token]


def test_who_may_grant_what() -> None:
    scene = Scene()
    co_host = scene.co_host(2)
    for role in (Role.HOST, Role.GUEST):
        scene.refused(ErrorCode.NOT_ALLOWED, scene.host, frames.MakeInvite, role=role)
    scene.refused(ErrorCode.NOT_ALLOWED, co_host, frames.MakeInvite, role=Role.CO_HOST)
    scene.refused(
        ErrorCode.NOT_ALLOWED, co_host, frames.InvitePerson, person="p3", role=Role.CO_HOST
    )
    scene.does(co_host, frames.MakeInvite, role=Role.SPEAKER)
    token = scene.invite(Role.CO_HOST)
    assert [i.role for i in scene.asks(co_host, frames.ListInvites).invites] == [Role.SPEAKER]
    scene.refused(ErrorCode.NOT_ALLOWED, co_host, frames.RevokeInvite, invite=token)
    assert scene.space.view(scene.enters(3, token)).role is Role.CO_HOST


def test_the_list_of_invites() -> None:
    scene = Scene()
    first = scene.invite(lifetime_s=60)
    second = scene.asks(scene.host, frames.InvitePerson, person="p2").invite
    third = scene.invite(Role.LISTENER, max_uses=1)
    scene.enters(3, third)
    assert scene.asks(scene.host, frames.ListInvites).invites == [
        frames.InviteInfo(invite=second, issuer="p1", role=Role.LISTENER, person="p2", max_uses=1),
        frames.InviteInfo(invite=first, issuer="p1", role=Role.SPEAKER, until=START.utc_s + 60),
    ]


def test_invites_have_a_limit() -> None:
    scene = Scene()
    short = [scene.invite(lifetime_s=60) for _ in range(10)]
    long = [scene.invite(lifetime_s=2**32 - 1) for _ in range(MAX_INVITES - 10)]
    scene.refused(ErrorCode.TOO_MANY, scene.host, frames.MakeInvite)
    listed = scene.asks(scene.host, frames.ListInvites)
    assert [i.invite for i in reversed(listed.invites)] == short + long
    longest = [
        msgspec.structs.replace(
            i, issuer="𐐨" * frames.MAX_HANDLE_CHARS, person="𐐨" * frames.MAX_HANDLE_CHARS
        )
        for i in listed.invites
    ]
    answer = msgspec.structs.replace(listed, invites=longest)
    assert len(frames.encode(answer)) <= frames.MAX_FRAME_BYTES
    scene.after(60)
    new = scene.invite()  # what has expired makes room
    assert {i.token for i in scene.image.of(InviteRecord)} == {*long, new}


# -- rules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rules",
    [
        {"stage_size": 0},
        {"stage_size": MAX_STAGE + 1},
        {"reactions": ("🔥",)},
        {"reactions": ("🔥",) * 6},
        {"reactions": ("", "b", "c", "d", "e", "f")},
        {"reactions": ("a" * 25, "b", "c", "d", "e", "f")},
    ],
)
def test_rules_that_cannot_be(rules: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"stage|reaction"):
        SpaceRules(**rules)


# -- whoever wants back up ------------------------------------------------------------------------


def test_nobody_gets_back_up_by_a_token_that_they_kept() -> None:
    scene = Scene()
    co_host = scene.co_host(2)
    own = scene.asks(co_host, frames.MakeInvite, role=Role.SPEAKER).invite
    of_host = scene.invite(Role.CO_HOST)
    scene.does(scene.host, frames.TakeDown, member=co_host)
    for token in (own, of_host):
        back = scene.enters(2, token, device=1)
        assert scene.space.view(back).role is Role.LISTENER
    afterwards = scene.invite()
    back = scene.enters(2, afterwards, device=2)
    assert scene.space.view(back).role is Role.SPEAKER, "whom the host wants up again comes up"


def test_a_dismissed_co_host_is_none_again_by_an_old_token() -> None:
    scene = Scene()
    token = scene.invite(Role.CO_HOST)
    co_host = scene.co_host(2)
    scene.does(scene.host, frames.Dismiss, member=co_host)
    scene.does(co_host, frames.Leave)
    assert scene.space.view(scene.enters(2, token)).role is Role.LISTENER


@pytest.mark.parametrize("how", ["removed", "lost, then removed", "blocked", "expelled"])
def test_what_the_removed_gave_away_is_worth_nothing(how: str) -> None:
    scene = Scene()
    co_host, friend = scene.co_host(2), scene.enters(3)
    token = scene.asks(co_host, frames.MakeInvite, role=Role.SPEAKER).invite
    kept = scene.invite()
    scene.does(co_host, frames.Offer, member=friend)
    match how:
        case "removed":
            scene.does(scene.host, frames.Remove, member=co_host)
        case "lost, then removed":
            scene.took(scene.space.lost(co_host, scene.now))
            scene.took(scene.space.remove(2, 0, scene.now, "out"))
        case "blocked":
            scene.town.blocked.add((1, 2))
            scene.took(scene.space.blocks_changed(1, 2, scene.now))
        case "expelled":
            scene.took(scene.space.expel({2}, scene.now))
    scene.refused(ErrorCode.NOT_OFFERED, friend, frames.Accept)
    scene.locked_out(ErrorCode.BAD_INVITE, 4, token)
    assert [i.token for i in scene.image.of(InviteRecord)] == [kept]
    assert scene.space.view(scene.enters(4, kept)).role is Role.SPEAKER


def test_an_offer_of_somebody_who_was_lost_holds() -> None:
    scene = Scene()
    friend = scene.enters(3)
    scene.does(scene.host, frames.Offer, member=friend)
    scene.took(scene.space.lost(scene.host, scene.now))
    scene.does(friend, frames.Accept)
    assert scene.space.view(friend).role is Role.SPEAKER


def test_volumes_of_those_who_come_and_go_leave_nothing() -> None:
    scene = Scene()
    listener = scene.enters(2)
    before = state(scene.space._volumes)
    for number in range(20):
        guest = scene.enters(f"guest {number}")
        scene.does(listener, frames.SetVolume, member=guest, percent=50)
        scene.does(guest, frames.SetVolume, member=listener, percent=50)
        scene.does(listener, frames.SetVolume, member=guest, percent=100)
        scene.does(guest, frames.Leave)
    assert state(scene.space._volumes) == before


def test_guests_are_out_and_may_come_again() -> None:
    scene = Scene()
    scene.enters(2)
    first, second = scene.enters("first"), scene.enters("second")
    effects = scene.took(scene.space.guests_out("no guests any more", scene.now))
    assert told(effects, frames.Removed) == [first, second]
    assert [e for e in effects if isinstance(e, Left)] == [Left(first), Left(second)]
    assert saved(effects) == []
    assert scene.took(scene.space.guests_out("no guests any more", scene.now)) == []
    scene.enters("first")


def test_of_the_host_and_the_co_host_who_are_expelled_together_neither_goes_on() -> None:
    scene = Scene()
    scene.co_host(2)
    heir = scene.co_host(3)
    scene.took(scene.space.expel({1, 2}, scene.now))
    assert scene.space.view(heir).role is Role.HOST
    assert scene.space.record.host == 3
    assert SpaceEnded("the host is gone") in scene.took(scene.space.expel({3}, scene.now))


@pytest.mark.parametrize("restarted", [False, True])
def test_a_co_host_who_is_removed_while_the_host_is_lost_inherits_nothing(restarted: bool) -> None:
    scene = Scene()
    co_host, other = scene.co_host(2), scene.co_host(3)
    scene.took(scene.space.lost(scene.host, scene.now))
    scene.took(scene.space.remove(2, 0, scene.now, "out"))
    if restarted:
        scene.space = scene.restored()
        other = scene.enters(3)
    else:
        assert scene.space.member_of(2) is None
    scene.locked_out(ErrorCode.REMOVED, 2, device=1)
    scene.after(scene.rules.grace_s)
    assert co_host != other
    assert scene.space.view(other).role is Role.HOST
