"""Evenings: people come, talk, raise hands, are moderated, change address and leave, at random by
a seed, while the network loses, delays, reorders and repeats.  The checkers watch throughout."""

import os

import pytest

from protocol import frames
from protocol.connection import MS
from protocol.roles import Role
from spaces_client.client import Phase
from tests.sim.checkers import (
    EncodesFollowRecipes,
    NoncesNeverRepeat,
    every_request_has_one_answer,
    hears_exactly,
    views_agree,
)
from tests.sim.network import ROUGH
from tests.sim.world import Person, World

SEEDS = int(os.environ.get("SPACES_SIM_SEEDS", "5"))
TONES = [431.0, 617.0, 853.0]
ROUNDS = 4
ROUND_MS = 4_000.0
SETTLE_MS = 2_000.0  # until everyone hears what they are to hear from now on
ROUGH_LEVEL = (0.25, 1.5)  # a fifth of it may be concealed
ROUGH_SILENCE = 0.12


def play(seed: int) -> World:
    """One evening of twenty seconds."""
    world = World(seed, ROUGH)
    NoncesNeverRepeat(world)
    encodes = EncodesFollowRecipes(world)
    people = world.gathered(TONES, listeners=2)
    begun_ns = world.now_ns
    for _ in range(ROUNDS):
        _something_happens(world, people)
        speakers = [p for p in people if p.client.may_speak]
        for person in people:
            person.talking = person in speakers and world.rng.random() < 0.6
        world.run(SETTLE_MS / 2)
        if world.rng.random() < 0.5:
            world.network.rebind(world.rng.choice(people).address)
        world.run(SETTLE_MS / 2)
        from_ns = world.now_ns
        world.run(ROUND_MS - SETTLE_MS)
        talking = [p for p in people if p.talking and p.client.may_speak]
        for person in people:
            hears_exactly(
                person, talking, people, from_ns, world.now_ns,
                level=ROUGH_LEVEL, silence=ROUGH_SILENCE,
            )  # fmt: skip
    for person in people:
        person.talking = False
    world.run(20_000 - ROUNDS * ROUND_MS)
    (space,) = world.node.spaces.values()
    world.run_until(lambda: all(p.client.view.number == space.feed.number for p in people))
    world.run_until(lambda: _replies_missing(world) == 0)
    assert world.now_ns - begun_ns >= 20_000 * MS
    every_request_has_one_answer(world)
    views_agree(world)
    assert world.node.mixer.stats.encodes > 0
    assert encodes.ticks_checked >= 1_000
    return world


def _replies_missing(world: World) -> int:
    return sum(p.replies[i] == 0 for p in world.people for i in p.asked)


def _something_happens(world: World, people: list[Person]) -> None:
    """A few requests at random, sensible or not, and now and then another address."""
    rng = world.rng
    host = people[0]
    for _ in range(3):
        actor, other = rng.sample(people, 2)
        kind = rng.choice(
            [
                frames.RaiseHand, frames.LowerHand, frames.BringUp, frames.TakeDown, frames.Mute,
                frames.Unmute, frames.Appoint, frames.Dismiss, frames.Look, frames.Roster,
            ]
        )  # fmt: skip
        if kind in (frames.BringUp, frames.TakeDown, frames.Mute, frames.Appoint, frames.Dismiss):
            world.ask(rng.choice([host, actor]), kind, member=other.me.id)
        else:
            world.ask(actor, kind)
    raised = [p for p in people if p.me.hand]
    if raised:
        world.ask(host, frames.BringUp, member=raised[0].me.id)
    world.run(300)
    for person in people:  # who came on stage without a voice of their own gets none: they listen
        assert person.client.phase is Phase.CONNECTED
        if person.me.role is Role.LISTENER:
            person.talking = False


@pytest.mark.parametrize("seed", range(SEEDS))
def test_an_evening_on_a_bad_network(seed: int) -> None:
    play(seed)


def test_the_same_seed_gives_the_same_trace() -> None:
    first, second, other = play(7), play(7), play(8)
    assert first.digest == second.digest
    assert first.network.sent == second.network.sent
    assert other.digest != first.digest
