"""The policies of finding and safety as a server has them: with real people, over a real store.

What they save is stored, what they ask is fetched, and `restart` makes them anew from what the
store holds: whatever was answered before must be answered after it.  At the end of every test, what
they remember must be what is stored.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from protocol import frames
from protocol.frames import ErrorCode
from protocol.noise import public_key
from protocol.roles import ServerRole
from spaces_server.policy.desk import Desk
from spaces_server.policy.effects import (
    Answer,
    Ask,
    Asker,
    Effect,
    Expelled,
    Keep,
    Moment,
    RefusedError,
    Save,
    TellAccount,
)
from spaces_server.policy.mail import Mail
from spaces_server.policy.people import People
from spaces_server.policy.posts import Posts
from spaces_server.policy.programme import LiveInfo, Programme
from spaces_server.records import Change, Commit, Loaded, Put, SpaceRecord
from spaces_server.store.database import Database

ID = 77  # of the requests here
START = Moment(5_000_000_000, 1_700_000_000)
DAY_S = 86_400


def private_key(handle: str, device: int = 0) -> bytes:
    return f"{handle}/{device}".encode().ljust(32, b".")


class Policies:
    """live: what goes on in live spaces.  present: who is connected.  told: the notices that
    went to accounts, kept ones too.  heard: the other effects of the last request."""

    def __init__(self) -> None:
        self.database = Database("sqlite://")
        self.database.upgrade()
        self.now = START
        self.live: dict[str, LiveInfo] = {}
        self.present: set[int] = set()
        self.told: list[tuple[int, frames.Frame]] = []
        self.heard: list[Effect] = []
        self._number = 0
        self._make(self.database.load())

    def _make(self, loaded: Loaded) -> None:
        self.people = People(loaded, self._entropy)
        self.programme = Programme(loaded, self.people, self.live.get, self._entropy)
        self.mail = Mail(loaded, self.people, self.present.__contains__)
        self.posts = Posts(loaded, self.people, self.programme)
        self.desk = Desk(loaded, self.people, self.programme, self._entropy)

    def restart(self) -> None:
        self._make(self.database.load())

    def remembered(self) -> list[Any]:
        """What must be the same after a restart."""
        reminders = {k: v for k, v in self.programme._reminders.items() if v}
        return [
            self.programme._by_state,
            reminders,
            self.programme._reminded,
            self.posts._last_id,
            self.desk._reports,
            self.desk._open,
            self.desk._with_evidence,
        ]

    def changes(self, record: SpaceRecord) -> None:
        """What a live space does when its record changes."""
        self.programme.changed(record)
        self.carry_out([Save((Put(record),))])

    def _entropy(self, n: int) -> bytes:
        self._number += 1
        return self._number.to_bytes(8, "big").rjust(n, b"\0")[-n:]

    def later(self, seconds: float) -> None:
        self.now = Moment(self.now.ns + int(seconds * 1e9), self.now.utc_s + int(seconds))

    # -- people ------------------------------------------------------------------------------------

    def person(self, handle: str) -> Asker:
        """Registers somebody."""
        key = public_key(private_key(handle))
        asker = self.people.asker(key)
        self.asks(asker, frames.Register(id=ID, handle=handle, name=handle.title()))
        return self.people.asker(key)

    def people_of(self, *handles: str) -> list[Asker]:
        return [self.person(handle) for handle in handles]

    def owner(self, handle: str = "owner") -> Asker:
        """Registers somebody who owns the server."""
        asker = self.person(handle)
        made = self.people.owner_code(self.now)
        assert made is not None
        code, effects = made
        self.carry_out(effects)
        self.asks(asker, frames.ClaimServer(id=ID, code=code))
        return self.people.asker(asker.key)

    def moderator(self, owner: Asker, handle: str) -> Asker:
        asker = self.person(handle)
        self.asks(owner, frames.AppointModerator(id=ID, person=handle))
        asker = self.people.asker(asker.key)
        assert asker.account is not None
        assert asker.account.role == ServerRole.MODERATOR
        return asker

    # -- requests ----------------------------------------------------------------------------------

    def _policy(self, request: frames.Request) -> Any:
        kind = type(request)
        if kind in frames.PEOPLE_REQUESTS:
            return self.people
        if kind in frames.SAFETY_REQUESTS:
            return self.desk
        if kind in (frames.SendMessage, frames.ListMessages):
            return self.mail
        if "post" in kind.__name__.lower() or kind in (
            frames.NotePart, frames.Home, frames.GetNote,
        ):  # fmt: skip
            return self.posts
        return self.programme

    def asks(self, asker: Asker, request: frames.Request) -> Any:
        """Carries a request out, and everything that it does.  -> the reply."""
        return self.replies(self._policy(request).handle(asker, request, self.now))

    def replies(self, effects: list[Effect]) -> Any:
        """The one reply among the effects, when all of them are carried out."""
        answers = self.carry_out(effects)
        assert len(answers) == 1
        assert isinstance(answers[0], frames.Reply)
        assert answers[0].re == ID
        return answers[0]

    def carry_out(self, effects: list[Effect]) -> list[frames.Frame]:
        answers: list[frames.Frame] = []
        changes: list[Change] = []
        self.heard = []
        for effect in effects:
            match effect:
                case Answer(frame):
                    answers.append(frame)
                case Save(saved):
                    changes += saved
                case Keep(account, make):
                    notice, saved = self.people.keep(account, make)
                    changes += saved
                    self.told.append((account, notice))
                case TellAccount(account, frame):
                    self.told.append((account, frame))
                case Ask(query, then):
                    found = then(self.database.fetch(query))
                    if isinstance(found, list):
                        answers += self.carry_out(found)
                    else:
                        answers.append(found)
                case _:
                    self.heard.append(effect)
        if changes:
            self.database.commit([Commit(1, tuple(changes))])
        for answer in answers:
            fits = frames.encode(answer)
            assert frames.decode(fits) == answer
        return answers

    def take_told(self) -> list[tuple[int, frames.Frame]]:
        told, self.told = self.told, []
        return told

    def expelled(self) -> list[int]:
        return [a for e in self.heard if isinstance(e, Expelled) for a in e.accounts]

    # -- refusals ----------------------------------------------------------------------------------

    @contextmanager
    def refusing(self, code: ErrorCode) -> Iterator[None]:
        """What is within is refused, and nothing has changed by it."""
        before = self._state()
        with pytest.raises(RefusedError) as error:
            yield
        assert error.value.code == code
        assert str(error.value)
        assert self._state() == before

    def refused(self, asker: Asker, request: frames.Request, code: ErrorCode) -> None:
        with self.refusing(code):
            self.asks(asker, request)

    def _state(self) -> list[Any]:
        """Everything that the policies remember, and what is stored."""
        policies = (self.people, self.programme, self.mail, self.posts, self.desk)
        plain = (int, str, dict, set, list, tuple)
        remembered = [
            {k: copy.deepcopy(v) for k, v in vars(policy).items() if isinstance(v, plain)}
            for policy in policies
        ]
        return [remembered, self.database.load()]


@pytest.fixture
def server() -> Iterator[Policies]:
    policies = Policies()
    yield policies
    remembered = policies.remembered()
    policies.restart()
    assert policies.remembered() == remembered
    policies.database.close()
