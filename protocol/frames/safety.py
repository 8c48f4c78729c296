"""Frames of reports, of the evidence that goes with them, and of the server's moderators."""

from enum import StrEnum

import msgspec
from msgspec import UNSET, UnsetType

from protocol.frames.base import (
    U32,
    Blob,
    Handle,
    KeptNotice,
    Key,
    NoHandle,
    NoSpaceId,
    Reply,
    ReportText,
    Request,
    SpaceId,
    Time,
)


class Category(StrEnum):
    """What a report is about."""

    HARASSMENT = "harassment"
    HATE = "hate"
    VIOLENCE = "violence"
    SEXUAL = "sexual"
    SELF_HARM = "self_harm"
    SPAM = "spam"
    IMPERSONATION = "impersonation"
    ILLEGAL = "illegal"
    OTHER = "other"


class Outcome(StrEnum):
    """What a moderator of the server decides on a report."""

    DISMISS = "dismiss"
    WARN = "warn"
    REMOVE = "remove"
    BAN = "ban"


class ReportInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A report, as moderators see it.  person: whom it is about; guest: somebody without an
    account; neither: the space.
    evidence_s: how many seconds of the reported speaker are sealed with it, until
    `evidence_until`.  outcome: empty while it is open."""

    id: U32
    reporter: Handle
    at: Time
    category: Category
    note: ReportText = ""
    person: NoHandle = ""
    guest: bool = False
    space: NoSpaceId = ""
    evidence_s: U32 = 0
    evidence_until: Time = 0
    outcome: Outcome | UnsetType = UNSET
    moderator: NoHandle = ""


# -- requests ---------------------------------------------------------------------------------


class Report(Request, frozen=True, kw_only=True, tag="report"):
    """Reports a person, a space, or a member of the space one is in (who may be a guest, and of
    whom there may be evidence), to the moderators of the server.  Reply: `reported`."""

    category: Category
    note: ReportText = ""
    person: Handle | UnsetType = UNSET
    member: U32 | UnsetType = UNSET
    space: SpaceId | UnsetType = UNSET


class ListReports(Request, frozen=True, kw_only=True, tag="list_reports"):
    """Asks for the open reports, the oldest first; with `closed` for the others.
    Reply: `reports`."""

    closed: bool = False
    after: U32 = 0


class Act(Request, frozen=True, kw_only=True, tag="act"):
    """Decides on a report: dismiss it, warn the person, remove them from the space (or end the
    reported space), or ban them (or the reported space's host).  The reporter gets `outcome`.
    Reply: `ok`."""

    report: U32
    outcome: Outcome
    note: ReportText = ""
    with_invited: bool = False


class GetEvidence(Request, frozen=True, kw_only=True, tag="get_evidence"):
    """Asks for part number `part` (from 0 on) of the evidence with a report, with the key that
    opens it, sealed for the device that asks.  Reply: `evidence`."""

    report: U32
    part: U32 = 0


class CloseSpace(Request, frozen=True, kw_only=True, tag="close_space"):
    """Ends any space of the server.  Reply: `ok`."""

    space: SpaceId
    reason: ReportText = ""


# -- replies ------------------------------------------------------------------------------------


class Reported(Reply, frozen=True, kw_only=True, tag="reported"):
    """The report's number; evidence: whether sealed evidence went with it."""

    report: U32
    evidence: bool = False


class Reports(Reply, frozen=True, kw_only=True, tag="reports"):
    """At most 12 reports.  next: for `after`, where there are more; else 0."""

    reports: list[ReportInfo]
    next: U32 = 0


class Evidence(Reply, frozen=True, kw_only=True, tag="evidence"):
    """A part of the sealed evidence, and what opens the whole for this device (section 12.8)."""

    sender_key: Key
    sealed_key: Blob
    data: Blob
    more: bool


# -- notices ----------------------------------------------------------------------------------


class OutcomeNotice(KeptNotice, frozen=True, kw_only=True, tag="outcome"):
    """What became of a report of yours."""

    report: U32
    outcome: Outcome
    text: str


class Warned(KeptNotice, frozen=True, kw_only=True, tag="warned"):
    """A moderator of the server warns you."""

    text: str
