"""The desk of the server's moderators: reports, what is decided on them, and the evidence.

Nobody handles reports about themselves: they neither see them, nor can their devices open the
evidence.
"""

from collections.abc import Callable
from itertools import islice
from typing import Protocol, cast

import msgspec
from msgspec import UNSET

from protocol import evidence, frames
from protocol.frames import MAX_CHUNK_BYTES, Category, ErrorCode, Outcome, ReportInfo
from protocol.roles import ServerAction, ServerRole, server_allowed
from spaces_server.policy.asking import clean_text, require_account, server_role
from spaces_server.policy.effects import (
    Answer,
    Ask,
    Asker,
    Effect,
    EndSpace,
    Keep,
    Moment,
    RefusedError,
    RemoveFromSpace,
    Save,
    Who,
)
from spaces_server.records import (
    AccountRecord,
    Change,
    DeviceRecord,
    Drop,
    EvidenceKeyRecord,
    EvidencePartRecord,
    GetEvidencePart,
    Loaded,
    Put,
    ReportRecord,
    Rows,
    SpaceRecord,
)

PAGE = frames.MAX_TEXTS_PAGE
MAX_OPEN = 1_000
MAX_OPEN_EACH = 20  # of one reporter: nobody fills the queue alone
MAX_CLOSED = 20_000  # kept; the oldest are forgotten
DAY_S = 86_400

Subject = tuple[int, bytes, str]  # account, guest's key, space: what a report is about


class Relations(Protocol):
    """What the desk must know of people."""

    def account(self, account: int, /) -> AccountRecord: ...
    def find(self, handle: str, /) -> AccountRecord: ...
    def moderators(self) -> list[AccountRecord]: ...
    def devices_of(self, account: int, /) -> list[DeviceRecord]: ...
    def ban(
        self, moderator_id: int, account_id: int, reason: str, with_invited: bool, now: Moment, /
    ) -> list[Effect]: ...


class Spaces(Protocol):
    """What the desk must know of spaces; the programme does."""

    def record(self, space_id: str, /) -> SpaceRecord: ...
    def announced(self, space_id: str, /) -> SpaceRecord: ...
    def get(self, space_id: str, /) -> SpaceRecord: ...


class Desk:
    """evidence_days: how long what is sealed with a report is kept."""

    def __init__(
        self,
        loaded: Loaded,
        people: Relations,
        spaces: Spaces,
        entropy: Callable[[int], bytes],
        *,
        evidence_days: int = 14,
    ) -> None:
        self._people = people
        self._spaces = spaces
        self._entropy = entropy
        self._evidence_s = evidence_days * DAY_S
        self._reports = {r.id: r for r in sorted(loaded.of(ReportRecord), key=lambda r: r.id)}
        self._last_id = max(self._reports, default=0)
        self._open = {
            (r.reporter, _subject(r)): r.id for r in self._reports.values() if not r.outcome
        }
        self._with_evidence = {r.id for r in self._reports.values() if r.evidence_until_s}

    def handle(self, asker: Asker, request: frames.Request, now: Moment) -> list[Effect]:
        """-> effects, with exactly one Answer or Ask.  Raises RefusedError, and then nothing has
        changed."""
        match request:
            case frames.Report():
                return self._report_by_name(asker, request, now)
            case frames.ListReports(closed=closed, after=after):
                self._permit(asker, ServerAction.LIST_REPORTS)
                return [Answer(self._page(asker, request.id, closed, after))]
            case frames.Act():
                return self._act(asker, request, now)
            case frames.GetEvidence(report=number, part=part):
                return self._get_evidence(asker, request.id, number, part, now)
            case frames.CloseSpace(space=space_id, reason=reason):
                self._permit(asker, ServerAction.CLOSE_SPACE)
                text = _ended_text(_note(reason))
                self._spaces.announced(space_id)
                return [Answer(frames.Ok(re=request.id)), EndSpace(space_id, text)]
        raise RefusedError(ErrorCode.UNKNOWN_TYPE)

    def due(self, now: Moment) -> list[Effect]:
        """Deletes evidence whose time is over, and the oldest of too many closed reports."""
        changes: list[Change] = []
        for number in sorted(self._with_evidence):
            report = self._reports[number]
            if report.evidence_until_s <= now.utc_s:
                changes += self._drop_evidence(number)
                report = msgspec.structs.replace(report, evidence_s=0, evidence_until_s=0)
                self._reports[number] = report
                changes.append(Put(report))
        surplus = len(self._reports) - len(self._open) - MAX_CLOSED
        closed = (r.id for r in self._reports.values() if r.outcome)
        for number in list(islice(closed, max(0, surplus))):
            changes += self._drop_evidence(number)
            del self._reports[number]
            changes.append(Drop(ReportRecord, {"id": number}))
        return [Save(tuple(changes))] if changes else []

    # -- reporting ---------------------------------------------------------------------------------

    def _report_by_name(self, asker: Asker, request: frames.Report, now: Moment) -> list[Effect]:
        if request.member is not UNSET:
            raise RefusedError(ErrorCode.NOT_JOINED)
        space = "" if request.space is UNSET else self._spaces.record(request.space).id
        if request.person is not UNSET:
            person = self._people.find(request.person).id
        elif space:
            person = 0
            if self._spaces.record(space).host == require_account(asker).id:
                raise RefusedError(ErrorCode.ONESELF)
        else:
            raise RefusedError(
                ErrorCode.MALFORMED, "a report is about a person, a member or a space"
            )
        return self._report(asker, request, (person, b"", space), [], now)

    def report_member(
        self,
        asker: Asker,
        request: frames.Report,
        who: Who,
        space_id: str,
        recording: evidence.Recording | None,
        now: Moment,
    ) -> list[Effect]:
        """The report of a member of a space that the asker is in.  recording: what the member
        said last, where the server's policy has evidence."""
        person, key = (who, b"") if isinstance(who, int) else (0, who)
        return self._report(asker, request, (person, key, space_id), recording or [], now)

    def _report(
        self,
        asker: Asker,
        request: frames.Report,
        subject: Subject,
        recording: evidence.Recording,
        now: Moment,
    ) -> list[Effect]:
        reporter = require_account(asker)
        person, key, space = subject
        note = _note(request.note)
        if person == reporter.id:
            raise RefusedError(ErrorCode.ONESELF)
        report = ReportRecord(
            id=self._last_id + 1,
            reporter=reporter.id,
            person=person,
            key=key,
            space=space,
            category=request.category,
            note=note,
            at_s=now.utc_s,
            evidence_s=0,
            evidence_until_s=0,
            outcome="",
            moderator=0,
        )
        before = self._open.get((reporter.id, _subject(report)))
        if before is not None:
            report = self._reports[before]
            return [Answer(_reported(request.id, report))]
        if sum(by == reporter.id for by, _ in self._open) >= MAX_OPEN_EACH:
            text = "the moderators have not decided on your other reports yet"
            raise RefusedError(ErrorCode.TOO_MANY, text)
        if len(self._open) >= MAX_OPEN:
            raise RefusedError(ErrorCode.TOO_MANY, "the moderators have too many open reports")
        sealed = self._seal(report, recording)
        if sealed:
            report = msgspec.structs.replace(
                report,
                evidence_s=evidence.duration_s(recording),
                evidence_until_s=now.utc_s + self._evidence_s,
            )
            self._with_evidence.add(report.id)
        self._last_id = report.id
        self._reports[report.id] = report
        self._open[reporter.id, _subject(report)] = report.id
        return [Answer(_reported(request.id, report)), Save((Put(report), *sealed))]

    def _seal(self, report: ReportRecord, recording: evidence.Recording) -> list[Change]:
        devices = [
            device.key
            for moderator in self._people.moderators()
            if moderator.id != report.person
            for device in self._people.devices_of(moderator.id)
        ]
        if not recording or not devices:
            return []
        sealed = evidence.seal(recording, devices, self._entropy)
        starts = range(0, len(sealed.data), MAX_CHUNK_BYTES)
        return [
            *(
                Put(
                    EvidencePartRecord(
                        report=report.id,
                        part=number,
                        data=sealed.data[start : start + MAX_CHUNK_BYTES],
                    )
                )
                for number, start in enumerate(starts)
            ),
            *(
                Put(
                    EvidenceKeyRecord(
                        report=report.id,
                        device=device,
                        sender_key=key.sender_key,
                        sealed_key=key.sealed_key,
                    )
                )
                for device, key in sealed.keys.items()
            ),
        ]

    def _drop_evidence(self, number: int) -> list[Change]:
        if number not in self._with_evidence:
            return []
        self._with_evidence.discard(number)
        return [
            Drop(EvidencePartRecord, {"report": number}),
            Drop(EvidenceKeyRecord, {"report": number}),
        ]

    # -- moderating --------------------------------------------------------------------------------

    def _permit(self, asker: Asker, action: ServerAction) -> None:
        role = server_role(asker)
        if not server_allowed(action, role, role, same=True):
            raise RefusedError(ErrorCode.NOT_ALLOWED)

    def _known(self, number: int) -> ReportRecord:
        report = self._reports.get(number)
        if report is None:
            raise RefusedError(ErrorCode.NO_SUCH_REPORT)
        return report

    def _responsible(self, report: ReportRecord) -> AccountRecord | None:
        """The person whom it is about, or the host of the space; None for a guest, and of a space
        that is known no more."""
        if report.key:
            return None
        if report.person:
            return self._people.account(report.person)
        try:
            return self._people.account(self._spaces.record(report.space).host)
        except RefusedError:
            return None

    def _about_asker(self, asker: Asker, report: ReportRecord) -> bool:
        responsible = self._responsible(report)
        return responsible is not None and responsible.id == asker.who

    def _page(self, asker: Asker, request_id: int, closed: bool, after: int) -> frames.Reports:
        found = (
            r
            for r in self._reports.values()
            if r.id > after and bool(r.outcome) == closed and not self._about_asker(asker, r)
        )
        reports = list(islice(found, PAGE + 1))
        page = reports[:PAGE]
        return frames.Reports(
            re=request_id,
            reports=[self._info(r) for r in page],
            next=page[-1].id if len(reports) > len(page) else 0,
        )

    def _info(self, report: ReportRecord) -> ReportInfo:
        handle = self._people.account(report.person).handle if report.person else ""
        moderator = self._people.account(report.moderator).handle if report.moderator else ""
        return ReportInfo(
            id=report.id,
            reporter=self._people.account(report.reporter).handle,
            at=report.at_s,
            category=Category(report.category),
            note=report.note,
            person=handle,
            guest=bool(report.key),
            space=report.space,
            evidence_s=report.evidence_s,
            evidence_until=report.evidence_until_s,
            outcome=Outcome(report.outcome) if report.outcome else UNSET,
            moderator=moderator,
        )

    def _act(self, asker: Asker, request: frames.Act, now: Moment) -> list[Effect]:
        self._permit(asker, ServerAction.LIST_REPORTS)  # numbers of reports are not for others
        report = self._known(request.report)
        if report.outcome:
            raise RefusedError(ErrorCode.NO_SUCH_REPORT, "this report has been decided already")
        responsible = self._responsible(report)
        target = ServerRole.PERSON if responsible is None else ServerRole(responsible.role)
        same = self._about_asker(asker, report)
        if not server_allowed(ServerAction.ACT, server_role(asker), target, same=same):
            raise RefusedError(ErrorCode.NOT_ALLOWED)
        note = _note(request.note)
        warning = _with("a moderator of the server warns you", note)
        moderator = 0 if asker.account is None else asker.account.id
        outcome = request.outcome
        if outcome is Outcome.BAN and report.key:
            outcome = Outcome.REMOVE  # a guest has no account to ban
        effects: list[Effect] = []
        match outcome:
            case Outcome.WARN:
                whom = _with_account(report, responsible).id
                effects = [Keep(whom, lambda notice: frames.Warned(notice=notice, text=warning))]
            case Outcome.REMOVE:
                effects = [self._removal(report, moderator, note)]
            case Outcome.BAN:
                whom = _with_account(report, responsible).id
                effects = self._people.ban(moderator, whom, note, request.with_invited, now)
        decided = msgspec.structs.replace(report, outcome=outcome, moderator=moderator)
        self._reports[report.id] = decided
        del self._open[report.reporter, _subject(report)]
        text = _outcome_text(decided, note)

        def told(notice: int) -> frames.OutcomeNotice:
            return frames.OutcomeNotice(notice=notice, report=report.id, outcome=outcome, text=text)

        return [
            Answer(frames.Ok(re=request.id)),
            Save((Put(decided),)),
            *effects,
            Keep(report.reporter, told),
        ]

    def _removal(
        self, report: ReportRecord, moderator: int, note: str
    ) -> RemoveFromSpace | EndSpace:
        if not report.person and not report.key:
            self._spaces.announced(report.space)
            return EndSpace(report.space, _ended_text(note))
        if not report.space:
            raise RefusedError(
                ErrorCode.NOT_ALLOWED, "this report names no space; warn the person, or ban them"
            )
        self._spaces.get(report.space)
        return RemoveFromSpace(report.space, report.person or report.key, moderator)

    def _get_evidence(
        self, asker: Asker, request_id: int, number: int, part: int, now: Moment
    ) -> list[Effect]:
        self._permit(asker, ServerAction.GET_EVIDENCE)
        if self._known(number).evidence_until_s <= now.utc_s:
            raise RefusedError(ErrorCode.NO_EVIDENCE)

        def found(rows: Rows) -> frames.Evidence:
            if rows is None:
                raise RefusedError(
                    ErrorCode.NO_EVIDENCE, "there is no (more) evidence that this device can open"
                )
            key, data, more = cast(tuple[EvidenceKeyRecord, bytes, bool], rows)
            return frames.Evidence(
                re=request_id,
                sender_key=key.sender_key,
                sealed_key=key.sealed_key,
                data=data,
                more=more,
            )

        return [Ask(GetEvidencePart(number, part, asker.key), found)]


# -- parts of reports ------------------------------------------------------------------------------


def _subject(report: ReportRecord) -> Subject:
    """What makes two reports of one person the same: a person is one wherever they were met."""
    space = "" if report.person or report.key else report.space
    return report.person, report.key, space


def _with_account(report: ReportRecord, responsible: AccountRecord | None) -> AccountRecord:
    if responsible is not None:
        return responsible
    if report.key:
        raise RefusedError(ErrorCode.NOT_ALLOWED, "a guest cannot be warned, only removed")
    raise RefusedError(ErrorCode.NO_SUCH_SPACE)


def _reported(request_id: int, report: ReportRecord) -> frames.Reported:
    return frames.Reported(re=request_id, report=report.id, evidence=report.evidence_until_s > 0)


def _note(text: str) -> str:
    return clean_text(text, frames.MAX_REPORT_CHARS, lines=True) if text else ""


def _with(text: str, note: str) -> str:
    return f"{text}: {note}" if note else text


def _ended_text(note: str) -> str:
    return _with("a moderator of the server has ended this space", note)


def _outcome_text(report: ReportRecord, note: str) -> str:
    """For the reporter.  The note of a dismissal is meant for them; other notes are not."""
    of_space = not report.person and not report.key
    done = {
        Outcome.DISMISS: _with("we looked at it and found nothing against the rules", note),
        Outcome.WARN: "its host was warned" if of_space else "the person was warned",
        Outcome.REMOVE: "the space was ended" if of_space else "the person was removed",
        Outcome.BAN: "its host was banned" if of_space else "the person was banned",
    }
    return f"thank you for your report; {done[Outcome(report.outcome)]}"
