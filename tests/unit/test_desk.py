"""The desk: reports, what moderators decide on them, and the evidence that goes with them."""

from typing import Any, cast

import msgspec
import pytest

from protocol import evidence, frames
from protocol.frames import (
    MAX_CHUNK_BYTES,
    MAX_REPORT_CHARS,
    Category,
    ErrorCode,
    Outcome,
    ReportInfo,
    Settings,
)
from protocol.roles import SERVER_PERMISSIONS, ServerAction, ServerRole
from spaces_server.policy import desk as module
from spaces_server.policy import programme
from spaces_server.policy.desk import MAX_OPEN_EACH, PAGE
from spaces_server.policy.effects import Asker, EndSpace, Expelled, RemoveFromSpace, Save, Who
from spaces_server.records import (
    EvidenceKeyRecord,
    EvidencePartRecord,
    GetEvidencePart,
    Put,
    ReportRecord,
)
from tests.unit.policies import DAY_S, ID, Policies, private_key, server

__all__ = ["server"]  # the fixture

GUEST = Asker(b"g" * 32, None)
OPERATOR = Asker(b"o" * 32, None, operator=True)
MS_20 = bytes([31 << 3])  # the head of an Opus packet of 20 ms
RECORDING = [(960 * n, MS_20 + bytes([n % 256]) * 79) for n in range(1_500)]  # 30 s


def account(asker: Asker) -> int:
    assert asker.account is not None
    return asker.account.id


def report(server: Policies, asker: Asker, **fields: Any) -> int:
    fields.setdefault("category", Category.SPAM)
    reply = server.asks(asker, frames.Report(id=ID, **fields))
    assert isinstance(reply, frames.Reported)
    assert not reply.evidence
    return reply.report


def report_member(
    server: Policies,
    asker: Asker,
    who: Who,
    space: str = "space",
    recording: evidence.Recording | None = None,
    **fields: Any,
) -> frames.Reported:
    request = frames.Report(id=ID, category=Category.HATE, member=5, **fields)
    effects = server.desk.report_member(asker, request, who, space, recording, server.now)
    reply = server.replies(effects)
    assert isinstance(reply, frames.Reported)
    return reply


def reports(server: Policies, asker: Asker, closed: bool = False) -> list[ReportInfo]:
    return list(server.asks(asker, frames.ListReports(id=ID, closed=closed)).reports)


def acts(server: Policies, asker: Asker, number: int, outcome: Outcome, note: str = "") -> None:
    request = frames.Act(id=ID, report=number, outcome=outcome, note=note)
    assert isinstance(server.asks(asker, request), frames.Ok)


def opens(server: Policies, host: Asker) -> str:
    record, effects = server.programme.open(host, frames.Open(id=ID), server.now)
    server.carry_out(effects)
    return record.id


def schedule(server: Policies, host: Asker) -> str:
    starts = server.now.utc_s
    request = frames.Schedule(id=ID, title="x", starts=starts, settings=Settings())
    return str(server.asks(host, request).space.id)


def take_outcome(server: Policies, reporter: Asker) -> frames.OutcomeNotice:
    """What the reporter is told, and nobody else."""
    [notice] = [frame for _, frame in server.told if isinstance(frame, frames.OutcomeNotice)]
    assert (account(reporter), notice) in server.take_told()
    return notice


# -- reporting -------------------------------------------------------------------------------------


def test_a_report_is_in_the_queue_of_the_moderators(server: Policies) -> None:
    owner = server.owner()
    mod = server.moderator(owner, "mod")
    ada, bob = server.people_of("ada", "bob")
    space = opens(server, bob)
    one = report(server, ada, person="bob", note=" he\nshouts ", category=Category.HARASSMENT)
    two = report(server, ada, space=space)
    three = report(server, bob, person="ada", space=space)
    at = server.now.utc_s
    expected = [
        ReportInfo(
            id=one,
            reporter="ada",
            at=at,
            category=Category.HARASSMENT,
            note="he\nshouts",
            person="bob",
        ),
        ReportInfo(id=two, reporter="ada", at=at, category=Category.SPAM, space=space),
        ReportInfo(
            id=three, reporter="bob", at=at, category=Category.SPAM, person="ada", space=space
        ),
    ]
    for _ in range(2):
        for asker in (owner, mod, OPERATOR):
            assert reports(server, asker) == expected
            assert reports(server, asker, closed=True) == []
        server.restart()
    assert report(server, bob, person="mod") == three + 1


def test_one_open_report_of_the_same_by_the_same_is_enough(server: Policies) -> None:
    owner = server.owner()
    ada, bob, cem = server.people_of("ada", "bob", "cem")
    space = opens(server, bob)
    number = report(server, ada, person="bob")
    server.restart()
    assert report(server, ada, person="bob", note="again", category=Category.HATE) == number
    assert report(server, ada, person="bob", space=space) == number  # the same person
    assert report(server, cem, person="bob") == number + 1
    assert report(server, ada, space=space) == number + 2
    assert report(server, ada, space=space) == number + 2
    acts(server, owner, number, Outcome.DISMISS)
    assert report(server, ada, person="bob") == number + 3


def test_what_is_no_report_is_refused(server: Policies) -> None:
    ada, _ = server.people_of("ada", "bob")
    space = opens(server, ada)
    wrong: list[tuple[dict[str, Any], ErrorCode]] = [
        ({}, ErrorCode.MALFORMED),
        ({"person": "ada"}, ErrorCode.ONESELF),
        ({"space": space}, ErrorCode.ONESELF),
        ({"person": "nobody"}, ErrorCode.NO_SUCH_PERSON),
        ({"space": "nowhere"}, ErrorCode.NO_SUCH_SPACE),
        ({"person": "bob", "space": "nowhere"}, ErrorCode.NO_SUCH_SPACE),
        ({"member": 3}, ErrorCode.NOT_JOINED),
        ({"person": "bob", "note": "\x1b[2J"}, ErrorCode.BAD_TEXT),
        ({"person": "bob", "note": "x" * (MAX_REPORT_CHARS + 1)}, ErrorCode.BAD_TEXT),
    ]
    for fields, code in wrong:
        request = frames.Report(id=ID, category=Category.SPAM, **fields)
        server.refused(ada, request, code)
    with server.refusing(ErrorCode.ONESELF):
        report_member(server, ada, account(ada))


@pytest.mark.parametrize("asker", [GUEST, OPERATOR])
def test_whoever_has_no_account_reports_nothing(server: Policies, asker: Asker) -> None:
    bob = server.person("bob")
    request = frames.Report(id=ID, category=Category.SPAM, person="bob")
    server.refused(asker, request, ErrorCode.NO_ACCOUNT)
    server.refused(
        asker,
        frames.Report(id=ID, category=Category.SPAM, space=opens(server, bob)),
        ErrorCode.NO_ACCOUNT,
    )
    with server.refusing(ErrorCode.NO_ACCOUNT):
        report_member(server, asker, account(bob))


def test_a_space_that_just_ended_can_be_reported(server: Policies) -> None:
    owner, ada, bob = server.owner(), *server.people_of("ada", "bob")
    space = opens(server, bob)
    server.carry_out(server.programme.ended(space, server.now))
    number = report(server, ada, space=space)
    assert [r.id for r in reports(server, owner)] == [number]


def test_the_queue_has_a_limit(server: Policies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OPEN", 2)
    owner, ada = server.owner(), server.person("ada")
    server.people_of("bob", "cem", "dan")
    first = report(server, ada, person="bob")
    report(server, ada, person="cem")
    request = frames.Report(id=ID, category=Category.SPAM, person="dan")
    server.refused(ada, request, ErrorCode.TOO_MANY)
    server.restart()
    server.refused(ada, request, ErrorCode.TOO_MANY)
    assert report(server, ada, person="bob") == first
    acts(server, owner, first, Outcome.DISMISS)
    report(server, ada, person="dan")


def test_of_too_many_closed_reports_the_oldest_are_forgotten(
    server: Policies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CLOSED", 1)
    owner, ada = server.owner(), server.person("ada")
    bob, _, _ = server.people_of("bob", "cem", "dan")
    numbers = [report_member(server, ada, account(bob), recording=RECORDING).report]
    numbers += [report(server, ada, person=handle) for handle in ("cem", "dan")]
    for number in numbers[:2]:
        acts(server, owner, number, Outcome.DISMISS)
    server.carry_out(server.desk.due(server.now))
    for _ in range(2):
        assert [r.id for r in reports(server, owner, closed=True)] == numbers[1:2]
        assert [r.id for r in reports(server, owner)] == numbers[2:]
        server.restart()
    assert server.database.fetch(GetEvidencePart(numbers[0], 0, owner.key)) is None
    assert server.desk.due(server.now) == []


# -- who may what ----------------------------------------------------------------------------------


def test_long_queues_come_in_pages_that_fit_into_a_frame(server: Policies) -> None:
    owner = server.owner()
    askers = server.people_of(*(f"person_{i}" for i in range(2 * PAGE)))
    server.person("bob")
    note = "\U0001f600" * MAX_REPORT_CHARS
    numbers = [report(server, asker, person="bob", note=note) for asker in askers]
    for closed in (False, True):
        found: list[int] = []
        after = 0
        for _ in range(2):
            page = server.asks(owner, frames.ListReports(id=ID, closed=closed, after=after))
            assert len(page.reports) == PAGE
            found += [r.id for r in page.reports]
            after = page.next
        assert after == 0
        assert found == numbers
        for number in numbers if not closed else ():
            acts(server, owner, number, Outcome.DISMISS)


def test_people_are_no_moderators(server: Policies) -> None:
    owner, ada, bob = server.owner(), *server.people_of("ada", "bob")
    space = opens(server, bob)
    number = report(server, owner, person="bob")
    for asker, code in [(ada, ErrorCode.NOT_ALLOWED), (GUEST, ErrorCode.NO_ACCOUNT)]:
        for request in (
            frames.ListReports(id=ID),
            frames.Act(id=ID, report=number, outcome=Outcome.DISMISS),
            frames.Act(id=ID, report=99, outcome=Outcome.DISMISS),
            frames.GetEvidence(id=ID, report=number),
            frames.GetEvidence(id=ID, report=99),
            frames.CloseSpace(id=ID, space=space),
            frames.CloseSpace(id=ID, space="nowhere"),
        ):
            server.refused(asker, request, code)


@pytest.mark.parametrize("outcome", Outcome)
def test_who_may_act_on_whom_is_as_the_table_says(server: Policies, outcome: Outcome) -> None:
    owner = server.owner()
    cast = {
        ServerRole.OWNER: owner,
        ServerRole.MODERATOR: server.moderator(owner, "mod"),
        ServerRole.PERSON: server.person("ada"),
    }
    others = {
        ServerRole.MODERATOR: lambda n: server.moderator(owner, f"mod_{n}"),
        ServerRole.PERSON: lambda n: server.person(f"person_{n}"),
    }
    reporter, host = server.people_of("reporter", "host")
    space = opens(server, host)
    number = 0
    for actor, table in SERVER_PERMISSIONS[ServerAction.ACT].items():
        for target in ServerRole:
            number += 1
            whom = others[target](number) if target in others else owner
            assert whom.account is not None
            reported = report(server, reporter, person=whom.account.handle, space=space)
            request = frames.Act(id=ID, report=reported, outcome=outcome)
            if target in table:
                server.asks(cast[actor], request)
            else:
                server.refused(cast[actor], request, ErrorCode.NOT_ALLOWED)


def test_nobody_handles_reports_about_themselves(server: Policies) -> None:
    owner = server.owner()
    mod = server.moderator(owner, "mod")
    ada = server.person("ada")
    numbers = [report(server, ada, person="mod"), report(server, ada, space=opens(server, mod))]
    assert reports(server, mod) == []
    assert [r.id for r in reports(server, owner)] == numbers
    server.asks(owner, frames.DismissModerator(id=ID, person="mod"))
    server.asks(owner, frames.AppointModerator(id=ID, person="mod"))
    mod = server.people.asker(mod.key)
    for number in numbers:
        for outcome in Outcome:
            request = frames.Act(id=ID, report=number, outcome=outcome)
            server.refused(mod, request, ErrorCode.NOT_ALLOWED)


# -- decisions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", Outcome)
def test_a_decided_report_is_closed_and_its_reporter_is_told(
    server: Policies, outcome: Outcome
) -> None:
    owner = server.owner()
    mod = server.moderator(owner, "mod")
    ada, bob = server.people_of("ada", "bob")
    number = report(server, ada, person="bob", space=opens(server, bob))
    acts(server, mod, number, outcome, "secret" if outcome is not Outcome.DISMISS else "why")
    notice = take_outcome(server, ada)
    assert (notice.report, notice.outcome) == (number, outcome)
    assert notice.text.startswith("thank you for your report; ")
    assert "secret" not in notice.text
    assert ("why" in notice.text) == (outcome is Outcome.DISMISS)
    for _ in range(2):
        assert reports(server, mod) == []
        [closed] = reports(server, mod, closed=True)
        assert (closed.id, closed.outcome, closed.moderator) == (number, outcome, "mod")
        for again in Outcome:
            request = frames.Act(id=ID, report=number, outcome=again)
            server.refused(owner, request, ErrorCode.NO_SUCH_REPORT)
        server.restart()
    server.refused(owner, frames.Act(id=ID, report=99, outcome=outcome), ErrorCode.NO_SUCH_REPORT)


def test_a_decision_with_a_note_unfit_to_be_shown_is_refused(server: Policies) -> None:
    owner, ada, _ = server.owner(), *server.people_of("ada", "bob")
    number = report(server, ada, person="bob")
    request = frames.Act(id=ID, report=number, outcome=Outcome.WARN, note="\x1b[2J")
    server.refused(owner, request, ErrorCode.BAD_TEXT)


def test_the_operator_decides_as_nobody_in_particular(server: Policies) -> None:
    ada, bob = server.people_of("ada", "bob")
    number = report(server, ada, person="bob")
    acts(server, OPERATOR, number, Outcome.BAN)
    assert server.people.banned(account(bob))
    [closed] = reports(server, OPERATOR, closed=True)
    assert (closed.outcome, closed.moderator) == (Outcome.BAN, "")


def test_a_warning_reaches_the_person_or_the_host(server: Policies) -> None:
    owner, ada, bob = server.owner(), *server.people_of("ada", "bob")
    space = opens(server, bob)
    for number, note, text in [
        (report(server, ada, person="bob"), "be kind", ": be kind"),
        (report(server, ada, space=space), "", "warns you"),
    ]:
        server.take_told()
        acts(server, owner, number, Outcome.WARN, note)
        [warned] = [frame for _, frame in server.told if isinstance(frame, frames.Warned)]
        assert (account(bob), warned) in server.told
        assert warned.text.endswith(text)


def test_a_person_is_removed_from_the_space_where_they_were_met(server: Policies) -> None:
    owner, ada, bob, cem = server.owner(), *server.people_of("ada", "bob", "cem")
    space = opens(server, cem)
    member = report_member(server, ada, account(bob), space).report
    guest = report_member(server, ada, GUEST.key, space).report
    by_name = report(server, bob, person="ada", space=space)
    removed: list[tuple[int, Who]] = [
        (member, account(bob)),
        (guest, GUEST.key),
        (by_name, account(ada)),
    ]
    for number, who in removed:
        acts(server, owner, number, Outcome.REMOVE)
        assert server.heard == [RemoveFromSpace(space, who, account(owner))]


def test_nobody_is_removed_from_where_nobody_is(server: Policies) -> None:
    owner, ada, _, cem = server.owner(), *server.people_of("ada", "bob", "cem")
    space, later = opens(server, cem), schedule(server, cem)
    nowhere = report(server, ada, person="bob")
    ended = report(server, ada, person="cem", space=space)
    not_yet = report(server, cem, person="bob", space=later)
    about_space = report(server, owner, space=space)
    server.carry_out(server.programme.ended(space, server.now))
    for number, code in [
        (nowhere, ErrorCode.NOT_ALLOWED),
        (ended, ErrorCode.SPACE_ENDED),
        (not_yet, ErrorCode.NOT_STARTED),
        (about_space, ErrorCode.SPACE_ENDED),
    ]:
        request = frames.Act(id=ID, report=number, outcome=Outcome.REMOVE)
        server.refused(owner, request, code)


def test_a_reported_space_is_ended(server: Policies) -> None:
    owner, ada, bob = server.owner(), *server.people_of("ada", "bob")
    for space in (opens(server, bob), schedule(server, bob)):
        number = report(server, ada, space=space)
        acts(server, owner, number, Outcome.REMOVE, "no more")
        text = "a moderator of the server has ended this space: no more"
        assert server.heard == [EndSpace(space, text)]
        server.carry_out(server.programme.ended(space, server.now))


def test_a_ban_strikes_the_person_or_the_present_host(server: Policies) -> None:
    owner, ada, bob, cem, dan = server.owner(), *server.people_of("ada", "bob", "cem", "dan")
    space = opens(server, cem)
    acts(server, owner, report(server, ada, person="bob"), Outcome.BAN, "enough")
    assert server.expelled() == [account(bob)]
    [expelled] = [e for e in server.heard if isinstance(e, Expelled)]
    assert "enough" in expelled.text
    number = report(server, ada, space=space)
    record = server.programme.record(space)
    server.changes(msgspec.structs.replace(record, host=account(dan)))
    acts(server, owner, number, Outcome.BAN)
    assert server.expelled() == [account(dan)]
    server.restart()
    assert [server.people.banned(account(a)) for a in (ada, bob, cem, dan)] == [
        False, True, False, True,
    ]  # fmt: skip


def test_of_a_guest_only_the_place_can_be_taken(server: Policies) -> None:
    owner, ada, bob = server.owner(), *server.people_of("ada", "bob")
    space = opens(server, bob)
    number = report_member(server, ada, GUEST.key, space).report
    [shown] = reports(server, owner)
    assert (shown.person, shown.guest, shown.space) == ("", True, space)
    server.restart()
    assert report_member(server, ada, GUEST.key, space).report == number
    request = frames.Act(id=ID, report=number, outcome=Outcome.WARN)
    server.refused(owner, request, ErrorCode.NOT_ALLOWED)
    acts(server, owner, number, Outcome.BAN)
    assert server.heard == [RemoveFromSpace(space, GUEST.key, account(owner))]
    assert take_outcome(server, ada).outcome is Outcome.REMOVE


def test_a_host_does_not_escape_by_calling_the_space_off(server: Policies) -> None:
    owner, ada, bob = server.owner(), *server.people_of("ada", "bob")
    space = schedule(server, bob)
    number = report(server, ada, space=space)
    server.asks(bob, frames.CancelSpace(id=ID, space=space))
    acts(server, owner, number, Outcome.BAN)
    assert server.people.banned(account(bob))


def test_a_report_of_a_space_that_is_forgotten_can_be_dismissed_only(
    server: Policies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programme, "MAX_ENDED", 0)
    owner, ada, bob = server.owner(), *server.people_of("ada", "bob")
    space = schedule(server, bob)
    number = report(server, ada, space=space)
    server.asks(bob, frames.CancelSpace(id=ID, space=space))
    server.carry_out(server.programme.due(server.now))
    assert [r.space for r in reports(server, owner)] == [space]
    for outcome in (Outcome.WARN, Outcome.REMOVE, Outcome.BAN):
        request = frames.Act(id=ID, report=number, outcome=outcome)
        server.refused(owner, request, ErrorCode.NO_SUCH_SPACE)
    acts(server, owner, number, Outcome.DISMISS)


def test_a_moderator_ends_any_space(server: Policies) -> None:
    owner, ada = server.owner(), server.person("ada")
    mod = server.moderator(owner, "mod")
    space = opens(server, ada)
    server.asks(mod, frames.CloseSpace(id=ID, space=space, reason=" too loud "))
    text = "a moderator of the server has ended this space"
    assert server.heard == [EndSpace(space, f"{text}: too loud")]
    server.asks(OPERATOR, frames.CloseSpace(id=ID, space=space))
    assert server.heard == [EndSpace(space, text)]
    bad = frames.CloseSpace(id=ID, space=space, reason="\x1b")
    server.refused(mod, bad, ErrorCode.BAD_TEXT)
    server.carry_out(server.programme.ended(space, server.now))
    server.refused(mod, frames.CloseSpace(id=ID, space=space), ErrorCode.SPACE_ENDED)
    server.refused(mod, frames.CloseSpace(id=ID, space="nowhere"), ErrorCode.NO_SUCH_SPACE)


# -- evidence --------------------------------------------------------------------------------------


def get_evidence(server: Policies, asker: Asker, handle: str, number: int) -> evidence.Recording:
    """As a client does: all parts, then opened with the device's key."""
    data = b""
    for part in range(100):
        reply = server.asks(asker, frames.GetEvidence(id=ID, report=number, part=part))
        assert isinstance(reply, frames.Evidence)
        assert len(reply.data) <= MAX_CHUNK_BYTES
        data += reply.data
        if not reply.more:
            break
    return evidence.open(private_key(handle), reply.sender_key, reply.sealed_key, data)


def test_moderators_hear_what_the_reported_speaker_said(server: Policies) -> None:
    owner = server.owner()
    mod = server.moderator(owner, "mod")
    ada, bob = server.people_of("ada", "bob")
    reply = report_member(server, ada, account(bob), recording=RECORDING)
    assert reply.evidence
    for _ in range(2):
        [info] = reports(server, mod)
        assert (info.evidence_s, info.evidence_until) == (30, server.now.utc_s + 14 * DAY_S)
        assert get_evidence(server, owner, "owner", reply.report) == RECORDING
        assert get_evidence(server, mod, "mod", reply.report) == RECORDING
        server.restart()
    beyond = frames.GetEvidence(id=ID, report=reply.report, part=100)
    server.refused(mod, beyond, ErrorCode.NO_EVIDENCE)
    again = report_member(server, ada, account(bob), recording=RECORDING[:5])
    assert again == reply
    assert get_evidence(server, mod, "mod", reply.report) == RECORDING


def test_what_was_said_is_nowhere_in_the_clear(server: Policies) -> None:
    owner = server.owner()
    ada, bob = server.people_of("ada", "bob")
    number = report_member(server, ada, account(bob), recording=RECORDING).report
    stored, part, more = b"", 0, True
    while more:
        rows = server.database.fetch(GetEvidencePart(number, part, owner.key))
        _, data, more = cast(tuple[EvidenceKeyRecord, bytes, bool], rows)
        stored += data
        part += 1
    assert len(stored) == len(evidence.pack(RECORDING)) + 16
    for _, opus in RECORDING:
        assert opus[1:17] not in stored


def test_nobody_else_gets_the_evidence(server: Policies) -> None:
    owner = server.owner()
    mod = server.moderator(owner, "mod")
    ada = server.person("ada")
    number = report_member(server, ada, account(mod), recording=RECORDING).report
    late = server.moderator(owner, "late")
    request = frames.GetEvidence(id=ID, report=number)
    for asker in (mod, late, OPERATOR):  # reported, appointed later, and no device at all
        server.refused(asker, request, ErrorCode.NO_EVIDENCE)
    assert get_evidence(server, owner, "owner", number) == RECORDING
    server.refused(owner, frames.GetEvidence(id=ID, report=99), ErrorCode.NO_SUCH_REPORT)


def test_without_a_recording_or_a_moderator_there_is_no_evidence(server: Policies) -> None:
    ada, bob = server.people_of("ada", "bob")
    number = report_member(server, ada, account(bob), recording=RECORDING)
    assert not number.evidence  # nobody could open it
    owner = server.owner()
    nothing: list[tuple[evidence.Recording | None, Asker]] = [(None, ada), ([], owner)]
    for recording, whom in nothing:
        reply = report_member(server, bob, account(whom), recording=recording)
        assert not reply.evidence
        request = frames.GetEvidence(id=ID, report=reply.report)
        server.refused(owner, request, ErrorCode.NO_EVIDENCE)
    assert all(info.evidence_s == 0 for info in reports(server, OPERATOR))


def test_evidence_is_deleted_when_its_time_is_over(server: Policies) -> None:
    owner = server.owner()
    ada, bob = server.people_of("ada", "bob")
    number = report_member(server, ada, account(bob), recording=RECORDING).report
    acts(server, owner, number, Outcome.DISMISS)
    server.later(14 * DAY_S - 1)
    assert server.desk.due(server.now) == []
    assert get_evidence(server, owner, "owner", number) == RECORDING
    server.later(1)
    request = frames.GetEvidence(id=ID, report=number)
    server.refused(owner, request, ErrorCode.NO_EVIDENCE)  # even before it is deleted
    server.restart()
    server.carry_out(server.desk.due(server.now))
    assert server.desk.due(server.now) == []
    for _ in range(2):
        server.refused(owner, request, ErrorCode.NO_EVIDENCE)
        assert server.database.fetch(GetEvidencePart(number, 0, owner.key)) is None
        [info] = reports(server, owner, closed=True)
        assert (info.evidence_s, info.evidence_until) == (0, 0)
        server.restart()


def test_a_report_and_its_evidence_are_stored_together(server: Policies) -> None:
    server.owner()
    ada, bob = server.people_of("ada", "bob")
    request = frames.Report(id=ID, category=Category.HATE, member=5)
    effects = server.desk.report_member(ada, request, account(bob), "space", RECORDING, server.now)
    server.carry_out(effects)
    [saved] = [effect.changes for effect in effects if isinstance(effect, Save)]
    kinds = [type(change.record) for change in saved if isinstance(change, Put)]
    parts = -(-(len(evidence.pack(RECORDING)) + 16) // MAX_CHUNK_BYTES)
    assert kinds == [ReportRecord, *[EvidencePartRecord] * parts, EvidenceKeyRecord]


def test_a_request_of_others_is_not_answered_here(server: Policies) -> None:
    ada = server.person("ada")
    with server.refusing(ErrorCode.UNKNOWN_TYPE):
        server.desk.handle(ada, frames.WhoAmI(id=ID), server.now)


def test_nobody_fills_the_queue_alone(server: Policies) -> None:
    ada, bob = server.people_of("ada", "bob")
    people = [f"person_{number}" for number in range(MAX_OPEN_EACH + 1)]
    server.people_of(*people)
    for handle in people[1:]:
        report(server, ada, person=handle)
    request = frames.Report(id=ID, category=Category.SPAM, person=people[0])
    server.refused(ada, request, ErrorCode.TOO_MANY)
    report(server, bob, person=people[0])
