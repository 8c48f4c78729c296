"""Frames of accounts, devices, following, blocking, and access to the server."""

from enum import StrEnum

import msgspec

from protocol.frames.base import (
    U32,
    Handle,
    KeptNotice,
    Label,
    Name,
    NoHandle,
    Reply,
    ReportText,
    Request,
    Time,
    Token,
)
from protocol.roles import ServerRole


class Access(StrEnum):
    """Who can use the spaces of a server: everyone, or people with access."""

    OPEN = "open"
    LIMITED = "limited"


class Account(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An account, as its owner and the server's moderators see it.  invited_by: who gave it
    access, where somebody did."""

    handle: Handle
    name: Name
    role: ServerRole = ServerRole.PERSON
    access: bool = True
    banned: bool = False
    invited_by: NoHandle = ""
    since: Time = 0


class Person(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Somebody, as the asker sees them.  following, blocked: done by the asker; follows_you: by
    them.  Whether somebody has blocked the asker is told to nobody."""

    handle: Handle
    name: Name
    following: bool = False
    follows_you: bool = False
    blocked: bool = False


class Device(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One key of an account.  this: the one that asks."""

    id: U32
    label: Label
    added: Time
    this: bool = False


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who asked for access."""

    handle: Handle
    name: Name
    asked: Time
    note: ReportText


# -- requests ---------------------------------------------------------------------------------


class Register(Request, frozen=True, kw_only=True, tag="register"):
    """Makes an account, with the key of this connection as its first device.
    Reply: `account`."""

    handle: Handle
    name: Name


class WhoAmI(Request, frozen=True, kw_only=True, tag="who_am_i"):
    """Asks for one's own account.  Reply: `account`."""


class Rename(Request, frozen=True, kw_only=True, tag="rename"):
    """Changes one's display name, also where one is a member now.  Reply: `account`."""

    name: Name


class MakeDeviceCode(Request, frozen=True, kw_only=True, tag="make_device_code"):
    """Makes a code with which one more device joins the account: once, within ten minutes.
    Reply: `device_code`."""


class AddDevice(Request, frozen=True, kw_only=True, tag="add_device"):
    """Makes the key of this connection a device of the account that made the code.
    Reply: `account`."""

    code: Token
    label: Label


class ListDevices(Request, frozen=True, kw_only=True, tag="list_devices"):
    """Asks for the devices of one's account.  Reply: `devices`."""


class RemoveDevice(Request, frozen=True, kw_only=True, tag="remove_device"):
    """Takes a device from the account; its sessions end.  Reply: `ok`."""

    device: U32


class ClaimServer(Request, frozen=True, kw_only=True, tag="claim_server"):
    """Makes the asker the server's owner; the code is good once, for the first who shows it.
    Reply: `account`."""

    code: Token


class Find(Request, frozen=True, kw_only=True, tag="find"):
    """Looks somebody up.  Reply: `person`."""

    person: Handle


class Follow(Request, frozen=True, kw_only=True, tag="follow"):
    """Follows somebody.  Reply: `ok`."""

    person: Handle


class Unfollow(Request, frozen=True, kw_only=True, tag="unfollow"):
    """Follows somebody no more.  Reply: `ok`."""

    person: Handle


class Followers(Request, frozen=True, kw_only=True, tag="followers"):
    """Asks who follows somebody, oneself without `person`.  Reply: `people`."""

    person: NoHandle = ""
    after: U32 = 0


class Following(Request, frozen=True, kw_only=True, tag="following"):
    """Asks whom somebody follows, oneself without `person`.  Reply: `people`."""

    person: NoHandle = ""
    after: U32 = 0


class Block(Request, frozen=True, kw_only=True, tag="block"):
    """Blocks somebody: from now on neither hears the other in a mix or is shown the other's chat,
    messages, invites and posts, and in spaces that the asker hosts they cannot be.  Following
    between the two ends.  Reply: `ok`."""

    person: Handle


class Unblock(Request, frozen=True, kw_only=True, tag="unblock"):
    """Takes a block back.  Reply: `ok`."""

    person: Handle


class Blocked(Request, frozen=True, kw_only=True, tag="blocked"):
    """Asks whom one has blocked.  Reply: `people`."""

    after: U32 = 0


class AskAccess(Request, frozen=True, kw_only=True, tag="ask_access"):
    """Puts oneself onto the waiting list of a limited server.  Reply: `ok`."""

    note: ReportText = ""


class WaitingList(Request, frozen=True, kw_only=True, tag="waiting_list"):
    """Asks who waits for access.  Reply: `waiting`."""

    after: U32 = 0


class Grant(Request, frozen=True, kw_only=True, tag="grant"):
    """Gives somebody access.  Reply: `ok`."""

    person: Handle


class Revoke(Request, frozen=True, kw_only=True, tag="revoke"):
    """Takes somebody's access back.  Reply: `ok`."""

    person: Handle


class SetAccess(Request, frozen=True, kw_only=True, tag="set_access"):
    """Opens the server to all, or limits it.  Reply: `ok`."""

    access: Access


class AppointModerator(Request, frozen=True, kw_only=True, tag="appoint_moderator"):
    """Makes somebody a moderator of the server.  Reply: `ok`."""

    person: Handle


class DismissModerator(Request, frozen=True, kw_only=True, tag="dismiss_moderator"):
    """Makes a moderator of the server a person like others again.  Reply: `ok`."""

    person: Handle


class Ban(Request, frozen=True, kw_only=True, tag="ban"):
    """Keeps somebody off the server with all their devices; with_invited: also everyone whom they
    gave access, and so on.  Their sessions end.  Reply: `ok`."""

    person: Handle
    reason: ReportText = ""
    with_invited: bool = False


class Unban(Request, frozen=True, kw_only=True, tag="unban"):
    """Lets somebody back onto the server.  Reply: `ok`."""

    person: Handle


class ListAccounts(Request, frozen=True, kw_only=True, tag="list_accounts"):
    """Asks for the server's accounts, or only those that are banned or moderate it.
    Reply: `accounts`."""

    banned: bool = False
    moderators: bool = False
    after: U32 = 0


class Seen(Request, frozen=True, kw_only=True, tag="seen"):
    """Says that a kept notice was shown: it does not come again.  Reply: `ok`."""

    notice: U32


# -- replies ------------------------------------------------------------------------------------


class AccountReply(Reply, frozen=True, kw_only=True, tag="account"):
    """One's account; access: how the server is run."""

    account: Account
    server: Access


class DeviceCode(Reply, frozen=True, kw_only=True, tag="device_code"):
    """The code, and until when it is good."""

    code: Token
    until: Time


class Devices(Reply, frozen=True, kw_only=True, tag="devices"):
    """All devices of the account."""

    devices: list[Device]


class PersonReply(Reply, frozen=True, kw_only=True, tag="person"):
    """The one who was looked up."""

    person: Person


class People(Reply, frozen=True, kw_only=True, tag="people"):
    """At most 100 people.  next: for `after`, where there are more; else 0."""

    people: list[Person]
    next: U32 = 0


class WaitingReply(Reply, frozen=True, kw_only=True, tag="waiting"):
    """At most 12 who wait, the longest first.  next: for `after`, where there are more; else 0."""

    waiting: list[Waiting]
    next: U32 = 0


class Accounts(Reply, frozen=True, kw_only=True, tag="accounts"):
    """At most 100 accounts.  next: for `after`, where there are more; else 0."""

    accounts: list[Account]
    next: U32 = 0


# -- notices ----------------------------------------------------------------------------------


class AccessGranted(KeptNotice, frozen=True, kw_only=True, tag="access_granted"):
    """You have access to this server now; by: who gave it."""

    by: NoHandle = ""
