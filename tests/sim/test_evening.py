"""Evenings: people come, talk, write, raise hands, block, are moderated and removed, change address
and leave, at random by a seed, while the network loses, delays, reorders and repeats.  Those who
may not speak try.  The checkers watch throughout."""

import os
import random

import pytest

from protocol import frames
from protocol.connection import MS
from protocol.roles import Role
from spaces_client.client import Phase
from spaces_client.events import Chat
from spaces_server.node import Limits
from tests.sim.checkers import (
    EncodesFollowRecipes,
    NoncesNeverRepeat,
    OnlySpeakersAreMixed,
    every_request_has_one_answer,
    gain_of,
    hears_exactly,
    views_agree,
)
from tests.sim.network import ROUGH
from tests.sim.world import OPERATOR, Person, World

SEEDS = int(os.environ.get("SPACES_SIM_SEEDS", "4"))
TONES = [431.0, 617.0, 853.0]
LISTENERS_TONES = [1_103.0, 1_409.0]  # with which they are not heard unless they are brought up
ROUNDS = 4
ROUND_MS = 4_000.0
SETTLE_MS = 2_000.0  # until everyone hears what they are to hear from now on
ROUGH_LEVEL = (0.25, 1.5)  # a fifth of it may be concealed
ROUGH_SILENCE = 0.12


class Evening:
    """One of twenty seconds.  blocked: pairs between whom there is a block, with the number of the
    newest line of chat that either may have said before."""

    def __init__(self, seed: int, limits: Limits | None = None) -> None:
        self.world = World(seed, ROUGH, limits)
        self.rng: random.Random = self.world.rng
        self.blocked: list[tuple[Person, Person, int]] = []
        self.lines = 0
        self.talked = self.tried = 0  # how often somebody spoke who may, and who may not
        NoncesNeverRepeat(self.world)
        self.encodes = EncodesFollowRecipes(self.world)
        self.mixed = OnlySpeakersAreMixed(self.world)
        self.people = self.world.gathered(TONES, listeners=len(LISTENERS_TONES))
        for person, tone_hz in zip(self.people[len(TONES) :], LISTENERS_TONES, strict=True):
            person.tone_hz = tone_hz
        (self.space,) = self.world.node.spaces.values()
        self.operator = self.world.person(key=OPERATOR)
        self.world.run_until(lambda: self.operator.client.phase is Phase.CONNECTED)

    @property
    def inside(self) -> list[Person]:
        return [p for p in self.people if p.inside]

    def play(self) -> World:
        world, rng = self.world, self.rng
        begun_ns = world.now_ns
        for _ in range(ROUNDS):
            self.something_happens()
            for person in self.people:
                person.talking = rng.random() < 0.6
                person.rogue = rng.random() < 0.5
            world.run(SETTLE_MS / 2)
            if rng.random() < 0.5:
                world.network.rebind(rng.choice(self.people).address)
            world.run(SETTLE_MS / 2)
            if not self.settled():  # a request, or what tells of an address, was lost several times
                world.run_until(self.settled, ms=40_000)
                world.run(SETTLE_MS / 2)
            from_ns = world.now_ns
            world.run(ROUND_MS - SETTLE_MS)
            self.everyone_hears_whom_they_should(from_ns)
        for person in self.people:
            person.talking = False
        world.run(20_000 - ROUNDS * ROUND_MS)
        feed = self.space.feed
        world.run_until(lambda: self.replies_missing() == 0)
        world.run_until(lambda: all(p.client.view.number == feed.number for p in self.inside))
        assert world.now_ns - begun_ns >= 20_000 * MS
        every_request_has_one_answer(world)
        views_agree(world)
        self.nobody_reads_whom_they_blocked()
        assert self.encodes.ticks_checked >= 1_000
        assert world.node.mixer.stats.encodes > 0 or not self.talked
        assert self.mixed.refused > 0 or not self.tried
        return world

    # -- what happens ----------------------------------------------------------------------------

    def something_happens(self) -> None:
        """A few requests at random, sensible or not."""
        for _ in range(6):
            if len(self.inside) < 2:  # the others were removed or banned, or have blocked them
                break
            actor, other = self.rng.sample(self.inside, 2)
            deed = self.rng.choice([self.on_stage, self.on_stage, self.for_oneself, self.grave])
            deed(actor, other)
        raised = [p for p in self.inside if p.me.hand]
        if raised:
            self.world.ask(self.host(), frames.BringUp, member=raised[0].me.id)
        self.world.run(300)

    def host(self) -> Person:
        return next((p for p in self.inside if p.me.role is Role.HOST), self.inside[0])

    def on_stage(self, actor: Person, other: Person) -> None:
        kinds = [
            frames.BringUp, frames.Offer, frames.TakeDown, frames.Mute, frames.LetUnmute,
            frames.Appoint, frames.Dismiss, frames.HandOver,
        ]  # fmt: skip
        asker = self.rng.choice([self.host(), actor])
        self.world.ask(asker, self.rng.choice(kinds), member=other.me.id)

    def for_oneself(self, actor: Person, other: Person) -> None:
        rng, ask = self.rng, self.world.ask
        match rng.randrange(5):
            case 0:
                kinds: list[type[frames.Request]] = [
                    frames.RaiseHand, frames.LowerHand, frames.StepUp, frames.Accept,
                    frames.Decline, frames.Unmute, frames.MuteAll, frames.Look, frames.Roster,
                ]  # fmt: skip
                ask(actor, rng.choice(kinds))
            case 1:
                percent = rng.choice([0, 50, 100, 200])
                ask(actor, frames.SetVolume, member=other.me.id, percent=percent)
            case 2:
                ask(actor, frames.React, emoji=rng.choice(actor.client.view.reactions))
            case _:
                self.lines += 1
                ask(actor, frames.Chat, text=f"{self.lines} {actor.name}")

    def grave(self, actor: Person, other: Person) -> None:
        """Blocks, and seldom what takes somebody out of the space."""
        if self.rng.random() < 0.5:
            if isinstance(self.world.answer(actor, frames.Block, person=other.handle), frames.Ok):
                self.blocked.append((actor, other, self.lines))
        elif len(self.inside) > 3 and self.rng.random() < 0.3:
            if self.rng.random() < 0.5:
                self.world.answer(self.host(), frames.Remove, member=other.me.id)
            elif other is not self.host():
                self.world.answer(self.operator, frames.Ban, person=other.handle)
            if self.space.member_of(self.account(other)) is None:
                # At the latest when they notice that nobody answers: CLOSE is lost now and then.
                self.world.run_until(lambda: not other.inside, ms=40_000)

    def account(self, person: Person) -> int:
        return self.world.node.house.people.find(person.handle).id

    # -- what must hold ----------------------------------------------------------------------------

    def everyone_hears_whom_they_should(self, from_ns: int) -> None:
        talking = [p for p in self.inside if p.heard_by_all]
        self.talked += len(talking)
        self.tried += sum(
            p.talking and p.rogue and p not in talking and p.client.phase is Phase.CONNECTED
            for p in self.people
        )
        for person in self.people:
            if person.client.phase is not Phase.CLOSED:
                hears_exactly(
                    person, talking if person.inside else [], self.people, from_ns,
                    self.world.now_ns, level=ROUGH_LEVEL, silence=ROUGH_SILENCE, gain=self.gain,
                )  # fmt: skip

    def gain(self, hearer: Person, source: Person) -> float:
        return gain_of(self.world, self.space.record.id, hearer.me.id, source.me.id)

    def settled(self) -> bool:
        """Whether every request has been answered, and the server knows where everybody is."""
        sessions = self.world.node.endpoint.sessions.values()
        proven = {s.connection.address for s in sessions if s.connection.credit_bytes is None}
        network = self.world.network
        return self.replies_missing() == 0 and all(
            network.known_as(p.address) in proven for p in self.inside
        )

    def replies_missing(self) -> int:
        stayed = [p for p in self.world.people if not p.was_lost]
        return sum(p.replies[i] == 0 for p in stayed for i in p.asked)

    def nobody_reads_whom_they_blocked(self) -> None:
        for one, other, before in self.blocked:
            for reader, author in ((one, other), (other, one)):
                for event in reader.events:
                    if isinstance(event, Chat):
                        number, _, name = event.line.text.partition(" ")
                        assert int(number) <= before or name != author.name


@pytest.mark.parametrize("seed", range(SEEDS))
def test_an_evening_on_a_bad_network(seed: int) -> None:
    Evening(seed).play()


@pytest.mark.parametrize("seed", range(100, 100 + (SEEDS + 1) // 2))
def test_an_evening_whose_audience_is_a_crowd_or_not(seed: int) -> None:
    """Two who listen are one, until everybody is on stage or gone."""
    Evening(seed, Limits(complexity=0, crowd_above=1)).play()


def test_the_same_seed_gives_the_same_trace() -> None:
    first, second, other = Evening(7).play(), Evening(7).play(), Evening(8).play()
    assert first.digest == second.digest
    assert first.network.sent == second.network.sent
    assert other.digest != first.digest
