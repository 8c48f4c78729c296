"""What must hold in every world, whatever happens in it."""

from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from protocol.connection import MS
from protocol.packets import HEADER_BYTES, Kind
from spaces_server.mixer.plan import HOLD_NS
from tests.sim.world import SERVER, Person, World, second_of

WINDOW = 24_000  # samples: two syllables, so that every window holds the same energy
BAND_HZ = 12.0
_HANN = np.hanning(WINDOW)

Recipe = frozenset[tuple[int, float]]  # what somebody hears: members, and how loud


def tones_heard(
    person: Person, from_ns: int, to_ns: int, tones: Iterable[float]
) -> dict[float, float]:
    """How loud each tone is in what the person heard then, 1 = as it was spoken.

    The power around each tone, its syllables' sidebands included, over windows of half a second:
    long windows would count a playout delay that changes as if it were another tone.
    """
    first = (from_ns - person.heard_since_ns) // (20 * MS)
    last = (to_ns - person.heard_since_ns) // (20 * MS)
    samples = np.concatenate([np.zeros(0, np.float32), *person.heard[max(0, first) : last]])
    windows = samples[: len(samples) // WINDOW * WINDOW].reshape(-1, WINDOW)
    assert len(windows), "nothing was recorded then"
    power = (np.abs(np.fft.rfft(windows * _HANN)) ** 2).mean(axis=0)
    return {tone: float((_band(power, tone) / _reference(tone)) ** 0.5) for tone in tones}


def _band(power: NDArray[np.float64], tone: float) -> float:
    middle, width = round(tone * WINDOW / 48_000), round(BAND_HZ * WINDOW / 48_000)
    return float(power[middle - width : middle + width + 1].sum())


@cache
def _reference(tone: float) -> float:
    return _band(np.abs(np.fft.rfft(second_of(tone)[:WINDOW] * _HANN)) ** 2, tone)


def hears_exactly(
    person: Person,
    talking: Iterable[Person],
    everyone: Iterable[Person],
    from_ns: int,
    to_ns: int,
    *,
    level: tuple[float, float] = (0.7, 1.4),  # what a voice codec does to tones
    silence: float = 0.02,
    gain: Callable[[Person, Person], float] = lambda hearer, source: 1.0,
) -> None:
    """The person hears those who talk, each within the bounds of `level` times `gain`, and not
    themselves or anybody else: nothing of them above `silence`.  (Concealed losses cost level, and
    smear.)"""
    expected = {p.tone_hz: gain(person, p) for p in talking if p is not person}
    tones = {p.tone_hz for p in everyone if p.tone_hz}
    for tone, heard in tones_heard(person, from_ns, to_ns, tones).items():
        loud = expected.get(tone, 0.0)
        if loud > 0:
            assert level[0] < heard / loud < level[1], (
                f"{person.name} hears {tone} Hz at {heard:.2f} instead of {loud:.1f}"
            )
        else:
            assert heard < silence, f"{person.name} hears {tone} Hz at {heard:.2f}, and should not"


class NoncesNeverRepeat:
    """No key and nonce twice: a stream's key is known by direction, receiver's index and whether
    it is control or media; the nonce is the header."""

    def __init__(self, world: World) -> None:
        self.seen: set[tuple[bool, bytes]] = set()
        world.on_send.append(self._watch)

    def _watch(self, source: bytes, _destination: bytes, data: bytes) -> None:
        if data[0] < Kind.CONTROL:
            return
        stream = b"control" if data[0] == Kind.CONTROL else b"media"
        used = (source == SERVER, stream + data[1:HEADER_BYTES])
        assert used not in self.seen, f"a nonce was used twice: {used}"
        self.seen.add(used)
        assert len(data) <= 1_200


def gain_of(world: World, room: str, hearer: int, source: int) -> float:
    """How loud a member is to hear another, as policy has it: oneself not at all."""
    space = world.node.spaces[room]
    people = space._members
    return 0.0 if hearer == source else space._gain(people[hearer], people[source])


class EncodesFollowRecipes:
    """Every tick encodes once for each distinct recipe; beyond that only for classes that wait
    to be joined with another, and never longer than HOLD_NS after the last change.

    Somebody is in each class that waits who was apart from the audience: who has a gain of their
    own, or had one since the last change but HOLD_NS ago, or was still apart then.  A speaker who
    mutes or leaves the stage loses their gain at once, and their class waits all the same."""

    def __init__(self, world: World) -> None:
        self.ticks_checked = 0
        self.most = 0
        self._before = 0
        self._recipe_of: dict[tuple[str, int], Recipe] = {}
        self._changed_ns = 0
        self._apart: set[tuple[str, int]] = set()  # a room, and a member
        world.after_tick.append(self._watch)

    def _watch(self, world: World) -> None:
        encodes = world.node.mixer.stats.encodes - self._before
        self._before += encodes
        recipe_of: dict[tuple[str, int], Recipe] = {}
        slack = 0
        settled = world.now_ns - self._changed_ns > HOLD_NS + 20 * MS
        if settled:
            self._apart.clear()
        for room in world.node._rooms.values():
            plan = room.mix.plan
            apart = plan._gains.keys() | (plan._class_of.keys() if settled else set())
            self._apart.update((room.id, member) for member in apart)
        for room in world.node._rooms.values():
            sounding = [m for m, s in room.mix.sources.items() if s.sounding]
            if any(m not in room.members for m in sounding):
                self._changed_ns = world.now_ns
                return  # who has left is faded out, and is not there to say who hears it
            for member in room.members:
                gains = ((m, gain_of(world, room.id, member, m)) for m in sounding)
                recipe_of[room.id, member] = frozenset(g for g in gains if g[1] > 0)
            slack += sum((room.id, member) in self._apart for member in room.members)
        if recipe_of != self._recipe_of:
            self._recipe_of = recipe_of
            self._changed_ns = world.now_ns
        recipes = {(room, recipe) for (room, _), recipe in recipe_of.items() if recipe}
        held = world.now_ns - self._changed_ns <= HOLD_NS + 20 * MS
        most = len(recipes) + (slack if held else 0)
        assert len(recipes) <= encodes <= most, (
            f"{encodes} encodes for {len(recipes)} recipes at {world.now_ns / MS:.0f} ms"
        )
        self.ticks_checked += 1
        self.most = max(self.most, encodes)


class OnlySpeakersAreMixed:
    """After every tick, audio is taken of exactly those who may speak, whatever is sent; and it
    goes to exactly those who are in the space."""

    def __init__(self, world: World) -> None:
        self.refused = 0  # packets
        world.after_tick.append(self._watch)

    def _watch(self, world: World) -> None:
        node = world.node
        assert node._rooms.keys() == node.spaces.keys()
        for room in node._rooms.values():
            space = node.spaces[room.id]
            taken = {member for member, s in room.mix.sources.items() if not s.stopped}
            assert taken == {m for m in room.members if space.speaks(m)}
            assert room.members.keys() == space._members.keys() == room.mix.plan._hearers.keys()
        assert len(node.egress) == sum(len(room.members) for room in node._rooms.values())
        self.refused = sum(node.dropped.values())


def every_request_has_one_answer(world: World) -> None:
    for person in world.people:
        for request_id in person.asked:
            count = person.replies[request_id]
            assert count == 1 or (person.was_lost and not count), (
                f"{person.name}'s request {request_id} had {count} replies"
            )


def views_agree(world: World) -> None:
    """Everyone in a space knows what the server knows, and nobody else believes to be in it."""
    inside = [(p.client.view.id, p.me.id) for p in world.people if p.inside]
    rooms = world.node._rooms.values()
    assert sorted(inside) == sorted((room.id, m) for room in rooms for m in room.members)
    for person in world.people:
        view = person.client.view
        if view.me is None or not person.inside:
            continue
        space = world.node.spaces[view.id]
        snapshot = space.snapshot()
        assert view.number == snapshot.number, f"{person.name} is behind"
        assert view.members == {m.id: m for m in snapshot.members}, f"{person.name}'s stage"
        assert view.listeners == snapshot.listeners, f"{person.name}'s count of listeners"
        assert (view.title, view.settings) == (snapshot.title, snapshot.settings)
        assert view.me == space.view(view.me.id)
        assert person.client.repairs == 0, "the state hash was right all the time"
