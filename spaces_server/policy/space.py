"""A live space, and what each request of those in it does.

Pure policy.  Every way in takes what happened and the time, changes the memory, and gives back
effects, values that say what is to happen; the house and the node carry them out.  Nothing here
knows of connections, packets or samples, and the audio path never reads a space.
"""

from bisect import bisect_right

import msgspec
from msgspec import UNSET

from protocol import frames
from protocol.clock import samples_at
from protocol.frames import ErrorCode, Settings, WhoSpeaks
from protocol.roles import Action, Role, allowed
from spaces_server.policy.asking import clean_text
from spaces_server.policy.effects import (
    Answer,
    Asker,
    Effect,
    GainSet,
    Invited,
    Moment,
    RefusedError,
    Tell,
    Who,
)
from spaces_server.policy.gathering import NOBODY, Gathering, Person
from spaces_server.policy.gathering import Relations as Relations
from spaces_server.policy.gathering import SpaceRules as SpaceRules
from spaces_server.records import Put

# With the longest names, a snapshot of the largest stage and all hands fits into one frame, and so
# does a page of the roster.
MAX_HANDS = 50
ROSTER_PAGE = 80
MAX_OFFERS = 100

ACTIONS: dict[type[frames.Request], Action] = {
    kind: Action(frames.tag(kind))
    for kind in (
        frames.Leave,
        frames.RaiseHand,
        frames.LowerHand,
        frames.StepUp,
        frames.BringUp,
        frames.Offer,
        frames.Accept,
        frames.Decline,
        frames.TakeDown,
        frames.Appoint,
        frames.Dismiss,
        frames.HandOver,
        frames.Mute,
        frames.MuteAll,
        frames.Unmute,
        frames.LetUnmute,
        frames.Remove,
        frames.SetVolume,
        frames.Configure,
        frames.Chat,
        frames.DeleteLine,
        frames.React,
        frames.Close,
        frames.MakeInvite,
        frames.ListInvites,
        frames.RevokeInvite,
        frames.InvitePerson,
    )
}


class Space(Gathering):
    """One live space, empty until its host has entered."""

    # -- requests ------------------------------------------------------------------------------

    def handle(
        self, member: int, asker: Asker, request: frames.Request, now: Moment
    ) -> list[Effect]:
        """-> effects, with exactly one Answer.  Raises RefusedError, and then nothing changed.
        asker: as all policy gets it; what they may do here, the member says."""
        self._check_open()
        me = self._members[member]
        reply = self._look(me, request, now)
        if reply is None:
            action = ACTIONS.get(type(request))
            if action is None:
                raise RefusedError(ErrorCode.UNKNOWN_TYPE)
            target = getattr(request, "member", UNSET)
            whom = me if target is UNSET else self._member(target)
            if isinstance(request, frames.DeleteLine):
                self._permit_line(me, request.line)
            else:
                self._permit(action, me, whom.role, same=me is whom)
            reply = self._carry_out(me, whom, request, now) or frames.Ok(re=request.id)
        return self._done(now, Answer(reply))

    def _member(self, member: int) -> Person:
        person = self._members.get(member)
        if person is None:
            raise RefusedError(ErrorCode.NO_SUCH_MEMBER)
        return person

    @staticmethod
    def _permit(action: Action, me: Person, whom: Role, *, same: bool) -> None:
        if not allowed(action, me.role, whom, same=same):
            raise RefusedError(ErrorCode.NOT_ALLOWED)

    def _permit_line(self, me: Person, line: int) -> None:
        """A line is its author's: in the role that they have now, or is kept for them."""
        author = self._chat.author(line)
        role = self._stage.role(author)
        self._permit(Action.DELETE_LINE, me, role, same=me.account == author)

    def _look(self, me: Person, request: frames.Request, now: Moment) -> frames.Reply | None:
        """What anybody here may see."""
        match request:
            case frames.Roster(after=after):
                begin = bisect_right(self._ids, after)
                page = self._ids[begin : begin + ROSTER_PAGE]
                return frames.RosterPage(
                    re=request.id,
                    members=[self.view(member) for member in page],
                    more=begin + len(page) < len(self._ids),
                )
            case frames.CatchUp(after=after):
                hidden = self._relations.blocks(me.account) if me.account else NOBODY
                found = self.feed.after(after, hidden)
                if found is None:
                    raise RefusedError(ErrorCode.TOO_OLD)
                updates, state_hash = found
                return frames.Updates(
                    re=request.id,
                    space=self.record.id,
                    first=after + 1,
                    updates=updates,
                    hash=state_hash,
                )
            case frames.Look():
                return frames.State(
                    re=request.id, space=self.record.id, you=me.view(), snapshot=self.snapshot()
                )
            case frames.AskClock(offset=offset):
                me.clock = me.clock if offset is UNSET else offset
                voices = [
                    frames.VoiceClock(seat=p.seat, offset=p.clock)
                    for p in self._listed.values()
                    if p.seat is not None and p.clock is not None
                ]
                return frames.Clocks(re=request.id, now=samples_at(now.ns), voices=voices)
        return None

    def _carry_out(
        self, me: Person, whom: Person, request: frames.Request, now: Moment
    ) -> frames.Reply | None:
        """-> the reply, None for `ok`.  The asker may do it, if the conditions are met."""
        match request:
            case frames.Leave():
                self._leave(me, now)
            case frames.Close():
                self._end("the host closed it", now)
            case frames.Remove():
                self._remove(whom.who, me.account, now, "a moderator of the space has removed you")
            case frames.SetVolume(percent=percent):
                self._set_volume(me, whom, percent)
            case frames.Configure():
                self._configure(request)
            case frames.Chat(text=text):
                return self._say(me, text, request.id, now)
            case frames.DeleteLine(line=line):
                author = self._chat.author(line)
                self._chat.delete(line)
                self.feed.purge(line)
                self.feed.add(frames.LineGoneUpdate(line=line), (author,))
            case frames.React(emoji=emoji):
                self._react(me, emoji)
            case frames.MakeInvite():
                return self._make_invite(me, request, now)
            case frames.ListInvites():
                return self._list_invites(me, request.id, now)
            case frames.RevokeInvite(invite=token):
                self._check_grant(me, Role(self._invites.get(token).role))
                self._changes += self._invites.revoke(token)
            case frames.InvitePerson():
                return self._invite_person(me, request, now)
            case frames.Offer():
                self._offer(me, whom)
            case frames.Decline():
                self._decline(me)
            case frames.MuteAll():
                self._mute_all(me)
            case frames.HandOver():
                self._hand_over(me, whom)
            case _:
                self._on_stage(me, whom, request, now)
        return None

    def _on_stage(self, me: Person, whom: Person, request: frames.Request, now: Moment) -> None:
        """The requests that change one member's place or hand, who is told."""
        match request:
            case frames.RaiseHand():
                raised = sum(p.hand > 0 for p in self._listed.values())
                if not whom.hand and raised >= MAX_HANDS:
                    raise RefusedError(ErrorCode.HANDS_FULL)
                self._set_hand(whom, max(now.utc_s, 1))
            case frames.LowerHand():
                self._set_hand(whom, 0)
            case frames.StepUp():
                self._check_may_step_up(whom)
                self._stage.check_room(Role.SPEAKER)
                self._come_up(whom.account, Role.SPEAKER)
            case frames.BringUp():
                if not whom.hand:
                    raise RefusedError(ErrorCode.NO_HAND)
                self._stage.check_room(Role.SPEAKER)
                self._come_up(whom.account, Role.SPEAKER, forgiven=True)
            case frames.Accept():
                if whom.id not in self._offers:
                    raise RefusedError(ErrorCode.NOT_OFFERED)
                self._stage.check_room(Role.SPEAKER)
                self._come_up(whom.account, Role.SPEAKER, forgiven=True)
            case frames.TakeDown():
                self._staged(whom.account, self._stage.drop(whom.account))
                self._spend(me, whom)
            case frames.Appoint():
                self._stage.check_co_hosts()
                self._set_role(whom, Role.CO_HOST)
            case frames.Dismiss():
                self._set_role(whom, Role.SPEAKER)
                self._spend(me, whom)
            case frames.Mute():
                held = me is not whom and not self.settings.free_unmute
                self._staged(whom.account, self._stage.mute(whom.account, held=held))
            case frames.Unmute():
                if self._stage.places[whom.account].held and not self.settings.free_unmute:
                    raise RefusedError(ErrorCode.MUTED_BY_MODERATOR)
                self._staged(whom.account, self._stage.unmute(whom.account))
            case frames.LetUnmute():
                self._staged(whom.account, self._stage.let_unmute(whom.account))
        self._tell_you(whom)

    def _spend(self, me: Person, whom: Person) -> None:
        """Whoever a moderator has taken down does not come up by a token that they kept."""
        if me is not whom:
            self._invites.spend(whom.who)

    def _check_may_step_up(self, me: Person) -> None:
        match self.settings.who_speaks:
            case WhoSpeaks.INVITED:
                text = "here only those who are invited speak; raise a hand"
                raise RefusedError(ErrorCode.NOT_ALLOWED, text)
            case WhoSpeaks.FOLLOWED:
                if not self._relations.follows(self.record.host, me.account):
                    text = "here only those whom the host follows speak unasked; raise a hand"
                    raise RefusedError(ErrorCode.NOT_ALLOWED, text)

    def _offer(self, me: Person, whom: Person) -> None:
        if self._relations.has_blocked(me.account, whom.account):
            raise RefusedError(ErrorCode.BLOCKED)
        if whom.id not in self._offers and len(self._offers) >= MAX_OFFERS:
            raise RefusedError(ErrorCode.TOO_MANY)
        if self._relations.has_blocked(whom.account, me.account):
            return  # nothing of the asker's reaches them, and the asker does not notice
        self._offers[whom.id] = me
        self._out.append(Tell(whom.id, frames.Offered(space=self.record.id, by=me.id)))

    def _decline(self, me: Person) -> None:
        by = self._offers.pop(me.id, None)
        if by is None:
            raise RefusedError(ErrorCode.NOT_OFFERED)
        if by.id in self._members:
            self._out.append(Tell(by.id, frames.Declined(space=self.record.id, member=me.id)))

    def _mute_all(self, me: Person) -> None:
        """Also those whose place is kept: they come back muted."""
        held = not self.settings.free_unmute
        for account in self._stage.places:
            role = self._stage.role(account)
            if account != me.account and allowed(Action.MUTE, me.role, role, same=False):
                self._staged(account, self._stage.mute(account, held=held))
                if account in self._by_who:
                    self._tell_you(self._by_who[account])

    def _hand_over(self, me: Person, whom: Person) -> None:
        self._make_host(whom)
        self._set_role(me, Role.SPEAKER if self._stage.co_hosts_full() else Role.CO_HOST)
        self._tell_you(whom)
        self._tell_you(me)

    def _set_volume(self, me: Person, whom: Person, percent: int) -> None:
        before = self._gain(me, whom)
        self._volumes.set(me.who, whom.who, percent)
        gain = self._gain(me, whom)
        if gain != before:
            self._out.append(GainSet(me.id, whom.id, gain))

    def _configure(self, request: frames.Configure) -> None:
        title = self.record.title
        if isinstance(request.title, str):
            title = clean_text(request.title, frames.MAX_TITLE_CHARS)
        given = {name: getattr(request, name, UNSET) for name in Settings.__struct_fields__}
        changes = {name: value for name, value in given.items() if value is not UNSET}
        settings = msgspec.structs.replace(self.settings, **changes)
        if (title, settings) == (self.record.title, self.settings):
            return
        self.settings = settings
        self.record = msgspec.structs.replace(
            self.record, title=title, settings=msgspec.msgpack.encode(settings)
        )
        self._changes.append(Put(self.record))
        self.feed.add(frames.SettingsUpdate(title=title, settings=settings))

    # -- requests: chat and reactions ----------------------------------------------------------

    def _say(self, me: Person, text: str, request_id: int, now: Moment) -> frames.Said:
        if not self.settings.chat:
            raise RefusedError(ErrorCode.CHAT_OFF)
        text = clean_text(text, frames.MAX_CHAT_CHARS)
        if len(text.encode()) > frames.MAX_CHAT_BYTES:
            raise RefusedError(ErrorCode.BAD_TEXT, "this line is too long; say it in two")
        if me.role not in (Role.HOST, Role.CO_HOST):
            self._chat.check_pace(me.account, self.settings.slow_s, now.ns)
        line = self._chat.add(me.account, now.ns)
        update = frames.ChatUpdate(
            line=line, member=me.id, name=me.name, handle=me.handle, text=text
        )
        self.feed.add(update, (me.account,))
        return frames.Said(re=request_id, line=line)

    def _react(self, me: Person, emoji: str) -> None:
        if emoji not in self._rules.reactions:
            raise RefusedError(ErrorCode.BAD_REACTION)
        self._reactions.add(emoji)
        if me.place is not None:
            self._reactions.show(emoji, me.id, me.account)

    # -- requests: invites ---------------------------------------------------------------------

    @staticmethod
    def _check_grant(me: Person, role: Role) -> None:
        """Nobody gives away, or takes back, a role that only others may give."""
        grants = {Role.LISTENER, Role.SPEAKER} | ({Role.CO_HOST} if me.role is Role.HOST else set())
        if role not in grants:
            text = f"you cannot invite anybody as {role.value.replace('_', '-')}"
            raise RefusedError(ErrorCode.NOT_ALLOWED, text)

    def _make_invite(self, me: Person, request: frames.MakeInvite, now: Moment) -> frames.Invited:
        self._check_grant(me, request.role)
        invite, changes = self._invites.make(
            me.account,
            request.role,
            now,
            lifetime_s=request.lifetime_s,
            max_uses=request.max_uses,
        )
        self._changes += changes
        return frames.Invited(re=request.id, invite=invite.token)

    def _list_invites(self, me: Person, request_id: int, now: Moment) -> frames.Invites:
        """Those that the asker could have made: a co-host does not get at co-hosts' tokens."""
        shown = [
            i for i in self._invites.live(now) if i.role != Role.CO_HOST or me.role is Role.HOST
        ]
        return frames.Invites(
            re=request_id,
            invites=[
                frames.InviteInfo(
                    invite=invite.token,
                    issuer=self._handle(invite.issuer),
                    role=Role(invite.role),
                    person=self._handle(invite.person),
                    until=invite.until_s,
                    uses=invite.uses,
                    max_uses=invite.max_uses,
                )
                for invite in shown
            ],
        )

    def _handle(self, account: int) -> str:
        return self._relations.account(account).handle if account else ""

    def _invite_person(
        self, me: Person, request: frames.InvitePerson, now: Moment
    ) -> frames.Invited:
        self._check_grant(me, request.role)
        text = request.text
        if text:
            text = clean_text(text, frames.MAX_MESSAGE_CHARS, lines=True)
        person = self._relations.find(request.person).id
        if person == me.account:
            raise RefusedError(ErrorCode.ONESELF)
        if self._relations.has_blocked(me.account, person):
            raise RefusedError(ErrorCode.BLOCKED, "you have blocked this person")
        if person in self._removed:
            raise RefusedError(ErrorCode.REMOVED, "this person was removed from the space")
        invite, changes = self._invites.make(
            me.account, request.role, now, person=person, max_uses=1
        )
        self._changes += changes
        self._out.append(Invited(person, invite, text))
        return frames.Invited(re=request.id, invite=invite.token)

    def reported(self, member: int, target: int) -> Who:
        """Whom a member reports.  Raises RefusedError."""
        me, whom = self._members[member], self._member(target)
        self._permit(Action.REPORT, me, whom.role, same=me is whom)
        return whom.who
