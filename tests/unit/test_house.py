"""What one policy wants from another, through the whole server: invitations that give access,
notices that wait, sessions that are closed, evidence that only moderators open."""

from typing import Any

import numpy as np
import pytest

from protocol import evidence, frames
from protocol.connection import CloseCode
from protocol.frames import Access, Category, ErrorCode, Outcome, Visibility
from protocol.packets import Kind
from protocol.roles import Role
from spaces_client.events import Notified, Removed
from spaces_server.policy.house import HouseRules
from spaces_server.policy.space import SpaceRules
from spaces_server.recorder import MAX_PACKETS
from tests.unit.hall import SECOND, TONE_LEVEL, Guest, Hall, decoded, level

GATHERED = 14  # ticks after which the feed has told of everything
LIMITED = HouseRules(limited_rates=False, access=Access.LIMITED)
EVIDENCE = HouseRules(limited_rates=False, space=SpaceRules(evidence=True))
NO_GUESTS = HouseRules(limited_rates=False, guests=False)


def notices(guest: Guest, kind: type[frames.Notice] = frames.Notice) -> list[Any]:
    return [e.frame for e in guest.events if isinstance(e, Notified) and isinstance(e.frame, kind)]


def device_of(hall: Hall, guest: Guest) -> Guest:
    """One more device of the same account."""
    code = hall.ask(guest, frames.MakeDeviceCode).code
    other = hall.guest()
    reply = hall.ask(other, frames.AddDevice, code=code, label="another")
    assert reply.account.handle == guest.handle
    other.handle = guest.handle
    return other


def device_number(hall: Hall, asker: Guest, device: Guest) -> int:
    (number,) = [d.id for d in hall.ask(device, frames.ListDevices).devices if d.this]
    assert number in [d.id for d in hall.ask(asker, frames.ListDevices).devices]
    assert isinstance(number, int)
    return number


def again(hall: Hall, guest: Guest) -> Guest:
    """The same device, with a new session."""
    guest.client.close(hall.now_ns)
    hall.settle()
    new = hall.guest(guest.key)
    new.handle = guest.handle
    return new


# -- notices --------------------------------------------------------------------------------------


def test_messages_come_at_once_to_every_session() -> None:
    hall = Hall()
    sender, recipient = hall.person(), hall.person()
    second = device_of(hall, recipient)
    reply = hall.ask(sender, frames.SendMessage, person=recipient.handle, text="hello")
    assert isinstance(reply, frames.Sent)
    for guest in (recipient, second):
        (notice,) = notices(guest)
        assert isinstance(notice, frames.MessageNotice)
        assert (notice.message.text, notice.message.sender) == ("hello", sender.handle)
    assert notices(sender) == []
    (message,) = hall.ask(second, frames.ListMessages).messages
    assert message == notice.message


def test_who_was_away_is_told_once_until_it_was_seen() -> None:
    hall = Hall()
    sender, recipient = hall.person(), hall.person()
    recipient.client.close(hall.now_ns)
    hall.settle()
    for text in ("one", "two"):
        hall.ask(sender, frames.SendMessage, person=recipient.handle, text=text)
    first = again(hall, recipient)
    (unread,) = notices(first)
    assert isinstance(unread, frames.Unread)
    hall.start()
    hall.tick(18 * SECOND)  # kept over a restart, too
    assert notices(first) == [unread, unread]
    hall.does(first, frames.Seen, notice=unread.notice)
    assert notices(again(hall, first)) == []
    assert len(hall.ask(hall.guests[-1], frames.ListMessages).messages) == 2


def test_a_message_between_blocked_people_reaches_nobody() -> None:
    hall = Hall()
    sender, recipient = hall.person(), hall.person()
    hall.does(recipient, frames.Block, person=sender.handle)
    reply = hall.ask(sender, frames.SendMessage, person=recipient.handle, text="hello")
    assert isinstance(reply, frames.Sent), "nothing tells the sender"
    assert notices(recipient) == []
    assert hall.ask(recipient, frames.ListMessages).messages == []
    assert "hello" not in hall.shelf.dump()


# -- devices and sessions -------------------------------------------------------------------------


def test_two_devices_of_an_account_are_one_person_in_a_space() -> None:
    hall = Hall()
    host, speaker, listener = hall.space(2, 1)
    second = device_of(hall, speaker)
    hall.tick(5, speaker)
    hall.join(second, host.client.view.id)
    assert speaker.disconnected() == [CloseCode.REPLACED]
    assert second.client.view.me is not None
    assert second.client.view.me.role is Role.SPEAKER
    hall.tick(GATHERED)
    hall.agree(host, second, listener)
    assert len(hall.the_space()) == 3
    assert len(hall.node.egress) == 3


def test_a_device_that_is_removed_is_out_at_once() -> None:
    hall = Hall()
    host, speaker, listener = hall.space(2, 1)
    second = device_of(hall, speaker)
    number, commits = device_number(hall, second, speaker), hall.shelf.commits
    hall.does(second, frames.RemoveDevice, device=number)
    assert hall.shelf.commits == commits + 1, "the device and its place on stage go together"
    assert speaker.disconnected() == [CloseCode.EXPELLED]
    hall.tick(GATHERED)
    hall.agree(host, listener)
    assert len(hall.the_space()) == 2
    stranger = hall.guest(speaker.key)
    hall.refuses(ErrorCode.NO_ACCOUNT, stranger, frames.WhoAmI)
    assert hall.ask(second, frames.WhoAmI).account.handle == speaker.handle


def test_nothing_is_taken_any_more_from_a_session_that_was_closed() -> None:
    """Not even what came in the same datagram: who removes their own device and joins a space
    with it in one breath must not sit there without a session."""
    hall = Hall()
    host, listener = hall.space(1, 1)
    person = hall.person()
    device_of(hall, person)
    number = device_number(hall, person, person)
    person.client.request(frames.RemoveDevice, device=number)
    person.client.request(frames.Join, space=host.client.view.id)
    (datagram,) = person.client.transmit(hall.now_ns)
    hall.send(person, datagram)
    hall.settle()
    assert person.disconnected() == [CloseCode.EXPELLED]
    assert len(hall.the_space()) == 2
    hall.tick(5 * SECOND)
    assert len(hall.node.endpoint.sessions) == 3
    assert len(hall.node._sessions) == 3
    hall.agree(host, listener)


def test_who_was_replaced_and_never_heard_of_it_is_not_taken_for_present() -> None:
    hall = Hall()
    host, listener = hall.space(1, 1)
    second = device_of(hall, listener)
    listener.gone = listener.deaf = True
    hall.join(second, host.client.view.id)
    hall.tick(5 * SECOND)
    second.client.close(hall.now_ns)
    hall.settle()
    hall.ask(host, frames.SendMessage, person=listener.handle, text="hello")
    assert [type(n) for n in notices(again(hall, second))] == [frames.Unread]


def test_a_ban_closes_the_sessions_of_all_devices_and_of_those_they_invited() -> None:
    hall = Hall(LIMITED)
    operator = hall.operator()
    host, giver, invited, bystander = (hall.person() for _ in range(4))
    for guest in (host, giver, bystander):
        hall.does(operator, frames.Grant, person=guest.handle)
    name = hall.open(giver)
    hall.ask(giver, frames.InvitePerson, person=invited.handle)
    hall.join(invited, name)
    hall.join(bystander, name)
    second = device_of(hall, giver)
    hall.does(operator, frames.Ban, person=giver.handle, reason="spam", with_invited=True)
    for guest in (giver, second, invited):
        assert guest.disconnected() == [CloseCode.EXPELLED]
        back = hall.guest(guest.key)
        hall.refuses(ErrorCode.BANNED, back, frames.Join, space=name)
        hall.refuses(ErrorCode.BANNED, back, frames.Home)
        hall.refuses(ErrorCode.BANNED, back, frames.Follow, person=host.handle)
        assert hall.ask(back, frames.WhoAmI).account.banned
    assert not hall.node.spaces, "its host is gone"
    assert bystander.disconnected() == []
    hall.does(operator, frames.Unban, person=giver.handle)
    hall.open(hall.guest(giver.key))


def test_a_moderator_of_the_server_removes_from_a_space_and_ends_it() -> None:
    hall = Hall()
    operator = hall.operator()
    host, speaker, listener = hall.space(2, 1)
    name = host.client.view.id
    for about, outcome in ((speaker, Outcome.REMOVE), (host, Outcome.WARN)):
        fields = {"category": Category.HATE, "member": about.id}
        number = hall.ask(listener, frames.Report, **fields).report
        hall.does(operator, frames.Act, report=number, outcome=outcome, note="rule 1")
    assert any(isinstance(e, Removed) for e in speaker.events)
    hall.refuses(ErrorCode.REMOVED, speaker, frames.Join, space=name)
    (warned,) = notices(host, frames.Warned)
    assert isinstance(warned, frames.Warned)
    assert "rule 1" in warned.text
    outcomes = [n.outcome for n in notices(listener) if isinstance(n, frames.OutcomeNotice)]
    assert outcomes == [Outcome.REMOVE, Outcome.WARN]
    hall.tick(GATHERED)
    hall.agree(host, listener)
    hall.does(operator, frames.CloseSpace, space=name, reason="rule 2")
    assert not hall.node.spaces
    hall.refuses(ErrorCode.SPACE_ENDED, listener, frames.Join, space=name)


# -- access ---------------------------------------------------------------------------------------


def test_an_invitation_gives_access_at_once() -> None:
    hall = Hall(LIMITED)
    operator = hall.operator()
    host, invited, by_link, stranger = (hall.person() for _ in range(4))
    hall.refuses(ErrorCode.NO_ACCESS, host, frames.Open, title="t")
    hall.does(operator, frames.Grant, person=host.handle)
    name = hall.open(host)
    for guest in (invited, by_link, stranger):
        hall.refuses(ErrorCode.NO_ACCESS, guest, frames.Join, space=name)
    hall.does(stranger, frames.AskAccess, note="please")
    reply = hall.ask(host, frames.InvitePerson, person=invited.handle, text="come")
    assert isinstance(reply, frames.Invited)
    assert {type(n) for n in notices(invited)} == {frames.AccessGranted, frames.MessageNotice}
    hall.join(invited, name)
    token = hall.ask(host, frames.MakeInvite, role=Role.LISTENER).invite
    hall.join(by_link, name, invite=token)
    for guest in (invited, by_link):
        account = hall.ask(guest, frames.WhoAmI).account
        assert (account.access, account.invited_by) == (True, host.handle)
    hall.refuses(ErrorCode.NO_ACCESS, stranger, frames.Home)
    hall.refuses(ErrorCode.NO_GUESTS, hall.guest(), frames.Join, space=name)
    hall.does(operator, frames.SetAccess, access=Access.OPEN)
    assert [type(n) for n in notices(stranger)] == [frames.AccessGranted]
    hall.join(stranger, name)


def test_an_invite_of_somebody_without_access_gives_none_and_changes_nothing() -> None:
    hall = Hall()
    operator = hall.operator()
    host, co_host = hall.space(2)
    name = host.client.view.id
    hall.does(host, frames.Appoint, member=co_host.id)
    token = hall.ask(co_host, frames.MakeInvite).invite
    hall.does(operator, frames.SetAccess, access=Access.LIMITED)
    newcomer = hall.person()
    hall.does(operator, frames.Revoke, person=co_host.handle)
    assert co_host.disconnected() == [CloseCode.EXPELLED]
    hall.tick(GATHERED)
    hall.agree(host)
    before, commits = hall.the_space().snapshot(), hall.shelf.commits
    # What an expelled person gave away is worth nothing, and gives no access either.
    hall.refuses(ErrorCode.BAD_INVITE, newcomer, frames.Join, space=name, invite=token)
    hall.refuses(ErrorCode.NO_ACCESS, newcomer, frames.Join, space=name)
    hall.tick(GATHERED)
    assert hall.the_space().snapshot() == before
    assert hall.shelf.commits == commits
    assert not hall.ask(newcomer, frames.WhoAmI).account.access


def test_guests_listen_where_the_server_takes_them() -> None:
    hall = Hall(NO_GUESTS)
    (host,) = hall.space(1)
    guest = hall.guest()
    hall.refuses(ErrorCode.NO_GUESTS, guest, frames.Join, space=host.client.view.id)
    hall.refuses(ErrorCode.NO_GUESTS, guest, frames.ListSpaces)
    hall = Hall()
    (host,) = hall.space(1)
    guest = hall.guest()
    assert len(hall.ask(guest, frames.ListSpaces).spaces) == 1
    hall.join(guest, host.client.view.id, name="somebody")
    hall.tick(5, host)
    assert guest.heard
    hall.refuses(ErrorCode.NOT_ALLOWED, guest, frames.Chat, text="hello")
    hall.does(host, frames.Remove, member=guest.id)
    back = again(hall, guest)
    hall.refuses(ErrorCode.REMOVED, back, frames.Join, space=host.client.view.id)


def test_somebody_whom_one_blocked_is_warned_of() -> None:
    hall = Hall()
    host, speaker, listener = hall.space(2, 1)
    name = host.client.view.id
    hall.does(listener, frames.Leave)
    hall.does(listener, frames.Block, person=speaker.handle)
    hall.refuses(ErrorCode.SOMEONE_BLOCKED, listener, frames.Join, space=name)
    hall.join(listener, name, despite_blocked=True)
    hall.does(speaker, frames.TakeDown)
    hall.does(speaker, frames.RaiseHand)
    hall.does(host, frames.BringUp, member=speaker.id)
    assert notices(listener, frames.BlockedOnStage) == [
        frames.BlockedOnStage(space=listener.client.view.id, member=speaker.id)
    ]
    assert notices(speaker) == []


def test_co_hosts_may_post_a_space_that_is_not_public() -> None:
    hall = Hall()
    host, co_host, speaker = hall.space(3)
    name = host.client.view.id
    hall.does(host, frames.Configure, visibility=Visibility.LINK)
    hall.does(host, frames.Appoint, member=co_host.id)
    assert isinstance(hall.ask(co_host, frames.Post, space=name), frames.Posted)
    hall.refuses(ErrorCode.NOT_ALLOWED, speaker, frames.Post, space=name)


def test_lists_show_how_many_are_there() -> None:
    hall = Hall()
    host, _, listener = hall.space(2, 1)
    visitor = hall.person()
    hall.does(visitor, frames.Follow, person=host.handle)
    (shown,) = hall.ask(visitor, frames.ListSpaces).spaces
    assert (shown.listeners, shown.stage, shown.followed) == (1, 2, True)
    hall.does(host, frames.Configure, title="renamed")
    hall.does(listener, frames.Leave)
    hall.tick(2 * SECOND)
    (shown,) = hall.ask(visitor, frames.ListSpaces).spaces
    assert (shown.listeners, shown.title) == (0, "renamed")
    assert hall.ask(host, frames.Rename, name="Another").account.name == "Another"
    hall.tick(GATHERED)
    assert hall.ask(visitor, frames.GetSpace, space=shown.id).space.host_name == "Another"
    assert next(m.name for m in host.client.view.stage) == "Another"
    hall.agree(host)


# -- rates and evidence ---------------------------------------------------------------------------


def test_too_many_requests_are_refused_with_when_to_try_again() -> None:
    hall = Hall(HouseRules())
    (host,) = hall.space(1)
    replies = [hall.ask(host, frames.Chat, text=f"line {n}") for n in range(10)]
    refused = [r for r in replies if isinstance(r, frames.Error)]
    assert refused
    assert {r.code for r in refused} == {ErrorCode.RATE_LIMITED}
    hall.tick(-(-refused[-1].retry_ms // 20))
    assert isinstance(hall.ask(host, frames.Chat, text="again"), frames.Said)


def reported(hall: Hall, seconds: int) -> tuple[Guest, Guest, Any]:
    """A speaker talks for so long and is reported.  -> a moderator, the speaker, the reply."""
    operator, moderator = hall.operator(), hall.person()
    hall.does(operator, frames.AppointModerator, person=moderator.handle)
    _, speaker, listener = hall.space(2, 1)
    hall.tick(seconds * SECOND, speaker)
    fields = {"category": Category.HATE, "note": "listen", "member": speaker.id}
    return moderator, speaker, hall.ask(listener, frames.Report, **fields)


def test_evidence_is_the_last_30_s_and_only_a_moderator_opens_it() -> None:
    hall = Hall(EVIDENCE)
    moderator, speaker, reply = reported(hall, 33)
    assert reply == frames.Reported(re=reply.re, report=1, evidence=True)
    assert speaker.client.view.evidence, "everybody was told so"
    (report,) = hall.ask(moderator, frames.ListReports).reports
    assert (report.person, report.note, report.evidence_s) == (speaker.handle, "listen", 30)
    sealed = b""
    part, more = 0, True
    while more:
        found = hall.ask(moderator, frames.GetEvidence, report=report.id, part=part)
        assert isinstance(found, frames.Evidence)
        sealed += found.data
        part, more = part + 1, found.more
    assert part > 1
    recording = evidence.open(moderator.key, found.sender_key, found.sealed_key, sealed)
    assert np.diff([timestamp for timestamp, _ in recording]).tolist() == [960] * 1_499
    assert recording[-1][0] == speaker.spoken * 960
    sound = decoded([opus for _, opus in recording])
    assert len(sound) == 30 * 48_000
    assert 0.7 < level(sound, speaker.tone_hz) / TONE_LEVEL < 1.4
    with pytest.raises(evidence.EvidenceError):
        evidence.open(speaker.key, found.sender_key, found.sealed_key, sealed)
    hall.refuses(ErrorCode.NOT_ALLOWED, speaker, frames.GetEvidence, report=report.id)
    assert recording[0][1].hex().upper() not in hall.shelf.dump()


def test_without_the_policy_nothing_is_recorded() -> None:
    hall = Hall()
    moderator, speaker, reply = reported(hall, 2)
    assert reply == frames.Reported(re=reply.re, report=1, evidence=False)
    assert not speaker.client.view.evidence
    (room,) = hall.node._rooms.values()
    assert not room.recorder._packets
    hall.refuses(ErrorCode.NO_EVIDENCE, moderator, frames.GetEvidence, report=1)


def test_a_recording_is_forgotten_when_it_is_old() -> None:
    hall = Hall(EVIDENCE)
    host, speaker, listener = hall.space(2, 1)
    hall.tick(5, host, speaker, listener)
    (room,) = hall.node._rooms.values()
    assert room.recorder._packets.keys() == {host.id, speaker.id}, "of those on stage only"
    hall.does(host, frames.Mute, member=speaker.id)
    hall.tick(5, host, speaker)
    assert len(room.recorder._packets[speaker.id]) == 5
    hall.tick(45 * SECOND)
    assert not room.recorder._packets


def test_nobody_pushes_out_by_a_flood_what_they_said_before() -> None:
    hall = Hall(EVIDENCE)
    _, speaker, listener = hall.space(2, 1)
    hall.tick(SECOND, speaker)
    (room,) = hall.node._rooms.values()
    before = room.recorder.recording(speaker.id, hall.now_ns)
    junk = speaker.audio()
    for _ in range(MAX_PACKETS):
        hall.send(speaker, speaker.connection.send_media(Kind.AUDIO, junk))
    assert room.recorder.recording(speaker.id, hall.now_ns)[: len(before)] == before
    assert hall.node.dropped["audio faster than it can be played"] == len(before)
    hall.tick(31 * SECOND)
    listener.heard.clear()
    hall.tick(10, speaker)
    assert listener.heard


# -- the server becomes limited --------------------------------------------------------------------


def test_when_the_server_becomes_limited_guests_are_out_of_every_space() -> None:
    hall = Hall()
    operator, hosts = hall.operator(), [hall.person(), hall.person()]
    names = [hall.open(host) for host in hosts]
    guests, member = hall.guests_of(3), hall.person()
    for guest, name in zip(guests, (*names, names[0]), strict=True):
        hall.join(guest, name, name="somebody")
    hall.join(member, names[0])
    hall.does(operator, frames.SetAccess, access=Access.LIMITED)
    for guest in guests:
        (removed,) = [e for e in guest.events if isinstance(e, Removed)]
        assert "guests" in removed.text
        hall.refuses(ErrorCode.NO_GUESTS, guest, frames.Join, space=names[0])
        guest.heard.clear()
    hall.tick(GATHERED, *hosts)
    assert [len(guest.heard) for guest in guests] == [0, 0, 0]
    assert member.heard
    assert [hall.node.spaces[name].listeners for name in names] == [1, 0]
    hall.does(operator, frames.SetAccess, access=Access.OPEN)
    hall.join(guests[0], names[0], name="somebody")  # nobody was removed for good


def test_a_guest_whose_joining_waits_for_the_store_is_out_when_the_server_is_limited() -> None:
    hall = Hall()
    operator, (host,) = hall.operator(), hall.space(1)
    token = hall.ask(host, frames.MakeInvite, role=Role.LISTENER).invite
    guest = hall.guest()
    hall.shelf.held = True
    name = host.client.view.id
    asked = guest.client.request(frames.Join, space=name, invite=token, name="somebody")
    hall.tick(1)
    operator.client.request(frames.SetAccess, access=Access.LIMITED)
    hall.tick(1)
    hall.shelf.held = False
    hall.settle()
    reply = guest.reply(asked)
    assert isinstance(reply, frames.Error)
    assert reply.code == ErrorCode.NOT_JOINED
    assert len(hall.the_space()) == 1


# -- one person under two names -------------------------------------------------------------------


def registered_in_place(hall: Hall, space: str) -> Guest:
    """A guest in a space who has got an account there, and a second device."""
    guest = hall.guest()
    hall.join(guest, space, name="somebody")
    guest.handle = "newly"
    hall.ask(guest, frames.Register, handle=guest.handle, name="Newly")
    return guest


def test_a_guest_with_an_account_is_removed_with_all_its_devices() -> None:
    hall = Hall()
    (host,) = hall.space(1)
    space = host.client.view.id
    guest = registered_in_place(hall, space)
    second = device_of(hall, guest)
    hall.does(host, frames.Remove, member=guest.id)
    hall.refuses(ErrorCode.REMOVED, guest, frames.Join, space=space)
    hall.refuses(ErrorCode.REMOVED, second, frames.Join, space=space)
    hall.start()
    hall.refuses(ErrorCode.REMOVED, hall.guest(second.key), frames.Join, space=space)


@pytest.mark.parametrize("how", ["removed", "blocked", "banned"])
def test_nobody_stays_as_the_guest_that_they_were(how: str) -> None:
    hall = Hall()
    operator, (host,) = hall.operator(), hall.space(1)
    space = host.client.view.id
    guest = registered_in_place(hall, space)
    second = device_of(hall, guest)
    hall.join(second, space)
    match how:
        case "removed":
            hall.does(host, frames.Remove, member=second.id)
        case "blocked":
            hall.does(host, frames.Block, person=guest.handle)
        case "banned":
            hall.does(operator, frames.Ban, person=guest.handle)
    guest.heard.clear()
    hall.tick(5, host)
    assert guest.heard == []
    assert len(hall.the_space()) == 1
    if how != "banned":
        assert [e for e in guest.events if isinstance(e, Removed)]


# -- two things at once ----------------------------------------------------------------------------


@pytest.mark.parametrize("restarted", [False, True])
def test_a_ban_finds_the_lost_host_on_every_device_in_every_space(restarted: bool) -> None:
    hall = Hall()
    operator, (host, co_host) = hall.operator(), hall.space(2)
    hall.does(host, frames.Appoint, member=co_host.id)
    own = host.client.view.id
    second = device_of(hall, host)
    other_host = hall.person()
    other = hall.open(other_host)
    hall.join(second, other)
    host.gone = host.deaf = True
    hall.tick(40 * SECOND)  # so long, a session may be silent
    hall.does(operator, frames.Ban, person=host.handle)
    assert second.disconnected() == [CloseCode.EXPELLED]
    assert len(hall.node.spaces[other]) == 1
    if restarted:
        hall.start()
    else:
        assert hall.node.spaces[own].view(co_host.id).role is Role.HOST
    co_account = hall.node.house.people.find(co_host.handle).id
    assert hall.node.spaces[own].record.host == co_account
    back = hall.guest(second.key)
    hall.refuses(ErrorCode.BANNED, back, frames.Join, space=own)
    hall.refuses(ErrorCode.BANNED, back, frames.Join, space=other)


def test_a_block_by_the_host_while_the_speaker_is_lost_leaves_no_place() -> None:
    hall = Hall()
    host, speaker = hall.space(2)
    space = host.client.view.id
    speaker.gone = speaker.deaf = True
    hall.tick(40 * SECOND, host)
    assert len(hall.the_space()) == 1
    hall.does(host, frames.Block, person=speaker.handle)
    back = hall.guest(speaker.key)
    hall.refuses(ErrorCode.REMOVED, back, frames.Join, space=space)
    hall.start()
    back = hall.guest(speaker.key)
    hall.refuses(ErrorCode.REMOVED, back, frames.Join, space=space)
    account = hall.node.house.people.find(speaker.handle).id
    assert account not in hall.the_space()._stage.places


def test_handing_over_to_somebody_who_is_lost_just_then_is_no_loss() -> None:
    hall = Hall()
    host, speaker = hall.space(2)
    hall.does(host, frames.HandOver, member=speaker.id)
    speaker.gone = speaker.deaf = True
    hall.tick(40 * SECOND, host)
    assert hall.the_space().view(host.id).role is Role.CO_HOST
    hall.refuses(ErrorCode.NOT_ALLOWED, host, frames.Close)
    hall.tick(61 * SECOND, host)
    assert hall.the_space().view(host.id).role is Role.HOST
    hall.agree(host)
